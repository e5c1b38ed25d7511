"""Jigsaw (Noroozi and Favaro, *Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles*, ECCV 2016).

The image is cut into 3 x 3 tiles, which are shuffled by one of a fixed set of permutations far apart from each other.
Which one was it? As published, a margin of random width between tiles keeps edges from giving the answer away.

Departures: the shuffled tiles are seen as one image, not one at a time by a network that meets them in its head only,
so that the encoder works at the size that it is used at; the head reads one grid cell per tile. Each tile gets a
contrast and brightness of its own, in place of its own normalisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from hssl.config import StageConfig
from hssl.networks import GridPoolHead, UNet
from hssl.objectives.base import Domains, Objective, PretrainBatch

TILES = 3
SHOWN = 0.85
"""Share of a tile's side that is shown; the rest is the margin."""


class JigsawOptions(StageConfig):
    """Details of the puzzle.

    Attributes:
        permutations: How many there are to tell apart, 2 to 500.
    """

    permutations: int = Field(100, ge=2, le=500)


class Jigsaw(Objective):
    """Cross-entropy over permutations, on the deepest stage of the encoder; the decoder is not trained."""

    Options = JigsawOptions

    def __init__(self, network: UNet, domains: Domains, options: JigsawOptions) -> None:
        super().__init__(network, domains, options)
        self.permutations: Tensor
        self.register_buffer("permutations", distant_permutations(options.permutations))
        self.head = GridPoolHead(network.channels[-1], options.permutations, grid=TILES)

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``jigsaw``, and ``watch/accuracy`` (0 to 1)."""
        images = torch.cat((batch.first.clean, batch.second.clean))
        drawn = torch.randint(len(self.permutations), (len(images),), device=images.device)
        logits = self.head(network.encode(shuffle(images, self.permutations[drawn]))[-1]).float()
        accuracy = (logits.detach().argmax(1) == drawn).float().mean()
        return {"jigsaw": F.cross_entropy(logits, drawn), "watch/accuracy": accuracy}


def distant_permutations(count: int, *, pool: int = 10_000) -> Tensor:
    """Permutations of the tiles, int64 ``[count, 9]``, always the same ones.

    Each is the one of a random pool that differs from those before it at the most places, in its worst case.
    """
    generator = Generator().manual_seed(0)
    candidates = torch.rand((pool, TILES**2), generator=generator).argsort(1)
    chosen = [0]
    nearest = torch.full((pool,), TILES**2)
    for _ in range(count - 1):
        distance = (candidates != candidates[chosen[-1]]).sum(1)
        nearest = torch.minimum(nearest, distance)
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]


def shuffle(images: Tensor, permutation: Tensor, *, shown: float = SHOWN, change: float = 0.2) -> Tensor:
    """Puts tile ``permutation[b, k]`` of image b at place k, enlarged from the part of it that is shown.

    Args:
        images: ``[B, 1, P, P]``.
        permutation: int64 ``[B, 9]``, tiles numbered row by row.
        shown: Share of a tile's side that is shown, at a random place in the tile.
        change: Largest change of a tile's brightness, and of the logarithm of its contrast.

    Returns:
        The shuffled images, same shape.
    """
    count, size, device = len(images), images.shape[-1], images.device
    where = (torch.arange(size, device=device) + 0.5) * TILES / size  # in tiles
    place = where.long().clamp(max=TILES - 1)
    inside = where - place
    places = (place[:, None] * TILES + place).expand(count, -1, -1)  # which place each pixel lies in

    def of_place(values: Tensor) -> Tensor:
        return values.gather(1, places.flatten(1)).view(count, size, size)

    tile = of_place(permutation)
    corner = torch.rand((2, count, TILES**2), device=device) * (1 - shown)
    y = tile // TILES + of_place(corner[0]) + inside[:, None] * shown
    x = tile % TILES + of_place(corner[1]) + inside * shown
    grid = torch.stack((x, y), -1) * (2 / TILES) - 1
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, brightness = (torch.rand((2, count, TILES**2), device=device) * 2 - 1) * change
    return moved * torch.exp(of_place(contrast))[:, None] + of_place(brightness)[:, None]
