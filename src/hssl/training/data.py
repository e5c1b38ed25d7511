"""Batches as functions of (seed, step): what step t sees does not depend on how the run got there.

Both datasets are indexed by step and give a whole batch, so a continued run, a run with loader processes and a run
over several ranks draw exactly what an undisturbed one does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import StoreError
from hssl.objectives import Origin, WindowBatch
from hssl.store import CaseRecord, Store, TaskInfo

Scalar = TypeVar("Scalar", bound=np.generic)
Batch = TypeVar("Batch", covariant=True)

FLAT = 0.02
"""A slice whose standard deviation is below this shows nothing (air, or the outside of a skull-stripped brain)."""


class LabelledBatch(NamedTuple):
    """Windows ``[B, 1, S, S]`` float16 and the channel of each pixel's label, ``[B, S, S]`` uint8."""

    window: Tensor
    label: Tensor


class FinetuneBatch(NamedTuple):
    """What a step of fine-tuning sees: patches with masks, and for each auxiliary windows without."""

    labelled: LabelledBatch
    unlabelled: dict[str, WindowBatch]


class BatchData(Dataset[Batch]):
    """Batches by step, and what is in them."""

    @abstractmethod
    def cases_of(self, step: int) -> list[str]:
        """``TASK/CASE`` of each image in this rank's part of the batch of `step`; no image is read."""


class WindowData(BatchData[WindowBatch]):
    """Windows of the training subjects, by step; no mask is read.

    Args:
        store: The aggregated data.
        tasks: Tasks to draw from, in the order that numbers them.
        batch_size: Windows a step, over all processes.
        size: Side of a window in pixels.
        steps: Length.
        seed: Fixes every draw.
        stream: Separates draws that have the same seed.
        domains_per_batch: Tasks that share a batch.
        task_sampling_exponent: A task is drawn with probability proportional to its slices to this power.
        rank: Number of this process.
        world_size: Number of processes; each gets an equal, disjoint part of the same global batch.

    Raises:
        StoreError: A task has no training subject.
    """

    def __init__(
        self,
        store: Store,
        tasks: Sequence[str],
        *,
        batch_size: int,
        size: int,
        steps: int,
        seed: int,
        stream: tuple[int, ...] = (),
        domains_per_batch: int = 1,
        task_sampling_exponent: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.batch_size, self.size, self.steps = batch_size, size, steps
        self.seed, self.stream, self.domains_per_batch = seed, stream, domains_per_batch
        self.cases: list[CaseRecord] = []
        self.by_subject: list[list[list[int]]] = []  # task -> subject -> numbers of its cases
        self.subject_of_case: list[int] = []
        slices = []
        for task in tasks:
            subjects: dict[str, list[int]] = {}
            for case in store.cases(task, part="train"):
                subjects.setdefault(case.subject, []).append(len(self.cases))
                self.cases.append(case)
            if not subjects:
                raise StoreError(
                    f"task '{task}' has no training subjects",
                    path=store.path,
                    hint="leave this task out, or aggregate with a split of your own (--splits)",
                )
            offset = sum(len(earlier) for earlier in self.by_subject)
            numbers = {subject: offset + i for i, subject in enumerate(subjects)}
            self.subject_of_case += [numbers[case.subject] for case in self.cases[len(self.subject_of_case) :]]
            self.by_subject.append(list(subjects.values()))
            slices.append(sum(self.cases[number].shape[0] for numbers_ in subjects.values() for number in numbers_))
        weights = np.array(slices, np.float64) ** task_sampling_exponent
        self.task_weights = weights / weights.sum()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> WindowBatch:
        """This rank's part of the batch of `step`."""
        rng = np.random.default_rng((self.seed, step, 1, *self.stream))
        size = self.size
        rows = []
        for number, (task, case) in enumerate(self._draw_cases(rng)):
            # Each image has its own generator, so that a rank need not read what the others draw.
            own = np.random.default_rng((self.seed, step, 2, number, *self.stream))
            if number % self.world_size == self.rank:
                index, image = self._draw_slice(self.cases[case], own)
                corner = draw_corner(image.shape, size, own)
                place = index / max(self.cases[case].shape[0] - 1, 1)
                frame = window_frame(corner, size, image.shape)
                numbers = (task, self.subject_of_case[case], case, index, self.cases[case].shape[0])
                rows.append((cut(image, corner, size), *numbers, place, frame))
        windows, tasks, subjects, cases, indices, slices, positions, frames = zip(*rows, strict=True)
        origin = Origin(
            task=torch.tensor(tasks),
            subject=torch.tensor(subjects),
            case=torch.tensor(cases),
            slice=torch.tensor(indices),
            slices=torch.tensor(slices),
            position=torch.tensor(positions, dtype=torch.float32),
            frame=torch.tensor(frames, dtype=torch.float32),
        )
        return WindowBatch(torch.from_numpy(np.stack(windows)[:, None]), origin)

    def cases_of(self, step: int) -> list[str]:
        """As :meth:`BatchData.cases_of`."""
        drawn = self._draw_cases(np.random.default_rng((self.seed, step, 1, *self.stream)))
        return _named(self.cases[case] for _, case in drawn[self.rank :: self.world_size])

    def _draw_cases(self, rng: Generator) -> list[tuple[int, int]]:
        count = min(self.domains_per_batch, len(self.by_subject), self.batch_size)
        tasks = rng.choice(len(self.by_subject), size=count, replace=False, p=self.task_weights)
        drawn = []
        for share, task in zip(np.array_split(np.arange(self.batch_size), count), tasks, strict=True):
            subjects = self.by_subject[task]
            # Every subject once before any comes twice: neighbours in one volume are rare by construction.
            order = np.concatenate([rng.permutation(len(subjects)) for _ in range(0, len(share), len(subjects))])
            drawn += [(int(task), int(rng.choice(subjects[subject]))) for subject in order[: len(share)]]
        return drawn

    def _draw_slice(self, case: CaseRecord, rng: Generator) -> tuple[int, NDArray[np.float16]]:
        for _ in range(5):
            index = int(rng.integers(case.shape[0]))
            image = self.store.image_slice(case, index)
            if float(image.astype(np.float32).std()) > FLAT:  # faster than std(dtype=float32) by half
                break
        return index, image


def pretrain_windows(
    store: Store, tasks: tuple[str, ...], config: PretrainConfig, rank: int = 0, world_size: int = 1
) -> WindowData:
    """The batches of a pre-training, by step."""
    return WindowData(
        store,
        tasks,
        batch_size=config.batch_size,
        size=config.window,
        steps=config.steps,
        seed=config.seed,
        domains_per_batch=config.domains_per_batch,
        task_sampling_exponent=config.task_sampling_exponent,
        rank=rank,
        world_size=world_size,
    )


class FinetuneData(BatchData[FinetuneBatch]):
    """Fine-tuning batches of one task's labelled subjects, and windows for auxiliaries.

    Args:
        store: The aggregated data.
        subjects: Subjects whose masks may be read.
        config: Task, batch size, window, share of foreground patches and seed.
        unlabelled: Windows without masks, by the name of the auxiliary that they are for.
        rank: Number of this process.
        world_size: Number of processes; each gets an equal, disjoint part of the same global batch.

    Raises:
        StoreError: The subjects have no masks.
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str],
        config: FinetuneConfig,
        *,
        unlabelled: Mapping[str, WindowData] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.store, self.config, self.unlabelled = store, config, dict(unlabelled or {})
        self.rank, self.world_size = rank, world_size
        self.cases = store.cases(config.task, subjects=subjects, labelled=True)
        if not self.cases:
            raise StoreError(
                f"task '{config.task}' has no masks of the chosen subjects",
                path=store.path,
                hint="choose labelled subjects that have masks",
            )
        rng = np.random.default_rng((config.seed, 3))
        self.task = store.tasks[config.task]
        self.slices, self.voxels = [], []
        for case in self.cases:
            drawn = drawn_slices(store.label(case), self.task, config.labelled_slices)
            self.slices.append(drawn)
            self.voxels.append(_voxels_by_label(store.label(case), self.task, drawn, rng))
        if not any(len(drawn) for drawn in self.slices):
            raise StoreError(
                f"task '{config.task}': no slice of the chosen subjects is annotated",
                path=store.path,
                hint="choose other labelled subjects, or more of them",
            )
        self.drawn = [number for number, drawn in enumerate(self.slices) if len(drawn)]

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> FinetuneBatch:
        """This rank's part of the batch of `step`."""
        return FinetuneBatch(self._labelled(step), {name: data[step] for name, data in self.unlabelled.items()})

    def cases_of(self, step: int) -> list[str]:
        """As :meth:`BatchData.cases_of`."""
        named = _named(self.cases[number] for number, _, _ in self._places(step))
        return [*named, *(case for data in self.unlabelled.values() for case in data.cases_of(step))]

    def _labelled(self, step: int) -> LabelledBatch:
        windows, masks = [], []
        for number, index, corner in self._places(step):
            case = self.cases[number]
            windows.append(cut(self.store.image_slice(case, index), corner, self.config.window))
            masks.append(cut(self.store.label_slice(case, index), corner, self.config.window))
        channels = self.task.to_channels(np.stack(masks))
        return LabelledBatch(torch.from_numpy(np.stack(windows)[:, None]), torch.from_numpy(channels))

    def _places(self, step: int) -> list[tuple[int, int, tuple[int, int]]]:
        """Number of the case, slice and corner of each patch of this rank."""
        rng = np.random.default_rng((self.config.seed, step, 4))
        size = self.config.window
        places = []
        for _ in range(self.config.batch_size):
            number = self.drawn[int(rng.integers(len(self.drawn)))]
            case, voxels = self.cases[number], self.voxels[number]
            if voxels and rng.random() < self.config.foreground:
                candidates = voxels[int(rng.integers(len(voxels)))]
                index, row, column = (int(along) for along in candidates[int(rng.integers(len(candidates)))])
                corner = (row - size // 2, column - size // 2)
            else:
                index = int(self.slices[number][int(rng.integers(len(self.slices[number])))])
                corner = draw_corner(case.shape[1:], size, rng)
            places.append((number, index, corner))
        return places[self.rank :: self.world_size]


def _named(cases: Iterable[CaseRecord]) -> list[str]:
    return [f"{case.task}/{case.id}" for case in cases]


def cut(image: NDArray[Scalar], corner: tuple[int, int], size: int) -> NDArray[Scalar]:
    """A `size` x `size` window of a slice; 0 where it reaches beyond it.

    Args:
        image: ``[rows, columns]``.
        corner: First row and column; may be negative or beyond the edge.
        size: Side in pixels.
    """
    window = np.zeros((size, size), image.dtype)
    (top, left), (rows, columns) = corner, image.shape
    first_row, last_row = max(top, 0), min(top + size, rows)
    first_column, last_column = max(left, 0), min(left + size, columns)
    if first_row < last_row and first_column < last_column:
        part = image[first_row:last_row, first_column:last_column]
        window[first_row - top : last_row - top, first_column - left : last_column - left] = part
    return window


def window_frame(corner: tuple[int, int], size: int, shape: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """Where a window lies in its slice: ``((x offset, x scale), (y offset, y scale))``.

    A point at window coordinate w in [-1, 1] lies at offset + scale * w, 0 and 1 being the edges of the slice.

    Args:
        corner: First row and column of the window.
        size: Its side in pixels.
        shape: Rows and columns of the slice.
    """
    along = [((first + size / 2) / extent, size / 2 / extent) for first, extent in zip(corner, shape, strict=True)]
    return along[1], along[0]


def draw_corner(shape: tuple[int, ...], size: int, rng: Generator) -> tuple[int, int]:
    """Draws the first row and column of a window of `size` x `size` pixels in a slice of this shape."""
    # Inside the image where it is larger than the window, anywhere that shows all of it where it is smaller.
    top, left = (int(rng.integers(min(extent - size, 0), max(extent - size, 0) + 1)) for extent in shape)
    return top, left


def drawn_slices(label: NDArray[np.uint8], task: TaskInfo, count: int | None) -> NDArray[np.intp]:
    """Slices of a mask that are trained on: those of which something is annotated, or `count` of them, evenly spread.

    Args:
        label: Label values ``[slices, rows, columns]``.
        task: Its task, with the value of what is not annotated.
        count: How many; None is all, and so is more than there are.
    """
    drawn = np.arange(len(label))
    if task.ignore is not None:
        drawn = drawn[(label != task.ignore).any(axis=(1, 2))]
    if count is None or count >= len(drawn):
        return drawn
    # In the middle of `count` equal parts.
    return drawn[((np.arange(count) + 0.5) * len(drawn) / count).astype(np.intp)]


def _voxels_by_label(
    label: NDArray[np.uint8], task: TaskInfo, slices: NDArray[np.intp], rng: Generator, limit: int = 2000
) -> list[NDArray[np.intp]]:
    """Up to `limit` voxels of each label in these slices, ``[voxels, 3]``."""
    found, planes = [], label[slices]
    for value in task.labels:
        voxels = np.argwhere(planes == value)
        if len(voxels):
            voxels[:, 0] = slices[voxels[:, 0]]
            if len(voxels) > limit:
                voxels = voxels[rng.choice(len(voxels), limit, replace=False)]
            found.append(voxels)
    return found
