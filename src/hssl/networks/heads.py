"""Small heads that the objectives put on the network; all are thrown away after pre-training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hssl.distributed import gather


class GridPoolHead(nn.Module):
    """Coarse-grid pooling and a two-layer perceptron.

    Instance normalisation fixes the mean of every channel, so pooling over the whole map would leave nothing
    of the image but the affine parameters. A coarse grid keeps where things are. What all images of the batch share
    is taken away by standardising, in place of the batch normalisation of SimCLR's head: without it all projections
    start as nearly the same vector, and a contrastive loss stays at chance for hundreds of steps.

    Args:
        channels: Channels of the feature map.
        outputs: Size of the output vector.
        hidden: Size of the layer between.
        grid: Cells per axis.
    """

    def __init__(self, channels: int, outputs: int, *, hidden: int = 256, grid: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.inner = nn.Linear(channels * grid * grid, hidden)
        self.outer = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, channels, H, W]`` to ``[B, outputs]``, over the batch of all ranks."""
        hidden = standardise(self.inner(standardise(grid_pool(features, self.grid))))
        outputs: Tensor = self.outer(F.relu(hidden))
        return outputs


def grid_pool(features: Tensor, grid: int) -> Tensor:
    """Mean of each cell of a `grid` x `grid` partition: ``[B, C, H, W]`` to ``[B, C * grid * grid]``."""
    return F.adaptive_avg_pool2d(features, grid).flatten(1)


def standardise(x: Tensor) -> Tensor:
    """Each column less its mean, over its standard deviation, both of the rows of all ranks: ``[B, D]``, float32.

    Batch normalisation without parameters or running figures, and the same for one process and for several.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        everyone = gather(x)
        mean = everyone.mean(0)
        variance = (everyone - mean).square().mean(0)
        return (x - mean) * (variance + 1e-5).rsqrt()


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


class PointHead(nn.Module):
    """One linear layer on each decoder stage, read at points and added up: a segmentation head, for some pixels alone.

    Args:
        channels: Channels of each decoder stage, coarse to fine.
        tasks: Tasks; each has weights of its own.
        outputs: Length of the result for each task.
    """

    def __init__(self, channels: Sequence[int], tasks: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(count, tasks * outputs) for count in channels)
        self.shape = (tasks, outputs)

    def forward(self, decoded: Sequence[Tensor], points: Tensor, task: Tensor) -> Tensor:
        """Reads features at points.

        Args:
            decoded: ``[B, C, H, W]`` of every decoder stage, coarse to fine.
            points: x before y, in [-1, 1], ``[B, N, 2]``.
            task: Task of each image, int64 ``[B]``.

        Returns:
            float32 ``[B, N, outputs]``.
        """
        results = []
        for features, layer in zip(decoded, cast("Iterable[nn.Linear]", self.layers), strict=True):
            weight = layer.weight.view(*self.shape, -1).index_select(0, task)
            bias = layer.bias.view(self.shape).index_select(0, task)
            results.append(at_points(features, points) @ weight.mT + bias[:, None])
        return torch.stack(results).sum(0)


def at_points(features: Tensor, points: Tensor) -> Tensor:
    """Features ``[B, C, H, W]`` at points ``[B, N, 2]`` in [-1, 1], as float32 ``[B, N, C]``.

    Within half a pixel of the border the border's own features count; with zeros beyond it they would fade there.
    """
    sampled = F.grid_sample(features.float(), points[:, None], padding_mode="border", align_corners=False)
    return sampled[:, :, 0].mT
