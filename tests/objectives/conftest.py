from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hssl.config import NetworkConfig, ViewConfig
from hssl.networks import UNet, build_network
from hssl.objectives import Domains, Origin, PretrainBatch
from hssl.views import make_view

MakeBatch = Callable[..., PretrainBatch]


@pytest.fixture
def network() -> UNet:
    """A network of four stages; its weights are the same in every test."""
    torch.manual_seed(0)
    return build_network(NetworkConfig(features=(4, 8, 8, 8), blocks=(1,) * 4, decoder_convs=(1,) * 3))


@pytest.fixture
def make_batch() -> MakeBatch:
    """Makes batches of smooth random images; image i is of task i modulo `tasks` and of a subject of its own."""

    def make(count: int = 6, tasks: int = 3, size: int = 32, seed: int = 0) -> PretrainBatch:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand((count, 1, 6, 6), generator=generator)
        window = torch.nn.functional.interpolate(coarse, size=(size + 8, size + 8), mode="bilinear")
        first, second = (make_view(window, size, ViewConfig(occlusion_ratio=0.3), generator) for _ in range(2))
        number = torch.arange(count)
        position = torch.rand(count, generator=generator)
        whole = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).expand(count, 2, 2)  # the window is the slice
        slices = torch.full((count,), 9)
        origin = Origin(number % tasks, number, number, number, slices, position, whole)
        return PretrainBatch(first, second, origin)

    return make


@pytest.fixture
def three_tasks() -> Domains:
    """Three tasks in two groups."""
    return Domains(("A", "B", "C"), (0, 0, 1))
