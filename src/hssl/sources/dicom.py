"""Trees of folders with DICOM series of slices (CT, MR, PET), one case a series; needs the ``dicom`` extra.

A series is what shares a SeriesInstanceUID, whatever its files are called and in whichever folders they lie. A
segmentation (SEG) or set of contours (RTSTRUCT) in the tree is the mask of the series that it refers to; its segments
are numbered in the order of their names, unless a ``labels.json`` in the folder numbers those that count. The subject
is the PatientID; a subject rule is searched for in ``FOLDER/CASE``, the folder being that of the series below the one
given. Each modality is a task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hssl.errors import SourceError, name_bad_file
from hssl.sources.base import Case, Source
from hssl.sources.dicom_masks import MASKS, read_mask, referenced_series, segment_names
from hssl.sources.dicom_series import TAGS, Plane, Series, lacks_header, read_header, read_planes
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
        if self.subject is not None:
            root = self.path if self.path.is_dir() else self.path.parent
            return subject_of((series.folder.relative_to(root) / series.id).as_posix(), self.subject, series.folder)
        if not series.patient:
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
        names = sorted({name for files in found.values() for file in files for name in segment_names(file)})
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

    Structured reports, plans, segmentations and the like are passed over.

    Args:
        path: A folder, or one DICOM file.

    Raises:
        SourceError: pydicom is not installed, a header cannot be read, or there is no image.
    """
    return _scan(path)[0]


def _scan(path: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """The series, and the masks of each by its SeriesInstanceUID."""
    masks: dict[str, list[Path]] = defaultdict(list)
    headers: dict[str, Any] = {}
    planes: dict[str, list[Plane]] = defaultdict(list)
    for file in [path] if path.is_file() else [file for files in walk_files(path) for file in files if _is_dicom(file)]:
        header = read_header(file, specific_tags=list(TAGS))
        with name_bad_file(file):
            if header.get("Modality") in MASKS and (of := referenced_series(file)):
                masks[of].append(file)
            if "Rows" not in header or header.get("Modality") in _NOT_SCANS:
                continue
            uid = str(header.SeriesInstanceUID)
            headers.setdefault(uid, header)
            planes[uid].extend(read_planes(header, file))
    if not planes:
        raise SourceError("holds no DICOM images", path=path)
    series = (_series(uid, headers[uid], planes[uid]) for uid in planes)
    return sorted(series, key=lambda series: series.id), dict(masks)


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


def _series(uid: str, header: Any, planes: list[Plane]) -> Series:
    return Series(
        uid=uid,
        patient=str(header.get("PatientID") or "").strip(),
        number=int(header.get("SeriesNumber") or 0),
        description=str(header.get("SeriesDescription") or "").strip(),
        modality=str(header.get("Modality") or "OT"),
        planes=tuple(planes),
    )


LAYOUT = Layout("dicom", "DICOM series in the folder or below it", matches, read, holds_series)
