"""What is to be drawn, as files for 3D Slicer, ITK-SNAP or any other tool: images, masks that are begun, and a list."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hssl.errors import HsslError, StoreError, attempt
from hssl.files import new_folder, write_text
from hssl.palette import label_colours
from hssl.prediction.predictor import Predictor
from hssl.sources.base import Case, Geometry
from hssl.sources.files import PICTURES
from hssl.store import CaseRecord, Store, TaskInfo
from hssl.store.convert import image_files_of
from hssl.store.corrections import LIST, MASKS, ExportedCase, ExportList, hash_of_mask, ignore_value
from hssl.store.store import file_hash
from hssl.suggestion.ranking import Suggestion, Suggestions

IMAGES = "images"
ITK_SNAP, SLICER, README = "labels.txt", "labels.ctbl", "README.md"
_AXES = "ijk"
logger = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A mask to be drawn on the grid of its image's file, and where its slices lie."""

    mask: NDArray[np.uint8]
    slices: list[int] | None
    axis: int


def export_cases(store: Store, found: Suggestions, folder: Path, predictor: Predictor | None) -> Path:
    """Writes the cases of what is suggested into a new folder, whole or not at all.

    Images are those of the raw files, on their own grids; where these are gone, those of the store, brought back to
    these grids. Masks begin with the predictions of a fine-tuned run, or empty. Where slices are suggested, all others
    have the value of what is not annotated, but for those that have been drawn before.

    Args:
        store: The store.
        found: What is suggested.
        folder: The new folder.
        predictor: Begins the masks; None leaves them empty.

    Returns:
        `folder`.

    Raises:
        ConfigError: The folder is there already.
        StoreError: A mask that is drawn in part is not where it was.
    """
    info, records = store.tasks[found.task], {case.id: case for case in store.cases(found.task)}
    places: dict[str, list[Suggestion]] = {}
    for item in found.items:
        for case in item.cases:
            places.setdefault(case, []).append(item)
    exported: list[ExportedCase] = []
    with new_folder(folder) as temporary:
        for part in (IMAGES, MASKS):
            (temporary / part).mkdir()
        predicted = _predicted(store, [records[case] for case in places], predictor)
        for (case, items), mask in zip(places.items(), predicted, strict=True):
            record, numbers = records[case], [item.slice for item in items] if found.slices else None
            begun = _begin(store, record, info, found, mask, numbers)
            from_store = _write_image(store, record, temporary / IMAGES)
            _write_mask(begun.mask, record, temporary / MASKS)
            exported.append(
                ExportedCase(
                    case=case,
                    subject=record.subject,
                    ranks=[item.rank for item in items],
                    slices=begun.slices,
                    axis=begun.axis,
                    stands_for=[item.stands_for for item in items],
                    uncertainty=None if predictor is None else [item.uncertainty or 0.0 for item in items],
                    from_store=from_store,
                    mask_sha256=hash_of_mask(begun.mask),
                )
            )
        listed = ExportList(
            task=found.task,
            labels=info.labels,
            ignore=ignore_value(info),
            prefilled=None if predictor is None else str(predictor.run.path),
            cases=exported,
        )
        write_text(temporary / LIST, listed.model_dump_json(indent=1) + "\n")
        write_text(temporary / ITK_SNAP, _itk_snap_labels(listed))
        write_text(temporary / SLICER, _slicer_labels(listed))
        write_text(temporary / README, _in_words(listed, found, store))
    if lost := [case.case for case in exported if case.from_store]:
        logger.warning(
            "%d images are those of the store, less sharp than the raw ones, which are not where they were (%s)",
            len(lost),
            ", ".join(lost[:4]),
        )
    return folder


def _predicted(store: Store, records: list[CaseRecord], predictor: Predictor | None) -> Iterator[NDArray[np.uint8]]:
    """A mask for each case, on the grid of its file."""
    if predictor is None:
        return (np.zeros(record.source_shape, np.uint8) for record in records)
    return predictor.masks((store.image(record), record.geometry) for record in records)


def _begin(
    store: Store,
    record: CaseRecord,
    info: TaskInfo,
    found: Suggestions,
    mask: NDArray[np.uint8],
    numbers: list[int] | None,
) -> _Begun:
    """The mask to be drawn, all of it or some slices of the store."""
    # One pixel of each stored slice, in the axes of the file: it says which way the slices lie and where each is.
    lie = info.preprocessing.restore_axes(np.arange(record.shape[0])[:, None, None], record.geometry)
    axis = int(np.argmax(lie.shape)) if record.shape[0] > 1 else 2
    if numbers is None:
        return _Begun(mask, None, axis)
    ignore = np.uint8(ignore_value(info))
    before = np.full(record.source_shape, ignore)
    if record.has_label and record.subject in found.drawn and info.ignore is not None:
        before = _drawn_before(store, record)
    chosen = np.isin(lie, numbers)
    places = np.argsort(lie.ravel())
    return _Begun(np.where(chosen, mask, before), [int(places[number]) for number in numbers], axis)


def _drawn_before(store: Store, record: CaseRecord) -> NDArray[np.uint8]:
    """The mask of a case, on the grid of its file, of which some slices are drawn."""
    raw = store.source_case(record)
    if raw.label_path is None or raw.read_label is None or file_hash(raw.label_path) != record.label_sha256:
        hint = "put it back: the slices drawn before are in it"
        raise StoreError(f"the mask of case '{record.id}' is not what it was", path=raw.label_path, hint=hint)
    return raw.read_label().astype(np.uint8)


def _write_image(store: Store, record: CaseRecord, folder: Path) -> bool:
    """Writes the image of a case; returns whether it had to be that of the store."""
    raw = attempt(lambda case: _unchanged(store, case), record)
    if isinstance(raw, HsslError):
        planes = store.image(record).astype(np.float32)
        low, high = record.intensity
        restored = store.tasks[record.task].preprocessing.restore_scores(planes[None], record.geometry)[0]
        pixels = store.tasks[record.task].preprocessing.restore_axes(restored, record.geometry)
        if record.source_ndim == 2:
            Image.fromarray((255 * pixels[..., 0]).round().astype(np.uint8)).save(folder / f"{record.id}.png")
        else:
            _save((low + (high - low) * pixels).astype(np.float32), record.geometry, folder / f"{record.id}.nii.gz")
        return True
    if record.source_ndim == 2 and raw.image_path.name.lower().endswith(PICTURES):
        shutil.copyfile(raw.image_path, folder / f"{record.id}{raw.image_path.suffix.lower()}")
    else:
        _save(raw.read_image(), record.geometry, folder / f"{record.id}.nii.gz")
    return False


def _unchanged(store: Store, record: CaseRecord) -> Case:
    """The raw case, if its files are those that the store was made from."""
    raw = store.source_case(record)
    if file_hash(*image_files_of(raw)) != record.image_sha256:
        raise StoreError(
            "has changed since it was aggregated", path=raw.image_path, hint="put it back, or aggregate again"
        )
    return raw


def _save(pixels: NDArray[np.float32] | NDArray[np.uint8], geometry: Geometry, path: Path) -> None:
    limits = np.iinfo(np.int16)
    if pixels.dtype == np.float32 and limits.min <= pixels.min() and pixels.max() <= limits.max:
        whole = pixels.astype(np.int16)
        if (whole == pixels).all():  # as most scanners write it, in half the bytes
            _nifti(whole, geometry, path)
            return
    _nifti(pixels, geometry, path)


def _nifti(pixels: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.uint8], geometry: Geometry, path: Path) -> None:
    image = nib.Nifti1Image(pixels, geometry.affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nib.save(image, path)


def _write_mask(mask: NDArray[np.uint8], record: CaseRecord, folder: Path) -> None:
    if record.source_ndim == 2:
        Image.fromarray(mask[..., 0]).save(folder / f"{record.id}.png")
    else:
        _nifti(mask, record.geometry, folder / f"{record.id}.nii.gz")


def _colours(listed: ExportList) -> dict[int, tuple[str, tuple[int, int, int]]]:
    """Name and colour of each value that a mask may hold."""
    colours = {value: _rgb(colour) for value, colour in label_colours(listed.labels).items()}
    found = {value: (name, colours[value]) for value, name in listed.labels.items()}
    return found | {listed.ignore: ("not drawn", (90, 90, 90))}


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def _itk_snap_labels(listed: ExportList) -> str:
    """A label description of ITK-SNAP: value, colour, opacity, visible in slices and in 3D, name."""
    lines = ['0 0 0 0 0 0 0 "Clear Label"']
    for value, (name, (red, green, blue)) in _colours(listed).items():
        opacity = "0.3" if value == listed.ignore else "1"
        quoted = name.replace('"', "'")
        lines.append(f'{value} {red} {green} {blue} {opacity} 1 {int(value != listed.ignore)} "{quoted}"')
    return "\n".join(lines) + "\n"


def _slicer_labels(listed: ExportList) -> str:
    """A colour table of 3D Slicer: value, name without spaces, colour, opacity."""
    lines = ["0 background 0 0 0 0"]
    for value, (name, (red, green, blue)) in _colours(listed).items():
        lines.append(f"{value} {'_'.join(name.split())} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


def _in_words(listed: ExportList, found: Suggestions, store: Store) -> str:
    """What is in the folder and what to do with it."""
    what = "slices" if found.slices else "subjects"
    labels = ", ".join(f"{value} {name}" for value, name in listed.labels.items()) or "none yet: number them from 1"
    begun = f"the predictions of {listed.prefilled}" if listed.prefilled else "nothing"
    lines = [
        f"# What to draw: {listed.task}",
        "",
        f"Draw in `{MASKS}/`, over the images of the same name in `{IMAGES}/`; keep names, grid and format.",
        f"The masks begin with {begun}. Values: 0 background, {labels}; {listed.ignore} is what is not annotated.",
        f"Label names and colours: `{ITK_SNAP}` for ITK-SNAP, `{SLICER}` for 3D Slicer. Then:",
        "",
        f"    hssl aggregate THIS_FOLDER -o {store.path}",
        "",
        f"Suggested are the {what} that stand for the others best ({found.by}, features: {found.features}).",
        "",
    ]
    if found.slices:
        lines += [
            "Slices are counted from 0 along the named axis of the file (i, j, k), and from 1 in ITK-SNAP.",
            "In the pictures of hssl they are counted from 1, and may run the other way.",
            "",
        ]
    head = ["rank", "case", "subject", *(["slice"] if found.slices else []), "stands for", "uncertainty"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rows = [(rank, case, place) for case in listed.cases for place, rank in enumerate(case.ranks)]
    for rank, case, place in sorted(rows, key=lambda row: (row[0], row[1].case)):
        cells = [str(rank), case.case, case.subject]
        if case.slices is not None:
            cells.append(f"{_AXES[case.axis]} = {case.slices[place]} (ITK-SNAP: {case.slices[place] + 1})")
        cells.append(f"{case.stands_for[place]} of {found.compared}")
        cells.append("–" if case.uncertainty is None else f"{case.uncertainty[place]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
