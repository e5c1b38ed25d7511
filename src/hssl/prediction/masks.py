"""Scores of a network to label values, on the store's grid or back on that of a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hssl.sources.base import Geometry
from hssl.store import TaskInfo


def label_mask(task: TaskInfo, scores: NDArray[np.float32], geometry: Geometry | None = None) -> NDArray[np.uint8]:
    """Label values from a network's scores.

    Args:
        task: The task, with labels and preprocessing.
        scores: ``[classes, slices, rows, columns]`` on the store's grid.
        geometry: The grid of a file; None stays on the store's.

    Returns:
        The mask, ``[slices, rows, columns]``, or of the shape of `geometry`.

    Raises:
        StoreError: The scores are not of the shape that images of this geometry have in the store.
    """
    return join_planes(task, [class_planes(task, scores, geometry)], geometry)


def class_planes(task: TaskInfo, scores: NDArray[np.float32], geometry: Geometry | None = None) -> NDArray[np.uint8]:
    """The part of :func:`label_mask` that needs scores, for all slices of an image or some of them.

    Returns:
        Channels, uint8 ``[slices, rows, columns]``, for :func:`join_planes`.
    """
    if geometry is None:
        return np.asarray(scores.argmax(axis=0), np.uint8)
    return task.preprocessing.restore_slices(scores, geometry)


def join_planes(
    task: TaskInfo, parts: Sequence[NDArray[np.uint8]], geometry: Geometry | None = None
) -> NDArray[np.uint8]:
    """The mask of :func:`label_mask`, from its :func:`class_planes` part by part, in order."""
    planes = np.concatenate(parts)
    channels = planes if geometry is None else task.preprocessing.restore_axes(planes, geometry)
    labels: NDArray[np.uint8] = task.values[channels]
    return labels


def restored_probabilities(
    task: TaskInfo, scores: NDArray[np.float32], geometry: Geometry | None = None
) -> NDArray[np.float16]:
    """Probability of each class from a network's scores, for all slices of an image or some of them.

    Args:
        task: The task, with preprocessing.
        scores: ``[classes, slices, rows, columns]`` on the store's grid.
        geometry: The grid of a file; None stays on the store's.

    Returns:
        float16 ``[classes, slices, rows, columns]``, in the file's pixels and the store's axes.
    """
    if geometry is not None:
        scores = task.preprocessing.restore_scores(scores, geometry)
    probabilities: NDArray[np.float16] = softmax(scores, axis=0).astype(np.float16)
    return probabilities
