"""Plain folders of 2D pictures (PNG, TIFF, JPEG), in the folder itself or in ``images``.

A picture is a volume of one slice. Colour becomes luminance. Pixels are 1 mm unless the resolution tags of
a TIFF say otherwise, in centimetres. Masks, if there are any, have the name of their image and lie in ``labels`` or
``masks``; black and white ones (0 and 255) have one label, 1. Label names come from an optional
``labels.json`` (``{"lung": 1}``); without it, each value in the masks is a label.
"""

from __future__ import annotations

from pathlib import Path

from hssl.sources.base import Source
from hssl.sources.files import PICTURES, read_label, read_white_label
from hssl.sources.folder import FolderSource, Layout, Options, choose_channels
from hssl.sources.plain import list_images, listed_labels, pair_masks, plain_task, present_labels


def matches(path: Path) -> bool:
    """Whether `path`, or its ``images`` folder, holds pictures, or is one."""
    return bool(list_images(path, PICTURES))


def read(path: Path, options: Options) -> list[Source]:
    """The task of the folder. Masks without a label list are read here, to know their values.

    Raises:
        SourceError: A mask has no image, there are both mask folders, or the masks hold no labels but greys.
    """
    choose_channels([""], options.channel, path)
    files = pair_masks(path, PICTURES)
    listed = listed_labels(path) if any(case.label for case in files) else {}
    labels = present_labels(files, read_label) if listed is None else listed
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


LAYOUT = Layout("images2d", "*.png, *.tif or *.jpg in the folder or in 'images'", matches, read)
