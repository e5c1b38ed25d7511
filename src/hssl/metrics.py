"""Dice, HD95 and surface Dice of two label maps, distances in mm; and the Dice loss that training minimises.

The definitions are MONAI's (``compute_hausdorff_distance(percentile=95)`` and ``compute_surface_dice``), and
the tests hold the values equal to its. What differs is the cost: MONAI finds the surfaces and their distances
once for each metric and label in float32; here they are found once, in the label's bounding box, in float64,
with scipy. The surface of a label is its voxels with a face neighbour outside it; beyond the image counts as
outside.

A label that is in neither map has no score (None) and is left out of every mean. A label that is in one of
them only has Dice 0, surface Dice 0, and for HD95, which has no largest value, the diagonal of the image, as
in the BraTS challenges: leaving it out would reward a network for missing a structure altogether.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import KDTree
from torch import Tensor

from hssl.distributed import gather

SURFACE_TOLERANCE_MM = 2.0
# A distance that equals the tolerance but for the rounding of float32 headers is within it.
_ROUNDING_MM = 1e-6

IGNORE = 255
"""Channel of a pixel that is not labelled: no loss and no score counts it."""
_SMOOTH = 1e-5  # MONAI's, in numerator and denominator

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


class LabelScore(NamedTuple):
    """How well one label of one case was found.

    Attributes:
        truth_voxels: Voxels with this label in the truth.
        predicted_voxels: Voxels with this label in the prediction.
        dice: Overlap in [0, 1]; None where the label is in neither map.
        hd95: The larger of the two directed 95th percentiles of surface distance, in mm; or None.
        surface_dice: Share in [0, 1] of both surfaces within the tolerance of the other; or None.
    """

    truth_voxels: int
    predicted_voxels: int
    dice: float | None
    hd95: float | None
    surface_dice: float | None


def score_labels(
    truth: NDArray[np.integer[Any]],
    predicted: NDArray[np.integer[Any]],
    spacing: Sequence[float],
    labels: Iterable[int],
    *,
    tolerance: float = SURFACE_TOLERANCE_MM,
) -> dict[int, LabelScore]:
    """Scores every label of one case.

    Args:
        truth: Label map ``[x, y, z]`` or ``[rows, columns]``, values of 0 and above. Axes with a single voxel
            are dropped: a slice is scored as a plane, as its voxels would otherwise all be surface.
        predicted: Label map of the same shape.
        spacing: Voxel size in mm along each axis.
        labels: The labels to score, each above 0.
        tolerance: Distance in mm up to which a surface counts as found (surface Dice).

    Raises:
        ValueError: The shapes differ, or `spacing` has not one value for each axis.
    """
    if truth.shape != predicted.shape or truth.ndim != len(spacing):
        raise ValueError(f"truth {truth.shape}, prediction {predicted.shape} and spacing {tuple(spacing)} do not fit")
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    extended = [axis for axis, size in enumerate(truth.shape) if size > 1] or [0]
    flat = tuple(slice(None) if axis in extended else 0 for axis in range(truth.ndim))
    truth, predicted = truth[flat], predicted[flat]
    millimetres = np.asarray(spacing, dtype=np.float64)[extended]

    boxes = dict(enumerate(zip_longest(find_objects(truth), find_objects(predicted)), start=1))
    scores = {}
    for label in labels:
        box = _joined(*boxes.get(label, (None, None)))
        if box is None:
            scores[label] = LabelScore(0, 0, None, None, None)
            continue
        masks = truth[box] == label, predicted[box] == label
        scores[label] = _score(*masks, millimetres, tolerance, diagonal)
    return scores


def dice(truth: Mask, predicted: Mask) -> float:
    """Overlap of two masks of the same shape, 2 |A and B| / (|A| + |B|), in [0, 1]; NaN where both are empty."""
    size = np.count_nonzero(truth) + np.count_nonzero(predicted)
    return 2 * np.count_nonzero(truth & predicted) / size if size else math.nan


def dice_by_label(
    truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], labels: Iterable[int]
) -> list[float]:
    """:func:`dice` of each label of two label maps of the same shape."""
    return [dice(truth == label, predicted == label) for label in labels]


def dice_ce_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Soft Dice loss of the foreground classes plus cross-entropy, as nnU-Net trains with.

    Under a process group the pixels of all ranks count, and every rank has the loss of the whole batch; its gradient,
    averaged over ranks as DDP does, is that of one process with all of them (:func:`hssl.distributed.gather`).

    Without `weight` and ignored pixels this is MONAI's ``DiceCELoss(include_background=False, to_onehot_y=True,
    softmax=True, batch=True)``: Dice is taken over the whole batch, class by class, and then averaged.

    Args:
        logits: Scores, float32 ``[B, classes, ...]``.
        target: Class of each pixel, int64 ``[B, ...]``; :data:`IGNORE` counts nothing.
        weight: Weight of each pixel, float32 ``[B, ...]`` in [0, 1]; None is 1.

    Returns:
        Scalar, at least 0; 0 where no pixel counts.
    """
    known = target != IGNORE
    target = target.masked_fill(~known, 0)
    weight = known.to(logits.dtype) if weight is None else weight * known
    entropy = F.cross_entropy(logits, target, reduction="none")
    over = [0, *range(2, logits.ndim)]
    probability = logits.softmax(1)
    truth = torch.zeros_like(probability).scatter_(1, target[:, None], weight[:, None])
    shared, size = (probability * truth).sum(over), (probability * weight[:, None] + truth).sum(over)
    wrong, pixels = (entropy * weight).sum(), weight.sum()
    shared, size, wrong, pixels = (gather(each[None]).sum(0) for each in (shared, size, wrong, pixels))
    soft_dice = (2 * shared + _SMOOTH) / (size + _SMOOTH)
    return (1 - soft_dice[1:]).mean() + wrong / pixels.clamp(min=1e-6)


def _joined(first: Box | None, second: Box | None) -> Box | None:
    """The smallest box around two boxes."""
    if first is None or second is None:
        return first or second
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _score(truth: Mask, predicted: Mask, spacing: NDArray[np.float64], tolerance: float, diagonal: float) -> LabelScore:
    truth_voxels, predicted_voxels = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
    if not (truth_voxels and predicted_voxels):
        return LabelScore(truth_voxels, predicted_voxels, 0.0, diagonal, 0.0)
    truth_surface, predicted_surface = _surface(truth), _surface(predicted)
    there = _distances(truth_surface, predicted_surface, spacing)
    back = _distances(predicted_surface, truth_surface, spacing)
    limit = tolerance + _ROUNDING_MM
    near = np.count_nonzero(there <= limit) + np.count_nonzero(back <= limit)
    return LabelScore(
        truth_voxels,
        predicted_voxels,
        dice=dice(truth, predicted),
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        surface_dice=near / (len(there) + len(back)),
    )


def _surface(mask: Mask) -> Mask:
    """The voxels of `mask` with a face neighbour outside it."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        # Views with this axis first: what is written to `moved` lands in `inside`.
        moved, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        moved[1:] &= whole[:-1]
        moved[:-1] &= whole[1:]
        moved[[0, -1]] = False
    return mask & ~inside


def _distances(start: Mask, end: Mask, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance in mm of each voxel of `start` to the nearest voxel of `end`, in no particular order."""
    apart = np.argwhere(start & ~end)
    distances = np.zeros(np.count_nonzero(start))  # voxels of both stay at 0
    if len(apart):
        distances[: len(apart)] = KDTree(np.argwhere(end) * spacing, leafsize=32).query(apart * spacing)[0]
    return distances
