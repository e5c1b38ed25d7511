"""Trees of folders with DICOM series of slices (CT, MR, PET), one case a series; needs the ``dicom`` extra.

A series is what shares a SeriesInstanceUID, whatever its files are called and in whichever folders they lie. A
segmentation (SEG) or set of contours (RTSTRUCT) in the tree is the mask of the series that it refers to; its segments
are numbered in the order of their names, unless a ``labels.json`` in the folder numbers those that count. The subject
is the PatientID; a subject rule is searched for in ``FOLDER/CASE``, the folder being that of the series below the one
given. Each modality is a task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hssl.errors import HsslError, SourceError, attempt, name_bad_file
from hssl.sources.base import Case, Source
from hssl.sources.dicom_masks import MASKS, read_mask, referenced_series, segment_names
from hssl.sources.dicom_series import (
    TAGS,
    Plane,
    Problem,
    Series,
    lacks_header,
    read_header,
    read_planes,
    require_pydicom,
)
from hssl.sources.files import NIFTI, PICTURES, walk_files
from hssl.sources.folder import Layout, Options, choose_channels, safe_name, subject_of, task_name
from hssl.sources.plain import listed_labels

_ENDINGS = (".dcm", ".dicom", ".ima")
_MARK = slice(128, 132)  # where a DICOM file says that it is one
_NOT_SCANS = (*MASKS, "RTDOSE")  # have rows and columns, but show no measurement


@dataclass(frozen=True)
class DicomSource:
    """A :class:`~hssl.sources.base.Source` of the series of one modality.

    Attributes:
        task: Name of the task.
        path: The folder, or single file, that was given.
        modality: Modality of all its series.
        series: The series.
        subject: Regular expression for the subject; None for the PatientID.
        labels: Name of each label value in the masks.
        masks: The masks of each series that has any, by its SeriesInstanceUID.
    """

    task: str
    path: Path
    modality: str
    series: list[Series] = field(repr=False)
    subject: str | None = None
    layout: str = "dicom"
    labels: Mapping[int, str] = field(default_factory=dict)
    channel: int | None = None
    masks: Mapping[str, list[Path]] = field(repr=False, default_factory=dict)

    def cases(self) -> Iterator[Case]:
        """Yields the series sorted by id.

        Raises:
            SourceError: A series has no PatientID, or the subject rule does not match.
        """
        for series in sorted(self.series, key=lambda series: series.id):
            masks = self.masks.get(series.uid, [])
            yield Case(
                id=series.id,
                subject=self._subject(series),
                task=self.task,
                image_path=series.folder,
                label_path=masks[0] if masks else None,
                read_geometry=series.geometry,
                read_image=series.image,
                read_label=partial(_read_only_mask, masks, series, self.labels) if masks else None,
                image_files=tuple(sorted({plane.path for plane in series.planes})),
                padding=series.padding,
            )

    def _subject(self, series: Series) -> str:
        if self.subject is not None and series.damage is None:
            root = self.path if self.path.is_dir() else self.path.parent
            return subject_of((series.folder.relative_to(root) / series.id).as_posix(), self.subject, series.folder)
        if not series.patient and series.damage is None:
            hint = "say with --subject which part of the path below the folder given is the subject"
            raise SourceError(f"{series} has no PatientID", path=series.folder, hint=hint)
        return safe_name(series.patient)


def matches(path: Path) -> bool:
    """Whether `path` is a DICOM file, or a tree of folders with some and no folders of other images."""
    if path.is_file():
        return _is_dicom(path)
    found = False
    for files in walk_files(path):
        if any(_is_dicom(file) for file in files):
            found = True
        elif any(file.name == "dataset.json" or file.name.lower().endswith((*NIFTI, *PICTURES)) for file in files):
            return False
    return found


def holds_series(path: Path) -> bool:
    """Whether `path` is a DICOM file, or a tree of folders with some, whatever else lies there."""
    if path.is_file():
        return _is_dicom(path)
    return any(_is_dicom(file) for files in walk_files(path) for file in files)


def read(path: Path, options: Options) -> list[Source]:
    """The task of the folder; if there are several modalities, one task each, ``Task_CT`` and ``Task_PT``.

    Raises:
        SourceError: As :func:`list_series`, or there is no such channel (here: modality).
    """
    series, masks = _scan(path)
    listed = listed_labels(path)
    task = task_name(path.resolve().parent if path.is_file() else path, options)
    modalities = sorted({one.modality for one in series})
    sources: list[Source] = []
    for number in choose_channels(modalities, options.channel, path):
        own = [one for one in series if one.modality == modalities[number]]
        found = {one.uid: masks[one.uid] for one in own if one.uid in masks}
        named = (attempt(segment_names, file) for files in found.values() for file in files)
        # A mask that cannot be read is named when its case is.
        names = sorted({name for each in named if not isinstance(each, HsslError) for name in each})
        labels = dict(enumerate(names, start=1)) if listed is None else listed
        sources.append(
            DicomSource(
                task=safe_name(f"{task}_{modalities[number]}") if len(modalities) > 1 else task,
                path=path,
                modality=modalities[number],
                series=own,
                subject=options.subject,
                labels=labels if found else {},
                masks=found,
            )
        )
    return sources


def list_series(path: Path) -> list[Series]:
    """The series in a folder and the folders below it, sorted by id; reads every header, and no pixels.

    Structured reports, plans, segmentations and the like are passed over. A file that cannot be read makes the series
    in its folder raise an error when they are read; where there are none, it is listed as one by itself.

    Args:
        path: A folder, or one DICOM file.

    Raises:
        SourceError: pydicom is not installed, or there is no image.
    """
    return _scan(path)[0]


class _File(NamedTuple):
    """One DICOM file: the slices that it holds, or the series that it is a mask of."""

    path: Path
    header: Any
    planes: Sequence[Plane] = ()
    masked: str | None = None


def _scan(path: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """The series, and the masks of each by its SeriesInstanceUID."""
    require_pydicom()
    masks: dict[str, list[Path]] = defaultdict(list)
    found: dict[str, list[_File]] = defaultdict(list)
    damaged: dict[Path, HsslError] = {}
    for file in [path] if path.is_file() else [file for files in walk_files(path) for file in files if _is_dicom(file)]:
        read = attempt(_read_file, file)
        if isinstance(read, HsslError):
            damaged[file] = read
        elif read.masked is not None:
            masks[read.masked].append(file)
        elif read.planes:
            found[str(read.header.SeriesInstanceUID)].append(read)
    if damaged and not found:  # no case is left
        raise next(iter(damaged.values()))
    if not found:
        hint = "give the folder that the slices are in, or one above it"
        raise SourceError("holds no DICOM images", path=path, hint=hint)
    series = [_series(uid, files, damaged) for uid, files in found.items()]
    folders = {plane.path.parent for one in series for plane in one.planes}
    modality = series[0].modality
    series += [_alone(file, error, modality) for file, error in damaged.items() if file.parent not in folders]
    return sorted(series, key=lambda series: series.id), dict(masks)


def _read_file(path: Path) -> _File:
    header = read_header(path, specific_tags=list(TAGS))
    with name_bad_file(path):
        if header.get("Modality") in MASKS and (of := referenced_series(path)):
            return _File(path, header, masked=of)
        if "Rows" not in header or header.get("Modality") in _NOT_SCANS:
            return _File(path, header)
        int(header.get("SeriesNumber") or 0), str(header.SeriesInstanceUID)  # pydicom looks at a value when asked
        return _File(path, header, read_planes(header, path))


def _read_only_mask(masks: list[Path], series: Series, labels: Mapping[int, str]) -> NDArray[np.uint8]:
    if len(masks) > 1:
        raise SourceError(f"a second mask of {series}, beside {masks[0]}", path=masks[1], hint="keep one in the folder")
    return read_mask(masks[0], series, labels)


def _is_dicom(path: Path) -> bool:
    """Many DICOM files have no ending, or one that is part of a number; the mark says what they are.

    One that has lost its header is taken for DICOM too, so that it is named and not passed over: a series without
    every second slice looks whole.
    """
    name = path.name.lower()
    if name == "dicomdir" or name.endswith((*NIFTI, *PICTURES)) or not path.is_file():
        return False
    if name.endswith(_ENDINGS):
        return True
    with name_bad_file(path), path.open("rb") as stream:
        return stream.read(_MARK.stop)[_MARK] == b"DICM" or lacks_header(path)


def _series(uid: str, files: Sequence[_File], damaged: Mapping[Path, HsslError]) -> Series:
    header, folders = files[0].header, {file.path.parent for file in files}
    return Series(
        uid=uid,
        patient=str(header.get("PatientID") or "").strip(),
        number=int(header.get("SeriesNumber") or 0),
        description=str(header.get("SeriesDescription") or "").strip(),
        modality=str(header.get("Modality") or "OT"),
        planes=tuple(plane for file in files for plane in file.planes),
        damage=next((error for path, error in damaged.items() if path.parent in folders), None),
    )


def _alone(file: Path, error: HsslError, modality: str) -> Series:
    """A file that cannot be read in a folder without series: a case, so that it can be left out as one."""
    plane = Plane(file, 0, (0, 0), problem=Problem(error.what, error.hint))
    return Series(str(file), file.parent.name, 0, "", modality, (plane,), damage=error)


LAYOUT = Layout("dicom", "DICOM series in the folder or below it", matches, read, holds_series)
