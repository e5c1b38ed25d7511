"""What plain folders share: images paired with masks by file name, and labels that are not listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hssl.errors import SourceError
from hssl.sources.files import list_files, stem
from hssl.sources.folder import CaseFiles, Options, parse_labels, read_json, task_name

_IMAGES = ("images", "image", "imgs", "img")  # in any spelling of upper and lower case
_MASKS = (
    *("labels", "label", "labelstr", "masks", "mask", "annotations", "annotation", "gt", "groundtruth"),
    *("ground_truth", "ground-truth", "segmentations", "segmentation", "segs", "seg"),
)
_MASK = re.compile(r"(?:(.*)[_.-])?(?:mask|labels?|seg|segmentation|gt|groundtruth)", re.IGNORECASE)
_MAX_LABELS = 64
SORTED = "link the files of each sequence into one folder: docs/how-to/own-data.md, 'One folder a patient'"
"""What to do about folders of patients, for the hint of an error."""

Labels = dict[int, str]


def list_images(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """Image files of `path`, or of its folder of images, or `path` itself if it is such a file.

    Raises:
        SourceError: There are two folders of images.
    """
    if path.is_file():
        return [path] if path.name.lower().endswith(endings) else []
    return list_files(_part(path, _IMAGES) or path, endings)


def has_image_folder(path: Path) -> bool:
    """Whether the images of a challenge lie in a folder of their own."""
    return _part(path, _IMAGES) is not None


def image_folders(path: Path) -> list[Path]:
    """Folders in `path` that are called as those of images are, plain or of a challenge (``imagesTr``), sorted."""
    names = (*_IMAGES, "imagestr", "imagests")
    return sorted(child for child in path.iterdir() if child.name.lower() in names and child.is_dir())


def is_called_mask(path: Path) -> bool:
    """Whether the name of a file, or of its folder, says that it is a mask."""
    return _unmarked(stem(path)) is not None or path.parent.name.lower() in _MASKS


def plain_task(path: Path, options: Options) -> str:
    """Name of the task: that of the folder, or of the folder above a file or a folder of images."""
    return task_name(path.resolve().parent if path.is_file() else root_of(path), options)


def pair_masks(path: Path, endings: tuple[str, ...]) -> list[CaseFiles]:
    """Images of a plain folder, with the masks of the same name from a folder such as ``labels`` or ``masks``.

    A mask's name may end in ``_mask``, ``_label``, ``_labels``, ``_seg``, ``_segmentation``, ``_gt`` or
    ``_groundtruth``, also with ``-`` or ``.`` before it; such a mask may also lie beside its image.

    Raises:
        SourceError: There are two folders of masks, a mask has no image, or an image has two masks.
    """
    images = list_images(path, endings)
    if path.is_file():
        return [CaseFiles(stem(path), path)]
    folder = _part(root_of(path), _MASKS)
    found: Mapping[Path, str | None]
    if folder is not None:
        names = {stem(image) for image in images}
        found = {mask: image_name(mask, names) for mask in list_files(folder, endings)}
    else:
        found = masks_beside(images)
    masks: dict[str, Path] = {}
    for mask, name in found.items():
        if name is None:
            raise SourceError(
                "this mask has no image of the same name", path=mask, hint="name it like its image, or move it away"
            )
        if name in masks:
            raise SourceError(
                f"a second mask of '{name}', beside {masks[name].name}",
                path=mask,
                hint="keep one of them in the folder",
            )
        masks[name] = mask
    return [CaseFiles(stem(image), image, masks.get(stem(image))) for image in images if image not in found]


def masks_beside(files: list[Path]) -> dict[Path, str]:
    """Which files of a folder are masks of others there, and of which.

    Raises:
        SourceError: One is called a mask, and of no other file: it would be taken for an image.
    """
    names = {stem(file) for file in files}
    beside = {}
    for file in files:
        if (unmarked := _unmarked(stem(file))) is not None:
            if unmarked not in names:
                hint = f"masks have the name of their image; of patients or several sequences, {SORTED}"
                whose = f"no image is called '{unmarked}'" if unmarked else "does not say of which image"
                raise SourceError(f"is called a mask, and {whose}", path=file, hint=hint)
            beside[file] = unmarked
    return beside


def listed_labels(path: Path) -> Labels | None:
    """Labels from the ``labels.json`` or ``dataset.json`` of a plain folder; None where neither lists any.

    Raises:
        SourceError: The file is not a list of labels.
    """
    for name in ("labels.json", "dataset.json"):
        file = root_of(path) / name
        if file.is_file():
            content = read_json(file)
            if name == "labels.json" or "labels" in content:
                return parse_labels(content.get("labels", content), file)
    return None


def present_labels(files: list[CaseFiles], read: Callable[[Path], NDArray[np.integer]]) -> Labels:
    """Labels found by reading every mask: each value but 0, called ``label_<value>``.

    Raises:
        SourceError: A mask holds negative values, or all together hold too many to be labels.
    """
    found: set[int] = set()
    for mask in filter(None, (case.label for case in files)):
        try:
            values = read(mask)
        except SourceError:
            continue  # named, and left out if the user so wishes, when its case is read
        found.update(np.unique(values).tolist())
        if min(found) < 0 or len(found) > _MAX_LABELS:
            raise SourceError(
                f"values from {min(found)} to {max(found)}, {len(found)} of them, cannot all be labels",
                path=mask,
                hint="store whole label numbers, or list them in labels.json",
            )
    return {value: f"label_{value}" for value in sorted(found - {0})}


def root_of(path: Path) -> Path:
    """The folder that holds images and masks."""
    path = path.resolve()
    return path.parent if path.name.lower() in _IMAGES else path


def _part(path: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of images or masks in a challenge; None where there is none.

    Raises:
        SourceError: There are two.
    """
    if not path.is_dir():
        return None
    found = sorted(child for child in path.iterdir() if child.name.lower() in names and child.is_dir())
    if len(found) > 1:
        raise SourceError(f"has a '{found[0].name}' and a '{found[1].name}' folder", path=path, hint="keep one")
    return found[0] if found else None


def image_name(mask: Path, names: set[str]) -> str | None:
    """Which of the images called `names` a mask belongs to."""
    return next((name for name in (stem(mask), _unmarked(stem(mask))) if name in names), None)


def _unmarked(name: str) -> str | None:
    """The name of the image that a mask's name says it is of, empty if it says none; None for what is no mask."""
    found = _MASK.fullmatch(name)
    return (found[1] or "") if found else None
