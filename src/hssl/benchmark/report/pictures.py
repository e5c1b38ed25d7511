"""What the report shows of images and networks; needs the store and the run folders beside the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hssl.benchmark.run.ledger import Row
from hssl.benchmark.run.worker import OVERLAYS
from hssl.benchmark.statistics import case_values
from hssl.errors import RunError, StoreError, name_bad_file
from hssl.features import distances, pooled_features, spread_slices, standardised, to_plane
from hssl.networks import UNet, build_network
from hssl.runs import load_unet
from hssl.store import CaseRecord, Store, widest_slice

SLICES = 40
SIDE = 128
FEWEST = 4
"""Pictures that a map needs."""


@dataclass(frozen=True)
class Overlay:
    """One slice of a case, and what was found there.

    Attributes:
        place: ``worst``, ``median`` or ``best``.
        case: Its id.
        image: float32 ``[rows, columns]`` in [0, 1].
        truth: uint8 ``[rows, columns]``, label values.
        masks: The same from each arm.
        dice: Of each arm, over the whole case, in [0, 1].
        aspect: Height of a pixel over its width.
        labels: Name of each label value of the task.
    """

    place: str
    case: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    masks: dict[str, NDArray[np.uint8]]
    dice: dict[str, float]
    aspect: float
    labels: dict[int, str]


@dataclass(frozen=True)
class Features:
    """Slices on a map.

    Attributes:
        points: float ``[slices, 2]``.
        tasks: Task of each slice.
        purity: Share of slices whose nearest neighbour among other subjects, in the full feature space, is of their
            task.
    """

    points: NDArray[np.float64]
    tasks: list[str]
    purity: float


def find_overlays(bench: Path, store: Store, rows: Sequence[Row], arms: Sequence[str]) -> dict[str, list[Overlay]]:
    """The worst, the median and the best case of each task by the Dice of the last of `arms`.

    Args:
        bench: Folder of the benchmark.
        store: The data that it was run on.
        rows: Lines of the ledger, with one share of the labels.
        arms: Whose masks to show; a task where they lack a common seed, or their masks are gone, is left out.
    """
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        runs: dict[int, dict[str, Row]] = {}
        for row in rows:
            if row["task"] == task and row["arm"] in arms and (_folder(bench, row) / OVERLAYS).exists():
                runs.setdefault(row["seed"], {})[row["arm"]] = row
        complete = [runs[seed] for seed in sorted(runs) if len(runs[seed]) == len(arms)]
        if complete and task in store.tasks:
            found[task] = _overlays(bench, store, complete[0], arms)
    return {task: overlays for task, overlays in found.items() if overlays}


def _overlays(bench: Path, store: Store, runs: Mapping[str, Row], arms: Sequence[str]) -> list[Overlay]:
    dice = {arm: case_values(runs[arm]) for arm in arms}
    ranked = sorted(dice[arms[-1]], key=lambda case: dice[arms[-1]][case])
    last = len(ranked) - 1
    # The same case does not come twice, where there are fewer than three.
    chosen = {ranked[at]: place for place, at in (("median", last // 2), ("best", last), ("worst", 0)) if ranked}
    records = {case.id: case for case in store.cases(runs[arms[-1]]["task"])}
    masks = {arm: _masks(_folder(bench, runs[arm]) / OVERLAYS) for arm in arms}
    return [
        _overlay(
            chosen[case], store, records[case], {a: masks[a][case] for a in arms}, {a: dice[a][case] for a in arms}
        )
        for case in ranked
        if case in chosen and case in records and all(case in masks[arm] and case in dice[arm] for arm in arms)
    ]


def _masks(path: Path) -> dict[str, NDArray[np.uint8]]:
    with name_bad_file(path, RunError):
        return dict(np.load(path, allow_pickle=False))


def _overlay(
    place: str, store: Store, case: CaseRecord, masks: dict[str, NDArray[np.uint8]], dice: dict[str, float]
) -> Overlay:
    number = widest_slice(store.label(case))
    truth = np.asarray(store.label(case)[number])
    window = _window(np.any([truth, *masks.values()], axis=0))
    task = store.tasks[case.task]
    _, height, width = task.preprocessing.stored_spacing(case.geometry)
    return Overlay(
        place,
        case.id,
        np.asarray(store.image(case)[number], np.float32)[window],
        truth[window],
        {arm: mask[window] for arm, mask in masks.items()},
        dice,
        height / width,
        task.labels,
    )


def _window(shown: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A square around all that is marked, with room around it, as far as the image goes."""
    if not shown.any():
        return slice(None), slice(None)
    ends = [np.flatnonzero(shown.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    side = max(64, int(1.6 * max(last - first for first, last in ends)))
    starts = [
        max(0, min((first + last - side) // 2, size - side))
        for (first, last), size in zip(ends, shown.shape, strict=True)
    ]
    return slice(int(starts[0]), int(starts[0]) + side), slice(int(starts[1]), int(starts[1]) + side)


def map_features(run: Path, store: Store) -> tuple[Features, Features]:
    """Maps validation slices by the deepest features of a pre-trained network, before and after its training.

    Features are pooled on a 3 x 3 grid, standardised, brought to 30 dimensions by PCA and to two by t-SNE.

    Args:
        run: The pre-training.
        store: The data that it was run on.

    Raises:
        RunError: The run is not complete, or its weights are gone.
        StoreError: There are too few slices to map.
    """
    after, opened = load_unet(run)
    torch.manual_seed(opened.config.seed)
    before = build_network(opened.info.network).eval()
    cases = {
        task: store.cases(task, part="val") or store.cases(task, part="test") for task in opened.info.subjects_seen
    }
    chosen = [each for task in opened.info.subjects_seen for each in spread_slices(cases[task], SLICES)]
    if len(chosen) < FEWEST:
        raise StoreError(
            f"a map needs {FEWEST} validation slices, here are {len(chosen)}",
            path=store.path,
            hint="aggregate more subjects, or give validation a larger share",
        )
    slices = [store.image_slice(case, number) for case, number in chosen]
    tasks = [case.task for case, _ in chosen]
    subjects = [f"{case.task}/{case.subject}" for case, _ in chosen]
    return _mapped(before, slices, tasks, subjects), _mapped(after, slices, tasks, subjects)


def _mapped(network: UNet, slices: list[NDArray[np.float16]], tasks: list[str], subjects: list[str]) -> Features:
    features = standardised(pooled_features(network, slices, side=SIDE))
    return Features(to_plane(features), tasks, _purity(distances(features, subjects), np.array(tasks)))


def _purity(distance: NDArray[np.float64], tasks: NDArray[Any]) -> float:
    same = np.isfinite(distance) & (tasks[:, None] == tasks[None])
    fair = same.any(axis=1)  # a task with one subject cannot find its like
    return float((tasks[distance.argmin(axis=1)] == tasks)[fair].mean()) if fair.any() else 0.0


def _folder(bench: Path, row: Row) -> Path:
    return bench / "runs" / str(row["config_hash"])
