"""Colours that tell things apart, the same in every picture: contact sheets, reports, overlays."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

# Those that matplotlib draws with by default, then their light companions.
_STRONG = (
    *("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd"),
    *("#17becf", "#e377c2", "#bcbd22", "#8c564b", "#7f7f7f"),
)
_LIGHT = (
    *("#ff9896", "#aec7e8", "#98df8a", "#ffbb78", "#c5b0d5"),
    *("#9edae5", "#f7b6d2", "#dbdb8d", "#c49c94", "#c7c7c7"),
)


def distinct_colours(count: int) -> list[str]:
    """`count` colours as ``#rrggbb``; up to 20 are the first of one list, so that a smaller set is part of a larger."""
    listed = [*_STRONG, *_LIGHT]
    if count <= len(listed):
        return listed[:count]
    spread = (colorsys.hls_to_rgb(number / count, (0.4, 0.55, 0.7)[number % 3], 0.85) for number in range(count))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in spread]


def label_colours(labels: Iterable[int]) -> dict[int, str]:
    """The colour of each label value of a task, in the order of the values."""
    values = sorted(labels)
    return dict(zip(values, distinct_colours(len(values)), strict=True))
