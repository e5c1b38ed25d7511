"""Small heads that the objectives put on the network; all are thrown away after pre-training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GridPoolHead(nn.Module):
    """Coarse-grid pooling and a two-layer perceptron.

    Instance normalisation fixes the mean of every channel, so pooling over the whole map would leave nothing
    of the image but the affine parameters. A coarse grid keeps where things are.

    Args:
        channels: Channels of the feature map.
        outputs: Size of the output vector.
        hidden: Size of the layer between.
        grid: Cells per axis.
    """

    def __init__(self, channels: int, outputs: int, *, hidden: int = 256, grid: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Linear(channels * grid * grid, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, channels, H, W]`` to ``[B, outputs]``."""
        outputs: Tensor = self.layers(grid_pool(features, self.grid))
        return outputs


def grid_pool(features: Tensor, grid: int) -> Tensor:
    """Mean of each cell of a `grid` x `grid` partition: ``[B, C, H, W]`` to ``[B, C * grid * grid]``."""
    return F.adaptive_avg_pool2d(features, grid).flatten(1)


class PixelHead(nn.Module):
    """Two 1x1 convolutions: one output vector per pixel.

    Args:
        channels: Channels of the feature map.
        outputs: Channels of the result.
        hidden: Channels of the layer between.
    """

    def __init__(self, channels: int, outputs: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LeakyReLU(inplace=True), nn.Conv2d(hidden, outputs, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, channels, H, W]`` to ``[B, outputs, H, W]``."""
        outputs: Tensor = self.layers(features)
        return outputs
