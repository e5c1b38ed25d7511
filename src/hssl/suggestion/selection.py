"""Which points to take, so that those taken stand for all: greedy k-medoids and k-center on distances."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Selection = Literal["k-medoids", "k-center"]
Distances = NDArray[np.float64]


def distances_between(features: NDArray[np.float64]) -> Distances:
    """Distances between points whose features all count the same.

    Args:
        features: ``[points, features]``.

    Returns:
        float64 ``[points, points]``: the root mean square of the differences of standardised features.
    """
    deviation = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return np.asarray(cdist(standard, standard) / np.sqrt(max(features.shape[1], 1)))


def select(
    distances: Distances,
    taken: Collection[int],
    candidates: Sequence[int],
    count: int,
    *,
    by: Selection = "k-medoids",
    need: NDArray[np.float64] | None = None,
) -> list[int]:
    """Takes points one after the other; each is the best beside those that are taken already.

    ``k-medoids`` takes the point that brings all points nearest to a taken one, in the mean: the most typical of those
    that none taken stands for. ``k-center`` takes the point that is farthest from all taken ones; with none taken it
    begins as k-medoids does.

    Args:
        distances: ``[points, points]``.
        taken: Points that are taken already.
        candidates: Points that can be taken; of equals the first is.
        count: Points to take; all candidates where there are fewer.
        by: How they are chosen.
        need: Weight of each point, 0 or more; None counts all the same.

    Returns:
        The points in the order in which they are taken.
    """
    need = np.ones(len(distances)) if need is None else need
    left, picked = [point for point in candidates if point not in set(taken)], list(taken)
    nearest = distances[:, picked].min(axis=1) if picked else np.full(len(distances), np.inf)
    found: list[int] = []
    while left and len(found) < count:
        score: Callable[[int], float]
        if by == "k-center" and np.isfinite(nearest).all():
            weighted = need * nearest
            score = weighted.__getitem__
        else:
            costs = np.minimum(nearest[:, None], distances[:, left])
            gains = dict(zip(left, -(need @ costs), strict=True))
            score = gains.__getitem__
        best = max(left, key=score)  # the first of equals
        left.remove(best)
        found.append(best)
        nearest = np.minimum(nearest, distances[:, best])
    return found


def stands_for(distances: Distances, taken: Sequence[int]) -> list[int]:
    """How many points each taken one is the nearest to, itself among them."""
    nearest = distances[:, list(taken)].argmin(axis=1)
    return [int(np.count_nonzero(nearest == number)) for number in range(len(taken))]
