"""The curves of a training as a picture beside its figures: losses, and validation Dice where there is any."""

from __future__ import annotations

import logging
import time

from hssl.errors import HsslError
from hssl.files import replacing
from hssl.objectives import WATCH
from hssl.runs import Run

PICTURE = "progress.png"
VALIDATION = "validation_dice"
"""Name of the validation Dice in the metrics."""
PAUSE = 60.0
"""Seconds between two drawings of a running training."""
_NO_LOSS = {"learning_rate", VALIDATION}
logger = logging.getLogger(__name__)


class ProgressPicture:
    """Draws ``progress.png`` now and then. That it cannot be written never ends a training.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.drawn = time.monotonic()

    def update(self, *, last: bool) -> None:
        """Draws it again if the last time is long ago, and at the end."""
        if not last and time.monotonic() - self.drawn < PAUSE:
            return
        self.drawn = time.monotonic()
        try:
            draw_progress(self.run)
        except (OSError, HsslError) as error:
            logger.warning("%s cannot be drawn: %s", self.run.path / PICTURE, error)


def draw_progress(run: Run) -> None:
    """Writes ``progress.png``: the losses on a logarithmic scale, and below them the validation Dice.

    Raises:
        RunError: ``metrics.csv`` is damaged.
        OSError: The picture cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, so not before it is needed

    curves = run.metrics()
    losses = {name: curve for name, curve in curves.items() if name not in _NO_LOSS and not name.startswith(WATCH)}
    validated = curves.get(VALIDATION, [])
    figure = Figure(figsize=(8, 6 if validated else 4), layout="constrained")
    axes = figure.subplots(2 if validated else 1, sharex=True, squeeze=False)[:, 0]
    for name, curve in losses.items():
        width, marker = (2.0 if name == "loss" else 1.0), ("o" if len(curve) == 1 else "")
        axes[0].plot(*zip(*curve, strict=True), label=name, linewidth=width, marker=marker)
    axes[0].set(ylabel="loss", title=f"{run.path.name}: step {max((c[-1][0] for c in losses.values()), default=0)}")
    if any(value > 0 for curve in losses.values() for _, value in curve):
        axes[0].set_yscale("log")
    if losses:
        axes[0].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if validated:
        best = max(validated, key=lambda point: point[1])
        axes[1].plot(*zip(*validated, strict=True), marker="o", color="tab:green")
        axes[1].annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(0, 6), ha="center")
        axes[1].set(ylabel="validation Dice", ylim=(0, 1.08))
    axes[-1].set_xlabel("step")
    for each in axes:
        each.grid(alpha=0.3)
    with replacing(run.path / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
