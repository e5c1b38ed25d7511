"""What is known of shapes from the labelled masks alone, and islands that contradict it.

Where a label is a single connected component in every labelled mask, as an organ is, prediction keeps its largest
component. nnU-Net finds such a rule by cross-validation; with few masks there is nothing to validate on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.ndimage import label as connected_components

from hssl.runs import ComponentRule

SPECKS = 0.01
"""Share of the voxels of a label that may lie outside its largest component: annotators leave single voxels."""


def learn_rule(masks: Iterable[NDArray[np.integer[Any]]], labels: Sequence[int]) -> ComponentRule:
    """Learns from masks which labels are always one component.

    Args:
        masks: Label maps ``[slices, rows, columns]``; at least one label is somewhere in them.
        labels: Label values of the task. One that no mask shows has no rule.
    """
    single: dict[int, list[bool]] = {label: [] for label in labels}
    foreground: list[bool] = []
    for mask in masks:
        for label in labels:
            if (here := mask == label).any():
                single[label].append(_is_single(here))
        if (here := mask > 0).any():
            foreground.append(_is_single(here))
    whole = len(labels) > 1 and bool(foreground) and all(foreground)
    return ComponentRule(
        foreground=whole, labels=tuple(label for label in labels if single[label] and all(single[label]))
    )


def keep_largest(mask: NDArray[np.uint8], rule: ComponentRule) -> NDArray[np.uint8]:
    """Removes what contradicts the rule: all but the largest component of the foreground, and of each label.

    Args:
        mask: Label map ``[slices, rows, columns]`` or in the axes of a file; it is not changed.
        rule: The rule.

    Returns:
        The mask, same shape, with 0 where something was removed.
    """
    if not rule.foreground and not rule.labels:
        return mask
    cleaned = mask.copy()
    if rule.foreground:
        cleaned[_beside_largest(cleaned > 0)] = 0
    for label in rule.labels:
        cleaned[_beside_largest(cleaned == label)] = 0
    return cleaned


def _is_single(mask: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(_beside_largest(mask)) <= SPECKS * np.count_nonzero(mask))


def _beside_largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask outside its largest component."""
    boxes = find_objects(mask.astype(np.uint8))
    beside = np.zeros_like(mask)
    if boxes and boxes[0] is not None:
        inside = mask[boxes[0]]
        numbered, count = connected_components(inside, np.ones((3,) * mask.ndim))
        if count > 1:
            sizes = np.bincount(numbered.ravel())
            sizes[0] = 0
            beside[boxes[0]] = inside & (numbered != sizes.argmax())
    return beside
