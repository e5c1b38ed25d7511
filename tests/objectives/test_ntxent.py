from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hssl.objectives import ntxent
from hssl.objectives.ntxent import near_neighbours, nt_xent

COUNT, SIZE, TEMPERATURE = 5, 4, 0.2


def projections(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn((2, COUNT, SIZE), generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def some_pairs() -> Tensor:
    ignore = torch.zeros((COUNT, COUNT), dtype=torch.bool)
    ignore[0, 1] = ignore[1, 0] = ignore[3, 2] = True
    return ignore | torch.eye(COUNT, dtype=torch.bool)  # the diagonal must not be read


def some_affinity() -> Tensor:
    return torch.rand((COUNT, COUNT), generator=torch.Generator().manual_seed(1))


def reference(first: Tensor, second: Tensor, ignore: Tensor | None, affinity: Tensor | None) -> float:
    """The formula of the docstring, one term after another, in double precision."""
    rows = [[float(value) for value in row.detach().double()] for row in torch.cat((first, second))]
    units = [[value / math.hypot(*row) for value in row] for row in rows]

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(units[i], units[j], strict=True)) / TEMPERATURE

    total = 0.0
    for i in range(2 * COUNT):
        image, pair = i % COUNT, (i + COUNT) % (2 * COUNT)
        kept = []
        for j in range(2 * COUNT):
            ignored = ignore is not None and j % COUNT != image and bool(ignore[image, j % COUNT])
            if j != i and not ignored:
                kept.append(j)
        target = dict.fromkeys(kept, 0.0)
        if affinity is not None:
            target = {j: 0.0 if j % COUNT == image else float(affinity[image, j % COUNT]) / 2 for j in kept}
        target[pair] = 1.0
        denominator = sum(math.exp(similarity(i, k)) for k in kept)
        for j in kept:
            total -= target[j] / sum(target.values()) * math.log(math.exp(similarity(i, j)) / denominator)
    return total / (2 * COUNT)


@pytest.mark.parametrize("ignore", [None, some_pairs()], ids=["all", "ignore"])
@pytest.mark.parametrize("affinity", [None, some_affinity()], ids=["pairs", "affinity"])
def test_equals_the_formula(ignore: Tensor | None, affinity: Tensor | None) -> None:
    first, second = projections()
    loss = nt_xent(first, second, TEMPERATURE, ignore=ignore, affinity=affinity)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(first, second, ignore, affinity), rel=1e-5)


@pytest.mark.parametrize("ignore", [None, some_pairs()], ids=["all", "ignore"])
@pytest.mark.parametrize("affinity", [None, some_affinity()], ids=["pairs", "affinity"])
@pytest.mark.parametrize("images", [1, 2, COUNT], ids=["one", "uneven", "whole"])
def test_gradient_of_every_block_size_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, ignore: Tensor | None, affinity: Tensor | None, images: int
) -> None:
    monkeypatch.setattr(ntxent, "BLOCK_CPU", images * 4 * COUNT)
    first, second = projections()
    loss = nt_xent(first, second, TEMPERATURE, ignore=ignore, affinity=affinity)
    assert loss.item() == pytest.approx(reference(first, second, ignore, affinity), rel=1e-5)
    (3 * loss).backward()
    for views in (first, second):
        assert views.grad is not None
        for place in [(0, 0), (2, 1), (COUNT - 1, SIZE - 1)]:
            around = []
            for step in (-1e-3, 1e-3):
                moved = [view.detach().double() for view in (first, second)]
                moved[0 if views is first else 1][place] += step
                around.append(reference(moved[0], moved[1], ignore, affinity))
            slope = (around[1] - around[0]) / 2e-3
            assert views.grad[place].item() == pytest.approx(3 * slope, rel=1e-3, abs=1e-5)


def test_arguments_are_left_as_they_were() -> None:
    ignore, affinity = some_pairs(), some_affinity()
    nt_xent(*projections(), TEMPERATURE, ignore=ignore, affinity=affinity)
    assert torch.equal(ignore, some_pairs())
    assert torch.equal(affinity, some_affinity())


@pytest.mark.parametrize("affinity", [None, some_affinity()], ids=["pairs", "affinity"])
def test_an_ignored_image_counts_nothing(affinity: Tensor | None) -> None:
    # Image 4 ignores nobody and is ignored by all: only its own two rows may depend on it.
    ignore = torch.zeros((COUNT, COUNT), dtype=torch.bool)
    ignore[:, 4] = ignore[4, :] = True
    first, second = projections()
    loss = nt_xent(first, second, TEMPERATURE, ignore=ignore, affinity=affinity)
    loss.backward()
    assert first.grad is not None
    assert first.grad[:4].abs().sum() > 0
    # Its own rows have one candidate left, which is the right one.
    assert torch.equal(first.grad[4], torch.zeros(SIZE))
    moved = first.detach().clone()
    moved[4] = torch.tensor([3.0, -1, 2, 0.5])
    assert torch.equal(nt_xent(moved, second, TEMPERATURE, ignore=ignore, affinity=affinity), loss)
    assert nt_xent(moved, second, TEMPERATURE, affinity=affinity) != loss


def test_rounding_of_autocast_does_not_reach_the_loss() -> None:
    first, second = projections()
    expected = nt_xent(first, second, TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(first, second, TEMPERATURE), expected)


def test_near_neighbours() -> None:
    case, index = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 6, 7, 4])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(near_neighbours(case, index, 2), expected)
    assert torch.equal(near_neighbours(case, index, 0), torch.eye(4, dtype=torch.bool))
