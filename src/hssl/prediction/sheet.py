"""A picture of some cases of an evaluation: image, true mask and predicted mask side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hssl.files import replacing
from hssl.palette import label_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = ("image", "truth", "prediction")


class DrawnCase(NamedTuple):
    """One slice of a case.

    Attributes:
        title: What stands above it.
        image: ``[rows, columns]``, intensities in [0, 1].
        truth: Label values, ``[rows, columns]``.
        mask: The predicted ones.
        aspect: Height of a pixel over its width.
    """

    title: str
    image: NDArray[np.floating]
    truth: NDArray[np.integer[Any]]
    mask: NDArray[np.integer[Any]]
    aspect: float


def draw_sheet(cases: Sequence[DrawnCase], labels: Mapping[int, str], output: Path) -> None:
    """Draws a row for each case and writes a PNG in one step.

    Args:
        cases: What to draw.
        labels: Name of each label value.
        output: The PNG.

    Raises:
        ConfigError: There is no folder for it.
    """
    from matplotlib.figure import Figure  # slow to import, and needed here only
    from matplotlib.patches import Patch

    colours = label_colours(labels)
    figure = Figure(figsize=(7.5, 2.7 * len(cases) + 0.4), dpi=120, layout="constrained")
    for row, case in zip(figure.subplots(len(cases), 3, squeeze=False), cases, strict=True):
        for axes, name in zip(row, _COLUMNS, strict=True):
            axes.imshow(case.image.astype(np.float32), "gray", vmin=0, vmax=1, aspect=case.aspect)
            axes.set_title(name, fontsize=8)
            axes.axis("off")
        row[0].set_title(case.title, fontsize=8)
        _draw_mask(row[1], case.truth, colours)
        _draw_mask(row[2], case.mask, colours)
    patches = [Patch(color=colours[value], label=name) for value, name in labels.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with replacing(output) as temporary:
        figure.savefig(temporary, format="png")


def _draw_mask(axes: Axes, mask: NDArray[np.integer[Any]], colours: Mapping[int, str]) -> None:
    from matplotlib.colors import to_rgba

    for value, colour in colours.items():
        if (mask == value).any():
            layer = np.zeros((*mask.shape, 4))
            layer[mask == value] = to_rgba(colour, 0.45)
            axes.imshow(layer, interpolation="nearest", aspect=axes.get_aspect())
