"""Scores for whole volumes from a network that sees patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hssl.errors import ConfigError
from hssl.machine import bf16_pays

OVERLAP = 0.5
BATCH_SIZE = 16
SLAB = 32  # slices: of 512 x 512 pixels with 20 classes 700 MB of scores
_SIGMA = 1 / 8  # of the Gaussian that weights a tile, as a share of its side; nnU-Net's and MONAI's


@torch.inference_mode()
def predict_volume(
    network: nn.Module,
    image: NDArray[np.floating],
    *,
    patch_size: int | tuple[int, int],
    overlap: float = OVERLAP,
    batch_size: int = BATCH_SIZE,
    amp: bool | None = None,
    mirror: tuple[bool, bool] = (False, False),
) -> NDArray[np.float32]:
    """Scores every voxel of a volume, slice by slice, in overlapping tiles.

    Tiles are spread evenly, as close as `overlap` requires, and averaged with Gaussian weights, in float32.
    An image smaller than a tile is padded with 0 on all sides, as in training.

    Args:
        network: Maps ``[B, 1, rows, columns]`` to scores ``[B, classes, rows, columns]``.
        image: ``[slices, rows, columns]``, intensities in [0, 1].
        patch_size: Rows and columns of a tile, or one number for both.
        overlap: Share of a tile that neighbours share at least, in [0, 1).
        batch_size: Tiles in one call of the network.
        amp: Run the network in bfloat16; None where its device is faster so.
        mirror: Average over views mirrored along rows and along columns; for a network that was trained so.

    Returns:
        float32 ``[classes, slices, rows, columns]``.

    Raises:
        ConfigError: `patch_size`, `overlap` or `batch_size` is out of range.
    """
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    if min(height, width) < 1 or not 0 <= overlap < 1 or batch_size < 1:
        raise ConfigError(
            f"cannot predict with patch size {height} x {width}, overlap {overlap}, batch size {batch_size}",
            hint="sizes are at least 1, the overlap is below 1",
        )
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    amp = bf16_pays(device) if amp is None else amp
    volume = torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(device)
    rows, columns = volume.shape[1:]
    volume, top, left = _padded(volume, height, width)
    starts = product(_starts(volume.shape[1], height, overlap), _starts(volume.shape[2], width, overlap))
    tiles = [(slice(y, y + height), slice(x, x + width)) for y, x in starts]
    weight = torch.outer(_gaussian(height), _gaussian(width)).float().to(device)
    total = torch.zeros(volume.shape[1:], device=device)
    for y, x in tiles:
        total[y, x] += weight
    weights = [weight / total[y, x] for y, x in tiles]

    slices_at_once = max(1, batch_size // len(tiles))
    tiles_at_once = max(1, batch_size // slices_at_once)
    scores: Tensor | None = None
    for first in range(0, len(volume), slices_at_once):
        part = slice(first, first + slices_at_once)
        for start in range(0, len(tiles), tiles_at_once):
            group = tiles[start : start + tiles_at_once]
            patches = torch.cat([volume[part, y, x] for y, x in group])[:, None]
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                outputs = _mirrored(network, patches, mirror)
            if scores is None:
                scores = torch.zeros((outputs.shape[1], *volume.shape), device=device)
            for (y, x), share, output in zip(group, weights[start:], outputs.chunk(len(group)), strict=False):
                scores[:, part, y, x] += output.transpose(0, 1) * share
    if scores is None:
        raise ConfigError("an image without slices cannot be predicted", hint="give images of at least one slice")
    cropped = scores[:, :, top : top + rows, left : left + columns]
    return cropped.cpu().numpy()


def predict_slabs(
    network: nn.Module, image: NDArray[np.floating], *, slices: int = SLAB, **options: Any
) -> Iterator[NDArray[np.float32]]:
    """Scores a volume a few slices at a time, so that those of a large one with many classes need not fit the memory.

    Args:
        network: As for :func:`predict_volume`.
        image: As for :func:`predict_volume`.
        slices: How many at a time.
        options: The other arguments of :func:`predict_volume`.

    Yields:
        What :func:`predict_volume` gives of these slices, in order.
    """
    for start in range(0, max(1, len(image)), slices):
        yield predict_volume(network, image[start : start + slices], **options)


def _mirrored(network: nn.Module, patches: Tensor, mirror: tuple[bool, bool]) -> Tensor:
    """Scores of patches, or their mean over mirrored views."""
    axes = [axis for axis, wanted in zip((-2, -1), mirror, strict=True) if wanted]
    views = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    scores = [network(patches.flip(view)).flip(view) for view in views]
    return torch.stack(scores).mean(0) if len(scores) > 1 else scores[0]


def _padded(volume: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    """`volume` with at least so many rows and columns, and the rows and columns put before it."""
    rows, columns = max(0, height - volume.shape[1]), max(0, width - volume.shape[2])
    top, left = rows // 2, columns // 2
    return F.pad(volume, (left, columns - left, top, rows - top)), top, left


def _starts(size: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the fewest tiles that cover `size` pixels with at least this overlap, spread evenly."""
    free = size - tile
    steps = math.ceil(free / max(1.0, tile * (1 - overlap)))
    return [round(free * step / steps) for step in range(steps + 1)] if steps else [0]


def _gaussian(size: int) -> Tensor:
    """Weights along the side of a tile, float64; never 0."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-0.5 * (offset / (_SIGMA * size)) ** 2)
