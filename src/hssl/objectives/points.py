"""Points of a view that are worth comparing: those within the slice."""

from __future__ import annotations

import torch
from torch import Tensor

from hssl.views import View

CANDIDATES = 4
"""Points drawn for each one that is wanted: a small slice fills a small part of a view."""


def draw_points(view: View, frame: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draws points of each view, those first that lie within the window and the slice.

    Args:
        view: The view.
        frame: Where the window lies in its slice, ``[B, 2, 2]``, as in :class:`hssl.objectives.PretrainBatch`.
        count: Points of each view.

    Returns:
        Points, x before y, in [-1, 1], float32 ``[B, count, 2]``; and which lie within the slice, bool ``[B, count]``.
        Some lie beyond it only where too few of the candidates do not.
    """
    candidates = torch.rand((len(frame), CANDIDATES * count, 2), device=frame.device) * 2 - 1
    in_window = candidates @ view.theta[:, :, :2].mT + view.theta[:, None, :, 2]
    in_slice = frame[:, None, :, 0] + frame[:, None, :, 1] * in_window
    real = ((in_window.abs() < 1) & (in_slice > 0) & (in_slice < 1)).all(-1)
    chosen = real.float().topk(count, dim=1).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), real.gather(1, chosen)
