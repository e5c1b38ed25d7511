"""Dice, HD95 and surface Dice of every label of one real CT, beside MONAI; Dice alone beside nnU-Net; one thread.

The prediction is the true mask, warped by a smooth field of a few voxels. All start from two label maps in memory:
MONAI is handed what it asks for (one-hot maps), and making them counts, as it does not score label maps; nnU-Net's
evaluator reads from a reader that has both maps ready. Values are compared before anything is timed, and whoever
differs by more than 1e-3 is timed, but said to differ. Other libraries take part where they are installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from harness import DATA, Row, alternate, pin_threads, publish, row
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from hssl.metrics import SURFACE_TOLERANCE_MM, dice_by_label, score_labels

TASK, CASE = "Task04_Abdomen", 0
WARP_VOXELS, SMOOTH_VOXELS = 3.0, 8.0
TOLERANCE = 1e-3
GOAL = "fastest that is equal"
Map = NDArray[np.integer[Any]]
Values = NDArray[np.float64]
"""One row a label: Dice, HD95, surface Dice; or Dice alone."""
Scorer = Callable[[], Values]


def main() -> None:
    folder = DATA / TASK
    if not folder.exists():
        print(f"skipped: {folder} is absent, and phantoms say little about the cost of real surfaces")
        return
    pin_threads(1)
    truth, predicted, spacing, labels = maps(folder)
    shape = "x".join(map(str, truth.shape))
    part = f"Dice, HD95, surface Dice: {len(labels)} labels, {shape}, one thread"
    rows = compared(
        part, {"ours": ours(truth, predicted, spacing, labels), **full(truth, predicted, spacing, labels)}, 3
    )
    part = f"Dice alone: {len(labels)} labels, {shape}, one thread"
    publish(rows + compared(part, dice_only(truth, predicted, labels), 7))


def compared(part: str, scorers: Mapping[str, Scorer], rounds: int) -> list[Row]:
    """Checks the values of all against the first, then times them."""
    values = {name: scorer() for name, scorer in scorers.items()}
    names = {}
    for name, value in values.items():
        apart = float(np.nanmax(np.abs(value - values["ours"])))
        equal = apart <= TOLERANCE and np.array_equal(np.isnan(value), np.isnan(values["ours"]))
        names[name] = f"{name} (values equal)" if equal else f"{name} (values differ by up to {apart:.2g})"
        print(f"{part}: {names[name]}, largest difference {apart:.1e}")
    mean = np.nanmean(values["ours"], axis=0)
    print(f"{part}: means over labels {', '.join(f'{value:.3f}' for value in mean)}")
    seconds = alternate(scorers, rounds=rounds, warm_up=0)
    ours_ms = seconds["ours"] * 1e3
    return [
        row(part, ours_ms, seconds[name] * 1e3, names[name], "ms", GOAL, more=False) for name in list(scorers)[1:]
    ] or [row(part, ours_ms, None, "-", "ms", GOAL, more=False)]


def maps(folder: Path) -> tuple[Map, Map, Sequence[float], list[int]]:
    """The true mask of a case, a warped copy, the voxel size in mm, and the labels that are in both."""
    listed = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["training"][CASE]
    image = nib.load(folder / listed["label"])
    truth = np.asanyarray(image.dataobj).astype(np.uint8)
    rng = np.random.default_rng(0)
    place = np.indices(truth.shape, dtype=np.float32)
    for axis in place:
        field = gaussian_filter(rng.standard_normal(truth.shape, dtype=np.float32), SMOOTH_VOXELS)
        axis += field * (WARP_VOXELS / np.abs(field).max())
    predicted = map_coordinates(truth, place, order=0, mode="nearest")
    labels = [int(value) for value in np.unique(truth) if value and (predicted == value).any()]
    return truth, predicted, [float(size) for size in image.header.get_zooms()[:3]], labels


def ours(truth: Map, predicted: Map, spacing: Sequence[float], labels: list[int]) -> Scorer:
    """``score_labels``, as ``hssl evaluate`` calls it."""

    def score() -> Values:
        scores = score_labels(truth, predicted, spacing, labels).values()
        return np.array([(each.dice, each.hd95, each.surface_dice) for each in scores], np.float64)

    return score


def full(truth: Map, predicted: Map, spacing: Sequence[float], labels: list[int]) -> dict[str, Scorer]:
    """Every peer with all three metrics that is installed."""
    found: dict[str, Scorer] = {}
    for name, make in (("MONAI", monai), ("surface-distance", surface_distance), ("medpy, no surface Dice", medpy)):
        try:
            found[name] = make(truth, predicted, spacing, labels)
        except ImportError as error:
            print(f"left out {name}: {error}")
    return found


def monai(truth: Map, predicted: Map, spacing: Sequence[float], labels: list[int]) -> Scorer:
    """Its three functions, on one-hot maps of the labels present."""
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    def one_hot(label_map: Map) -> torch.Tensor:
        return torch.from_numpy(np.stack([label_map == label for label in (0, *labels)])[None]).float()

    def score() -> Values:
        both = one_hot(predicted), one_hot(truth)
        limits = [SURFACE_TOLERANCE_MM] * len(labels)
        dice = compute_dice(*both, include_background=False)
        hd95 = compute_hausdorff_distance(*both, percentile=95, spacing=list(spacing))
        surface = compute_surface_dice(*both, class_thresholds=limits, spacing=list(spacing))
        return np.stack([each[0].double().numpy() for each in (dice, hd95, surface)], axis=1)

    return score


def surface_distance(truth: Map, predicted: Map, spacing: Sequence[float], labels: list[int]) -> Scorer:
    """DeepMind's library; its surfaces are made of surface elements, so that values differ by definition."""
    import surface_distance as library

    def score() -> Values:
        rows = []
        for label in labels:
            first, second = truth == label, predicted == label
            distances = library.compute_surface_distances(first, second, spacing)
            rows.append(
                (
                    library.compute_dice_coefficient(first, second),
                    library.compute_robust_hausdorff(distances, 95),
                    library.compute_surface_dice_at_tolerance(distances, SURFACE_TOLERANCE_MM),
                )
            )
        return np.array(rows, np.float64)

    return score


def medpy(truth: Map, predicted: Map, spacing: Sequence[float], labels: list[int]) -> Scorer:
    """Dice and HD95 (of both directions pooled, so that values differ by definition)."""
    from medpy.metric.binary import dc, hd95

    def score() -> Values:
        pairs = [(predicted == label, truth == label) for label in labels]
        return np.array([(dc(*pair), hd95(*pair, voxelspacing=spacing), math.nan) for pair in pairs], np.float64)

    return score


def dice_only(truth: Map, predicted: Map, labels: list[int]) -> dict[str, Scorer]:
    """Ours, as fine-tuning validates with it, and nnU-Net's evaluator, which has no other metric."""
    found: dict[str, Scorer] = {"ours": lambda: np.array(dice_by_label(truth, predicted, labels))[:, None]}
    try:
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    except ImportError as error:
        print(f"left out nnU-Net: {error}")
        return found
    ready = {"truth": truth[None], "predicted": predicted[None]}

    class Ready:
        """A reader of its that has the maps in memory."""

        def read_seg(self, name: str) -> tuple[Map, dict[str, Any]]:
            return ready[name], {}

    def score() -> Values:
        metrics = compute_metrics("truth", "predicted", Ready(), labels)["metrics"]
        return np.array([metrics[label]["Dice"] for label in labels], np.float64)[:, None]

    found["nnU-Net's compute_metrics"] = score
    return found


if __name__ == "__main__":
    main()
