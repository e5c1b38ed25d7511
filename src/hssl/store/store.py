"""The aggregated data on disk: plain ``.npy`` arrays, one index and one split, open to any tool."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from hssl.errors import StoreError, first_mistake
from hssl.metrics import IGNORE
from hssl.sources import find_sources
from hssl.sources.base import Case, Geometry
from hssl.sources.files import read_label
from hssl.store.preprocessing import Preprocessing
from hssl.store.splits import Split, Splits, labelled_subjects

INDEX, SPLITS = "index.json", "splits.json"
FORMAT: Literal[2] = 2
IGNORE_NAME = "ignore"
"""Name of the label, as nnU-Net has it, that marks what is not annotated."""
Part = Literal["train", "val", "test"]
Kind = Literal["images", "labels"]
_BLOCKS, _BLOCK = 16, 1024
_NPY_HEADER = range(64, 1024)  # bytes
_NOT_FINITE = np.uint16(0x7C00)  # the exponent bits of float16: all set in NaN and infinity
# Where the data came from differs between machines; the checksum of a part says no more than that of the whole.
_ORIGIN = {
    "tasks": {"__all__": {"origin", "follow_links", "fingerprint", "skipped", "duplicates"}},
    "cases": {"__all__": {"image_path", "label_path", "stored_image_sample", "stored_label_sample", "stored_label"}},
}
Model = TypeVar("Model", bound=BaseModel)


def _file_name(name: str) -> str:
    """Refuses a name that would lead out of the store: an index may come from anybody."""
    if name != Path(name).name or name.startswith(".") or "\0" in name:
        raise ValueError("is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Row = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
LabelValue = Annotated[int, Field(ge=1, le=255)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskInfo(_Entry):
    """One task of a store.

    Attributes:
        name: The task.
        modality: As its source names it; empty where unknown.
        labels: Name of each label value in the masks, without background (0).
        preprocessing: How its images were brought into the store.
        layout: The reader that found it.
        origin: The folder it was read from.
        subject: The subject rule given, if any.
        channel: Index of the channel in files that hold several; else the channel given, if any.
        renamed: The task name given, if any.
        follow_links: Whether its list may name files outside of its folder.
        ignore: Value in the masks of what is not annotated; None without one. No loss and no score counts it.
        fingerprint: SHA-256 of the list of source files, their sizes and times, and the options.
        skipped: Bad cases that were left out, one line each.
        duplicates: Cases with the image of another case, one line each; both count as one subject. Then a
            line for each task of another folder that shares scans.
    """

    name: FileName
    modality: str
    labels: dict[LabelValue, str]
    preprocessing: Preprocessing
    layout: str
    origin: str
    subject: str | None = None
    channel: str | int | None = None
    renamed: str | None = None
    follow_links: bool = False
    ignore: int | None = None
    fingerprint: str
    skipped: list[str] = []
    duplicates: list[str] = []

    @property
    def classes(self) -> int:
        """Channels of a network's scores: background, then the labels in the order of their values."""
        return len(self.labels) + 1

    def to_channels(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Channel of the label value of each voxel, any shape; values may have gaps (0, 1, 255), channels do not.

        What is not annotated is :data:`hssl.metrics.IGNORE`.
        """
        table = np.zeros(256, np.uint8)
        if self.ignore is not None:
            table[self.ignore] = IGNORE
        table[self.values] = np.arange(self.classes)
        channels: NDArray[np.uint8] = table[mask]
        return channels

    @property
    def values(self) -> NDArray[np.uint8]:
        """Label value of each channel, background (0) first."""
        return np.array([0, *sorted(self.labels)], np.uint8)


class CaseRecord(_Entry):
    """One case of a store.

    Attributes:
        id: Unique within its task.
        task: Its task.
        subject: The person that it shows.
        image_path: The source file of the image (a folder for a DICOM series).
        label_path: The source file of the mask; None without one.
        shape: Stored slices, rows and columns.
        source_shape: Voxels along the axes of the source file.
        source_affine: Voxel indices of the source file to mm (RAS+), ``4 x 4``.
        source_ndim: 3 for a volume, 2 for a 2D image.
        intensity: The source intensities that are stored as 0 and 1.
        label_voxels: Voxels of each label value in the source file; None without a mask.
        image_sha256: Of the bytes of the source image; of a DICOM series, of its files in the order of their paths.
        label_sha256: Of the bytes of the source mask; None without one.
        stored_image_sha256: Of the bytes of the stored ``.npy`` file.
        stored_label_sha256: Of the bytes of the stored ``.npy`` file; None without a mask.
        stored_image_sample: Checksum of a part of the stored image (:func:`file_sample`); None checks its size alone.
        stored_label_sample: The same of the stored mask.
        stored_label: Name of the stored mask without ``.npy``, where a corrected one has taken the place of the first;
            None is `id`.
    """

    id: FileName
    task: FileName
    subject: str
    image_path: str
    label_path: str | None
    shape: Shape
    source_shape: Shape
    source_affine: tuple[Row, Row, Row, Row]
    source_ndim: Literal[2, 3]
    intensity: tuple[FiniteFloat, FiniteFloat]
    label_voxels: dict[int, int] | None
    image_sha256: str
    label_sha256: str | None
    stored_image_sha256: str
    stored_label_sha256: str | None
    stored_image_sample: str | None = None
    stored_label_sample: str | None = None
    stored_label: FileName | None = None

    @property
    def geometry(self) -> Geometry:
        """The grid of the source file."""
        return Geometry(self.source_shape, np.array(self.source_affine, np.float64), self.source_ndim)

    @property
    def has_label(self) -> bool:
        """Whether there is a mask."""
        return self.stored_label_sha256 is not None


class Index(_Entry):
    """What ``index.json`` holds."""

    format: Literal[2] = FORMAT
    tasks: dict[FileName, TaskInfo]
    cases: list[CaseRecord]

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for name, info in self.tasks.items():
            if name != info.name:
                raise ValueError(f"task '{name}' is called '{info.name}'")
        if stray := sorted({case.task for case in self.cases} - self.tasks.keys()):
            raise ValueError(f"cases of a task '{stray[0]}' that is not there")
        return self


class Store:
    """An aggregated data set, opened for reading.

    Args:
        path: The folder.
        index: Its tasks and cases.
        splits: Its splits.
    """

    def __init__(self, path: Path, index: Index, splits: Splits) -> None:
        self.path = path
        self.index = index
        self.splits = splits
        self._source_cases: dict[str, dict[str, Case]] = {}

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Opens a store; no array is read.

        Raises:
            StoreError: The folder is not a store, or its index or split cannot be read.
        """
        path = Path(path)
        if not (path / INDEX).is_file():
            raise StoreError("is not a store", path=path, hint="make one with 'hssl aggregate SOURCE -o STORE'")
        index, splits = _read(path / INDEX, Index), _read(path / SPLITS, Splits)
        if missing := index.tasks.keys() - splits.tasks.keys():
            raise StoreError(
                f"has no split of task '{min(missing)}'",
                path=path / SPLITS,
                hint="copy the store again from where it came, or aggregate again",
            )
        return cls(path, index, splits)

    def __repr__(self) -> str:
        """Its tasks, a line each."""
        counts = f"{len(self.tasks)} task{'s' * (len(self.tasks) != 1)}, {len(self.index.cases)} cases"
        lines = [f"Store('{self.path}'): {counts}"]
        for task in self.tasks.values():
            cases, split = self.cases(task.name), self.splits.tasks[task.name]
            parts = ", ".join(f"{len(getattr(split, part))} {part}" for part in ("train", "val", "test"))
            labels = ", ".join(task.labels.values()) or "none"
            lines.append(
                f"  {task.name}{f' ({task.modality})' if task.modality else ''}: {len(cases)} cases, "
                f"{sum(case.has_label for case in cases)} with a mask; subjects {parts}; labels {labels}"
            )
        return "\n".join(lines)

    @property
    def tasks(self) -> dict[str, TaskInfo]:
        """Every task by name."""
        return self.index.tasks

    def cases(
        self,
        task: str | None = None,
        *,
        part: Part | None = None,
        subjects: Collection[str] | None = None,
        labelled: bool | None = None,
    ) -> list[CaseRecord]:
        """The cases in the order of the index.

        Args:
            task: Only of this task.
            part: Only subjects of this part of the split of their task.
            subjects: Only of these subjects.
            labelled: Only cases with a mask (True) or without one (False).

        Raises:
            StoreError: There is no such task.
        """
        if task is not None:
            self._check_task(task)
        wanted = None if subjects is None else set(subjects)
        parts = {} if part is None else {name: set(getattr(self.splits.tasks[name], part)) for name in self.tasks}
        return [
            case
            for case in self.index.cases
            if (task is None or case.task == task)
            and (part is None or case.subject in parts[case.task])
            and (wanted is None or case.subject in wanted)
            and (labelled is None or case.has_label == labelled)
        ]

    def image(self, record: CaseRecord) -> NDArray[np.float16]:
        """The image of a case, memory-mapped: float16 ``[slices, rows, columns]`` in [0, 1].

        Raises:
            StoreError: The array is missing or damaged.
        """
        return self._array("images", record)

    def label(self, record: CaseRecord) -> NDArray[np.uint8]:
        """The mask of a case, memory-mapped: uint8 ``[slices, rows, columns]``, label values.

        Raises:
            StoreError: The case has no mask, or the array is missing or damaged.
        """
        self._check_mask(record)
        return self._array("labels", record)

    def image_slice(self, record: CaseRecord, index: int) -> NDArray[np.float16]:
        """One slice of :meth:`image`, ``[rows, columns]``, read by itself: nothing stays mapped or in memory.

        Raises:
            StoreError: The array is missing or damaged, or a value is NaN or infinite.
        """
        image = self._slice("images", record, index, np.dtype(np.float16))
        if ((image.view(np.uint16) & _NOT_FINITE) == _NOT_FINITE).any():  # several times as fast as isfinite
            raise StoreError(
                f"case '{record.id}' holds NaN or infinity in slice {index}",
                path=self.array_file("images", record),
                hint="aggregate again",
            )
        return image

    def label_slice(self, record: CaseRecord, index: int) -> NDArray[np.uint8]:
        """One slice of :meth:`label`, ``[rows, columns]``.

        Raises:
            StoreError: The case has no mask, or the array is missing or damaged.
        """
        self._check_mask(record)
        return self._slice("labels", record, index, np.dtype(np.uint8))

    def source_case(self, record: CaseRecord) -> Case:
        """Finds the raw case that a record was made from, to read it in its own grid and units.

        Raises:
            SourceError: The source is not where it was, or cannot be read.
            StoreError: The source has no such case any more.
        """
        info = self.tasks[record.task]
        if info.name not in self._source_cases:
            sources = find_sources(
                Path(info.origin),
                layout=info.layout,
                subject=info.subject,
                channel=info.channel,
                task=info.renamed,
                follow_links=info.follow_links,
            )
            cases = (case for source in sources if source.task == info.name for case in source.cases())
            self._source_cases[info.name] = {case.id: case for case in cases}
        case = self._source_cases[info.name].get(record.id)
        if case is None:
            raise StoreError(f"has no case '{record.id}' any more", path=info.origin, hint="put it back")
        if record.stored_label is None and (case.label_path is not None or record.label_path is None):
            return case
        corrected = Path(record.label_path or "")
        return replace(case, label_path=corrected, read_label=partial(read_label, corrected))

    def siblings(self, task: str) -> list[str]:
        """`task` and the other channels of its source: tasks with the same subjects."""
        self._check_task(task)
        origin = self.tasks[task].origin
        return [name for name, info in self.tasks.items() if info.origin == origin]

    def split(self, task: str) -> Split:
        """The subjects of `task` for training, validation and test."""
        self._check_task(task)
        return self.splits.tasks[task]

    def labelled(self, task: str, labels: str | int | Sequence[str], seed: int = 0) -> list[str]:
        """The training subjects whose masks may be used; nested: 5 % lies inside 10 %.

        Args:
            task: The task.
            labels: A percentage (``"5%"``), a number of subjects, or their ids.
            seed: Seed of the order in which subjects are taken.

        Raises:
            StoreError: There are not so many, or one is no training subject with a mask.
        """
        candidates = {case.subject for case in self.cases(task, part="train", labelled=True)}
        return labelled_subjects(task, sorted(candidates), labels, seed, path=self.path)

    @property
    def hash(self) -> str:
        """SHA-256 over index and split; where the data came from does not count, what it is does."""
        return _hash(self.index.model_dump(mode="json", exclude=_ORIGIN), self.splits.model_dump(mode="json"))

    @property
    def split_hash(self) -> str:
        """SHA-256 over the split alone."""
        return _hash(self.splits.model_dump(mode="json"))

    def verify(self) -> None:
        """Reads every array and compares its checksum with the index.

        Raises:
            StoreError: An array is missing or has changed; the message names the file.
        """
        for case in self.index.cases:
            arrays: tuple[tuple[Kind, str | None], ...] = (
                ("images", case.stored_image_sha256),
                ("labels", case.stored_label_sha256),
            )
            for kind, expected in arrays:
                path = self.array_file(kind, case)
                if expected is not None and file_hash(path) != expected:
                    raise StoreError("has changed since it was written", path=path, hint="aggregate again")

    def check(self, tasks: Collection[str] | None = None) -> None:
        """Compares the size of every array, and the checksum of a small part of it, with the index.

        A copy that is incomplete or mixed up is found before hours of training; a few changed bytes may not be, for
        that takes :meth:`verify`.

        Args:
            tasks: Only arrays of these tasks; None for all.

        Raises:
            StoreError: An array is missing or has changed; the message names the file.
        """
        for case in self.index.cases:
            if tasks is None or case.task in tasks:
                voxels = math.prod(case.shape)
                self._check_array("images", case, 2 * voxels, case.stored_image_sample)
                if case.has_label:
                    self._check_array("labels", case, voxels, case.stored_label_sample)

    def array_file(self, kind: Kind, record: CaseRecord) -> Path:
        """The file of the image or the mask of a case."""
        name = record.stored_label if kind == "labels" and record.stored_label is not None else record.id
        return array_path(self.path, kind, record.task, name)

    def _check_array(self, kind: Kind, case: CaseRecord, size: int, sample: str | None) -> None:
        path = self.array_file(kind, case)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise StoreError(f"cannot be read: {error.strerror}", path=path, hint="aggregate again") from error
        if found - size not in _NPY_HEADER:
            raise StoreError(f"has {found} bytes, not {size} of voxels", path=path, hint="aggregate again")
        if sample is not None and file_sample(path) != sample:
            raise StoreError("has changed since it was written", path=path, hint="aggregate again")

    def _array(self, kind: Kind, record: CaseRecord) -> NDArray[Any]:
        path = self.array_file(kind, record)
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"cannot be read: {error}", path=path, hint="aggregate again") from error
        if array.shape != record.shape:
            raise StoreError(
                f"has the shape {array.shape}, the index says {record.shape}", path=path, hint="aggregate again"
            )
        return array

    def _slice(self, kind: Kind, record: CaseRecord, index: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        # Opening a map costs more than the read, and page by page a cold disk is slow: seek and read once.
        path = self.array_file(kind, record)
        slices, rows, columns = record.shape
        size = rows * columns * dtype.itemsize
        if not 0 <= index < slices:
            raise IndexError(f"slice {index} of {slices}")
        try:
            with path.open("rb", buffering=0) as file:
                start = file.read(10)
                header = 10 + int.from_bytes(start[8:10], "little")
                whole = start[:8] == b"\x93NUMPY\x01\x00" and path.stat().st_size == header + slices * size
                file.seek(header + index * size)
                content = file.read(size)
        except OSError as error:
            raise StoreError(f"cannot be read: {error}", path=path, hint="aggregate again") from error
        if not whole or len(content) < size:
            raise StoreError("is damaged, or not of the shape that the index says", path=path, hint="aggregate again")
        array: NDArray[Any] = np.frombuffer(content, dtype).reshape(rows, columns)
        return array

    def _check_mask(self, record: CaseRecord) -> None:
        if not record.has_label:
            raise StoreError(
                f"case '{record.id}' of task '{record.task}' has no mask",
                path=self.path,
                hint="choose a case with a mask",
            )

    def _check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise StoreError(f"has no task '{task}'", path=self.path, hint=f"it has {', '.join(self.tasks)}")


def widest_slice(label: NDArray[np.uint8]) -> int:
    """The slice of a mask ``[slices, rows, columns]`` that shows most of it; the one to look at."""
    return int(np.count_nonzero(label, axis=(1, 2)).argmax())


def array_path(store: Path, kind: str, task: str, case: str) -> Path:
    """The file of a stored array; `kind` is ``images`` or ``labels``."""
    return store / kind / task / f"{case}.npy"


def file_sample(path: Path) -> str:
    """SHA-256 of the size of a file and of 16 evenly spread blocks of it, the first and the last among them.

    Raises:
        StoreError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            size = path.stat().st_size
            digest.update(str(size).encode())
            last = max(0, size - _BLOCK)
            for start in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
                stream.seek(start)
                digest.update(stream.read(_BLOCK))
    except OSError as error:
        raise StoreError(
            f"cannot be read: {error.strerror}", path=path, hint="aggregate again, or check its permissions"
        ) from error
    return digest.hexdigest()


def file_hash(*paths: Path) -> str:
    """SHA-256 of the bytes of a file, or of several, one after the other.

    Raises:
        StoreError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise StoreError(
                f"cannot be read: {error.strerror}", path=path, hint="put it back, or check its permissions"
            ) from error
    return digest.hexdigest()


def _read(path: Path, model: type[Model]) -> Model:
    try:
        content = path.read_bytes()
        return model.model_validate_json(content)
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror}", path=path, hint="aggregate again") from error
    except ValidationError as error:
        found = re.search(rb'"format":\s*(\d+)', content[:100])
        if model is Index and found and int(found[1]) != FORMAT:
            what = f"was made by another version of hssl (format {int(found[1])}, this one reads {FORMAT})"
            raise StoreError(what, path=path.parent, hint="aggregate again") from error
        what = f"is damaged or of another version: {first_mistake(error)}"
        raise StoreError(what, path=path, hint="aggregate again") from error


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
