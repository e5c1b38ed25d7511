"""The order in which to draw: subjects, or single slices, that stand for what nobody has drawn yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.progress import track

from hssl.config import split_slices
from hssl.errors import StoreError
from hssl.features import slice_features, spread_slices
from hssl.networks import UNet
from hssl.prediction.predictor import Predictor
from hssl.store import CaseRecord, Store
from hssl.suggestion.selection import Selection, distances_between, select, stands_for
from hssl.text import duration
from hssl.training.data import FLAT, drawn_slices

PLACES = 8
"""Slices that describe a case, evenly spread."""
MOST_SLICES = 1500
"""Slices of a task that are compared with each other; of more, so many are taken, evenly spread."""
_TIMED = 64  # slices after which the cost is known
_LONG = 60.0  # seconds from which on the cost is told
Labels = str | int | Sequence[str]
logger = logging.getLogger(__name__)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Suggestion(_Entry):
    """A subject, or a slice, to draw.

    Attributes:
        rank: 1 is the first to draw.
        subject: The subject.
        cases: Its cases; for a slice the one that it is of.
        slice: Number of the slice in the store, from 0; for a subject the one that a picture shows, of the first case.
        stands_for: Training subjects, or slices, that are nearer to it than to all others that are drawn or suggested.
        uncertainty: Mean entropy of the class probabilities, 0 (sure) to 1; None without a fine-tuned run.
    """

    rank: int
    subject: str
    cases: list[str]
    slice: int
    stands_for: int
    uncertainty: float | None


class Suggestions(_Entry):
    """What to draw next in a task.

    Attributes:
        task: The task.
        slices: Whether single slices are suggested, and not subjects.
        by: How they were chosen: ``k-medoids`` or ``k-center``.
        features: What was compared: the run folder, or ``brightness``.
        drawn: Subjects that count as drawn.
        compared: Subjects, or slices, that were compared, the drawn ones among them.
        items: The first to draw first.
    """

    task: str
    slices: bool
    by: Selection
    features: str
    drawn: list[str]
    compared: int
    items: list[Suggestion]

    def rows(self) -> list[dict[str, str | int | float | None]]:
        """The suggestions, ready to print; slices are counted from 1."""
        return [
            {
                "rank": item.rank,
                "subject": item.subject,
                "case": ", ".join(item.cases),
                **({"slice": item.slice + 1} if self.slices else {}),
                "stands for": f"{item.stands_for} of {self.compared}",
                **({} if item.uncertainty is None else {"uncertainty": item.uncertainty}),
            }
            for item in self.items
        ]


class _Unit(NamedTuple):
    """What can be drawn: a subject with its cases, or a slice of one case."""

    subject: str
    cases: tuple[CaseRecord, ...]
    slice: int | None = None


def rank_undrawn(
    store: Store,
    task: str,
    count: int,
    *,
    slices: bool = False,
    network: UNet | None = None,
    name: str = "brightness",
    predictor: Predictor | None = None,
    by: Selection = "k-medoids",
    labels: Labels | None = None,
    seed: int = 0,
) -> Suggestions:
    """Ranks what is not drawn; arguments and errors as in :func:`hssl.suggest`.

    Args:
        store: The data.
        task: The task.
        count: How many to suggest.
        slices: Single slices, and not subjects.
        network: Gives the features; None compares brightness.
        name: What the features are called.
        predictor: Says how uncertain it is; None counts all the same.
        by: How they are chosen.
        labels: Who counts as drawn.
        seed: Of the label budget.
    """
    drawn, each = _drawn(store, task, labels, seed)
    units, taken = (_slices if slices else _subjects)(store, task, drawn, each)
    candidates = [number for number in range(len(units)) if number not in taken]
    if slices:
        candidates = [number for number in candidates if _shows(store, units[number])]
    if not candidates:
        raise StoreError(
            f"task '{task}' has a mask of every training subject: nothing is left to draw",
            path=store.path,
            hint="choose another task",
        )
    distances = distances_between(_features(store, units, network))
    unsure = _uncertainty(store, units, candidates, predictor) if predictor is not None else None
    need = None
    if unsure is not None:
        need = np.array([float(unsure[number].mean()) if number in unsure else 0.0 for number in range(len(units))])
    chosen = select(distances, taken, candidates, count, by=by, need=need)
    counts = stands_for(distances, [*taken, *chosen])[len(taken) :]
    items = [
        Suggestion(
            rank=rank,
            subject=units[number].subject,
            cases=[case.id for case in units[number].cases],
            slice=_shown_slice(units[number], None if unsure is None else unsure[number]),
            stands_for=stands,
            uncertainty=None if need is None else float(need[number]),
        )
        for rank, (number, stands) in enumerate(zip(chosen, counts, strict=True), start=1)
    ]
    return Suggestions(task=task, slices=slices, by=by, features=name, drawn=drawn, compared=len(units), items=items)


def _drawn(store: Store, task: str, labels: Labels | None, seed: int) -> tuple[list[str], int | None]:
    """Subjects that count as drawn, and how many slices of each of their cases; None is all that have been drawn."""
    if labels is None:
        return sorted({case.subject for case in store.cases(task, part="train", labelled=True)}), None
    subjects, each = split_slices(labels)
    return store.labelled(task, subjects, seed), each


def _subjects(store: Store, task: str, drawn: Sequence[str], each: int | None) -> tuple[list[_Unit], list[int]]:
    """The training subjects, and the numbers of the drawn ones."""
    cases: dict[str, list[CaseRecord]] = {}
    for case in store.cases(task, part="train"):
        cases.setdefault(case.subject, []).append(case)
    units = [_Unit(subject, tuple(own)) for subject, own in cases.items()]
    return units, [number for number, unit in enumerate(units) if unit.subject in drawn]


def _slices(store: Store, task: str, drawn: Sequence[str], each: int | None) -> tuple[list[_Unit], list[int]]:
    """Slices of the training subjects, and the numbers of the drawn ones."""
    info, cases = store.tasks[task], store.cases(task, part="train")
    compared = {(case.id, number): case for case, number in spread_slices(cases, MOST_SLICES)}
    done: set[tuple[str, int]] = set()
    for case in cases:
        if case.subject in drawn and case.has_label:
            own = drawn_slices(store.label(case), info, each).tolist()
            done |= {(case.id, number) for number in own}
            if len(own) < case.shape[0]:  # few slices of a case are drawn: each of them counts
                compared |= {(case.id, number): case for number in own}
    order = {case.id: place for place, case in enumerate(cases)}
    keys = sorted(compared, key=lambda key: (order[key[0]], key[1]))
    units = [_Unit(compared[key].subject, (compared[key],), key[1]) for key in keys]
    return units, [number for number, key in enumerate(keys) if key in done]


def _shows(store: Store, unit: _Unit) -> bool:
    """Whether there is anything on a slice."""
    return unit.slice is None or float(store.image_slice(unit.cases[0], unit.slice).astype(np.float32).std()) >= FLAT


def _places(case: CaseRecord) -> list[int]:
    """The slices that describe a case, the same number for every case."""
    return [int(number) for number in np.linspace(0, case.shape[0] - 1, PLACES).round()]


def _features(store: Store, units: Sequence[_Unit], network: UNet | None) -> NDArray[np.float64]:
    """Features of each unit; those of a subject are of slices at the same places, in the mean of its cases."""
    slices = [
        (case, number)
        for unit in units
        for case in unit.cases
        for number in (_places(case) if unit.slice is None else [unit.slice])
    ]
    began = time.monotonic()
    first = slice_features(store, slices[:_TIMED], network)
    if (total := (time.monotonic() - began) * len(slices) / len(first)) > _LONG:
        logger.info("%d slices are compared: about %s", len(slices), duration(total))
    rest = slices[_TIMED:]
    rows = iter(np.concatenate((first, slice_features(store, rest, network))) if rest else first)
    found = []
    for unit in units:
        own = [np.concatenate([next(rows) for _ in range(1 if unit.slice is not None else PLACES)]) for _ in unit.cases]
        found.append(np.mean(own, axis=0))
    return np.array(found)


def _uncertainty(
    store: Store, units: Sequence[_Unit], candidates: Sequence[int], predictor: Predictor
) -> dict[int, NDArray[np.float32]]:
    """Mean entropy of the slices of each candidate, ``[slices]``; of a subject those of its first case come first."""
    cases = {case.id: case for number in candidates for case in units[number].cases}
    entropies: dict[str, NDArray[np.float32]] = {}
    began = time.monotonic()
    images = ((store.image(case), None) for case in cases.values())
    for done, (case, found) in enumerate(
        zip(track(cases.values(), "predict"), predictor.predictions(images, probabilities=True), strict=True), start=1
    ):
        uncertainty = found.uncertainty
        assert uncertainty is not None  # noqa: S101
        entropies[case.id] = uncertainty.mean(axis=(1, 2))
        if done == 1 and (total := (time.monotonic() - began) * len(cases)) > _LONG:
            logger.info("%d cases are predicted to see what is uncertain: about %s", len(cases), duration(total))
    found_by_unit = {}
    for number in candidates:
        unit = units[number]
        own = [entropies[case.id] for case in unit.cases]
        found_by_unit[number] = np.concatenate(own) if unit.slice is None else own[0][[unit.slice]]
    return found_by_unit


def _shown_slice(unit: _Unit, unsure: NDArray[np.float32] | None) -> int:
    """The slice itself; of a subject the least certain one of its first case, or the middle one."""
    if unit.slice is not None:
        return unit.slice
    slices = unit.cases[0].shape[0]
    return slices // 2 if unsure is None else int(unsure[:slices].argmax())
