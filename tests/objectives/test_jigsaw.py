from __future__ import annotations

import torch
from torch import Tensor

from hssl.objectives.jigsaw import distant_permutations, shuffle


def tiles(image: Tensor) -> list[Tensor]:
    side = image.shape[-1] // 3
    return [tile for row in image.split(side, -2) for tile in row.split(side, -1)]


def test_tiles_go_to_their_places() -> None:
    images = torch.rand(2, 1, 12, 12)
    permutation = torch.stack((torch.arange(9), torch.tensor([4, 2, 8, 0, 1, 7, 3, 6, 5])))
    shuffled = shuffle(images, permutation, shown=1, change=0)
    torch.testing.assert_close(shuffled[0], images[0])
    source = tiles(images[1, 0])
    for place, tile in enumerate(tiles(shuffled[1, 0])):
        torch.testing.assert_close(tile, source[permutation[1, place]])


def test_edges_of_tiles_are_not_shown() -> None:
    # The image is its own column number: a tile that shows 60 % of its 10 columns spans less than 6.
    images = torch.arange(30.0).expand(8, 1, 30, 30)
    shuffled = shuffle(images, torch.arange(9).expand(8, -1), shown=0.6, change=0)
    for image in shuffled:
        for number, tile in enumerate(tiles(image[0])):
            low, high = tile.min().item(), tile.max().item()
            assert 10 * (number % 3) - 0.5 <= low < high <= 10 * (number % 3) + 9.5
            assert 5 < high - low < 6


def test_a_side_that_three_does_not_divide() -> None:
    images = torch.rand(2, 1, 16, 16)
    identity = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(shuffle(images, identity, shown=1, change=0), images)


def test_permutations_lie_far_apart() -> None:
    permutations = distant_permutations(64)
    assert torch.equal(permutations.sort(1).values, torch.arange(9).expand(64, -1))
    different = (permutations[:, None] != permutations[None]).sum(-1)
    assert different[~torch.eye(64, dtype=torch.bool)].min() >= 6
    assert torch.equal(permutations, distant_permutations(64))
