from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hssl.config import NetworkConfig
from hssl.networks import UNet, build_network
from hssl.objectives import Domains, PretrainBatch, build_objective
from hssl.objectives.masked import draw_visible, encode_visible, normalise_blocks

MakeBatch = Callable[..., PretrainBatch]


def repeated(visible: Tensor, height: int, width: int) -> Tensor:
    return visible.repeat_interleave(height, 2).repeat_interleave(width, 3)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 10), (0.01, 1), (0.9, 14), (0.99, 15)])
def test_the_same_number_of_blocks_is_hidden_in_each_image(ratio: float, hidden: int) -> None:
    torch.manual_seed(0)
    visible = draw_visible(torch.zeros(5, 1, 32, 16), (8, 4), ratio)
    assert visible.shape == (5, 1, 4, 4)
    assert (~visible).sum((1, 2, 3)).tolist() == [hidden] * 5
    assert ratio != 0.6 or not torch.equal(visible[0], visible[1])


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_nothing_leaks_through_the_mask(kind: Any) -> None:
    torch.manual_seed(0)
    strides = ((1, 1), (2, 2), (2, 1))
    network = build_network(NetworkConfig(encoder=kind, features=(4, 8, 8), strides=strides))
    images = torch.rand(2, 1, 16, 16)
    visible = draw_visible(images, network.divisor, 0.6)
    mask = repeated(visible, *network.divisor)
    features = encode_visible(network, images, visible)
    others = encode_visible(network, torch.where(mask, images, torch.rand_like(images)), visible)
    for stage, other, (height, width) in zip(features, others, ((4, 2), (2, 1), (1, 1)), strict=True):
        assert torch.equal(stage, other)
        hidden = ~repeated(visible, height, width).expand_as(stage)
        assert not stage[hidden].any()
        assert stage[~hidden].any()


def test_what_is_all_visible_is_what_the_encoder_sees(network: UNet) -> None:
    images = torch.rand(2, 1, 16, 16)
    features = encode_visible(network, images, torch.ones(2, 1, 2, 2, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(features, network.encode(images), strict=True))


def test_blocks_are_normalised_but_not_their_noise() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 1, 8, 8)
    images[..., :4, :4] = 0.3 + 1e-4 * torch.rand(4, 4)
    normal = normalise_blocks(images, (4, 4))
    block = normal[0, 0, 4:, 4:]
    assert block.mean().item() == pytest.approx(0, abs=1e-4)
    assert block.std(unbiased=False).item() == pytest.approx(1, rel=1e-3)
    assert normal[..., :4, :4].abs().max() < 0.05


def test_visible_blocks_are_not_scored(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    flat = batch.first.clean * 0 + 0.5
    batch = replace(batch, first=replace(batch.first, clean=flat), second=replace(batch.second, clean=flat))
    objective = build_objective("masked", network, Domains(("A",), (-1,)), {})
    last = objective.get_submodule("head.layers.2")
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
    # Every block of a flat image is 0 once normalised, and so is the output.
    assert objective(network, batch)["restoration"].item() == pytest.approx(0, abs=1e-6)

    def changed(in_visible: bool) -> float:
        noise = torch.rand_like(flat)
        torch.manual_seed(5)
        images = torch.cat((flat, flat))
        visible = repeated(draw_visible(images, network.divisor, 0.6), *network.divisor)
        mixed = torch.where(visible == in_visible, torch.cat((noise, noise)), images)
        first, second = mixed.chunk(2)
        torch.manual_seed(5)
        other = replace(batch, first=replace(batch.first, clean=first), second=replace(batch.second, clean=second))
        loss: Tensor = objective(network, other)["restoration"]
        return loss.item()

    assert changed(True) == pytest.approx(0, abs=1e-6)
    assert changed(False) == pytest.approx(1, rel=0.01)
