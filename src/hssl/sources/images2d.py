"""Plain folders of 2D pictures (PNG, TIFF, JPEG), in the folder itself or in ``images``.

A picture is a volume of one slice. Colour becomes luminance. Pixels are 1 mm unless the resolution tags of
a TIFF say otherwise, in centimetres. Masks, if there are any, have the name of their image and lie in a folder
such as ``labels`` or ``masks``; black and white ones (0 and 255) have one label, 1. Label names come from an optional
``labels.json`` (``{"lung": 1}``); without it, each value in the masks is a label.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import ndimage

from hssl.errors import SourceError
from hssl.sources.base import Source
from hssl.sources.files import PICTURES, read_label, read_white_label
from hssl.sources.folder import CaseFiles, FolderSource, Layout, Options, choose_channels
from hssl.sources.plain import Labels, list_images, listed_labels, pair_masks, plain_task, present_labels

_WHITE = 255
_FEW = 10


def matches(path: Path) -> bool:
    """Whether `path`, or its ``images`` folder, holds pictures, or is one."""
    return bool(list_images(path, PICTURES))


def read(path: Path, options: Options) -> list[Source]:
    """The task of the folder. Masks without a label list are read here, to know their values.

    Raises:
        SourceError: A mask has no image, there are two mask folders, or the masks hold no labels but greys.
    """
    choose_channels([""], options.channel, path)
    files = pair_masks(path, PICTURES)
    listed = listed_labels(path) if any(case.label for case in files) else {}
    labels = present_labels(files, read_label) if listed is None else listed
    if listed is None:
        _check_labels(labels, files)
    white = set(labels) in ({1}, {255})
    if white:
        labels = {1: labels.get(1, labels.get(255, "")) if listed else "label_1"}
    return [
        FolderSource(
            task=plain_task(path, options),
            path=path,
            layout=LAYOUT.name,
            files=files,
            find_labels=labels.copy,
            subject=options.subject,
            read_label=read_white_label if white else read_label,
        )
    ]


def _check_labels(labels: Labels, files: list[CaseFiles]) -> None:
    """Refuses values that are not listed and that are greys: many of them, or those of smooth edges.

    Raises:
        SourceError: The message has the values found.
    """
    masks = [case.label for case in files if case.label]
    values = ", ".join(map(str, [*labels][:8])) + (" ..." if len(labels) > 8 else "")
    hint = "store label numbers, without smoothing, or list the labels in labels.json"
    if len(labels) > _FEW and max(labels) > 2 * len(labels):
        what = f"the masks hold {len(labels)} values, which are greys and not labels: {values}"
        raise SourceError(what, path=masks[0].parent, hint=hint)
    if len(labels) > 1 and max(labels) == _WHITE:
        inner: set[int] = set()
        for mask in masks:
            with suppress(SourceError):  # named when its case is read
                pixels = read_label(mask)[..., 0]
                alike = ndimage.minimum_filter(pixels, 3) == ndimage.maximum_filter(pixels, 3)
                inner.update(np.unique(pixels[alike]).tolist())
        if edges := labels.keys() - inner - {_WHITE}:
            what = f"the masks hold {values}, of which {min(edges)} lies on edges alone, as smoothing leaves it"
            raise SourceError(what, path=masks[0].parent, hint=hint)


LAYOUT = Layout("images2d", "*.png, *.tif or *.jpg in the folder or in 'images'", matches, read)
