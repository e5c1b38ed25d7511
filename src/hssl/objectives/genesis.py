"""Models Genesis (Zhou et al., *Models Genesis*, MICCAI 2019; Medical Image Analysis 2021).

The image is disturbed (intensities along a random Bézier curve, pixels shuffled within small blocks, rectangles painted
over or everything but rectangles painted over) and must be restored, by the mean squared error over all pixels.
Probabilities and sizes are the published ones.

Departures: slices instead of cubes, and every draw made per image in one batch. The small blocks tile the image, and a
pixel is replaced by a random one of its block, in place of thousands of overlapping blocks permuted one by one. The
output is linear, not a sigmoid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl.config import StageConfig
from hssl.networks import PixelHead, UNet
from hssl.objectives.base import Domains, Objective, PretrainBatch

NONLINEAR, SHUFFLED, PAINTED, OUTSIDE = 0.9, 0.5, 0.9, 0.8
"""Probabilities: of each disturbance, and of painting to be painting outside."""
RECTANGLES, ANOTHER = 5, 0.95
"""Most rectangles of an image, and the probability of each to be there if the one before is."""


class Genesis(Objective):
    """Restoration at full resolution, through encoder and decoder."""

    def __init__(self, network: UNet, domains: Domains, options: StageConfig) -> None:
        super().__init__(network, domains, options)
        self.head = PixelHead(network.channels[0], 1, hidden=network.channels[0])

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``restoration``."""
        clean = torch.cat((batch.first.clean, batch.second.clean))
        features = network.decode(network.encode(disturb(clean)))
        restored = self.head(features[-1]).float()
        return {"restoration": F.mse_loss(restored, clean)}


def disturb(images: Tensor) -> Tensor:
    """Disturbs images ``[B, 1, P, P]`` in [0, 1], each in its own way; the result has the same shape and range."""
    images = torch.where(_happens(images, SHUFFLED), shuffle_locally(images), images)
    images = torch.where(_happens(images, NONLINEAR), bend_intensities(images), images)
    return torch.where(_happens(images, PAINTED), paint(images), images)


def bend_intensities(images: Tensor, *, samples: int = 256) -> Tensor:
    """Maps intensities along a random cubic Bézier curve between (0, 0) and (1, 1), or (0, 1) and (1, 0)."""
    count, device = len(images), images.device
    t = torch.linspace(0, 1, samples, device=device)
    near, far = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)
    control = torch.rand((4, count, 1), device=device)
    # With control points in [0, 1] the curve is a function of x; falling ones invert the image.
    x = control[0] * near + control[1] * far + t**3
    y = control[2] * near + control[3] * far + t**3
    y = torch.where(_happens(y, 0.5), y.flip(1), y)
    values = images.flatten(1)
    right = torch.searchsorted(x, values).clamp(1, samples - 1)
    (x0, y0), (x1, y1) = ((x.gather(1, index), y.gather(1, index)) for index in (right - 1, right))
    share = ((values - x0) / (x1 - x0).clamp(min=1e-6)).clamp(0, 1)
    return torch.lerp(y0, y1, share).view_as(images)


def shuffle_locally(images: Tensor) -> Tensor:
    """Replaces each pixel by a random one of its block; each image has its own block size, to a tenth of its side."""
    count, size, device = len(images), images.shape[-1], images.device
    side = torch.randint(2, max(size // 10, 2) + 1, (count, 1, 1), device=device)

    def drawn(index: Tensor) -> Tensor:
        step = (torch.rand((count, size, size), device=device) * side).long()
        return (index // side * side + step).clamp(max=size - 1)

    index = torch.arange(size, device=device)
    source = drawn(index[:, None]) * size + drawn(index)
    return images.flatten(1).gather(1, source.flatten(1)).view_as(images)


def paint(images: Tensor) -> Tensor:
    """Fills up to five rectangles with noise (in-painting), or everything but them (out-painting)."""
    outside = _happens(images, OUTSIDE)
    small, large = rectangles(images, 1 / 6, 1 / 3), rectangles(images, 3 / 7, 4 / 7)
    return torch.where(torch.where(outside, ~large, small), torch.rand_like(images), images)


def rectangles(images: Tensor, low: float, high: float) -> Tensor:
    """The union of up to five rectangles per image, whose sides are shares `low` to `high` of it: bool, same shape."""
    count, size, device = len(images), images.shape[-1], images.device
    index = torch.arange(size, device=device)
    side = (low + (high - low) * torch.rand((2, count, RECTANGLES, 1), device=device)) * size
    start = torch.rand(side.shape, device=device) * (size - side)
    rows, columns = ((index >= start) & (index < start + side)).unbind()
    there = (torch.rand((count, RECTANGLES), device=device) < ANOTHER).cumprod(1).bool()
    # The first is always there, so that painting paints, and painting outside leaves something.
    there[:, 0] = True
    each = rows[..., :, None] & columns[..., None, :] & there[..., None, None]
    return each.any(1, keepdim=True)


def _happens(like: Tensor, probability: float) -> Tensor:
    return torch.rand((len(like), *(1,) * (like.ndim - 1)), device=like.device) < probability
