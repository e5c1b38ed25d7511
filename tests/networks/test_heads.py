from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hssl.networks import PointHead


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_point_head_is_the_task_s_convolution_on_every_stage() -> None:
    torch.manual_seed(0)
    decoded, task = [torch.randn(3, 6, 4, 4), torch.randn(3, 2, 8, 8)], torch.tensor([1, 0, 1])
    head = PointHead([6, 2], 2, 5)
    rows, columns = torch.tensor([[1, 3], [6, 2], [4, 4]]), torch.tensor([[1, 6], [2, 5], [3, 6]])
    points = (torch.stack((columns, rows), -1) + 0.5) / 4 - 1  # centres of inner pixels of the finer stage
    expected = []
    for image, number in enumerate(task):
        logits = torch.zeros(5, 8, 8)
        for features, layer in zip(decoded, head.layers, strict=True):
            weight = layer.weight.view(2, 5, -1, 1, 1)[number]  # type: ignore[operator]
            bias = layer.bias.view(2, 5)[number]  # type: ignore[operator]
            found = F.conv2d(features[image, None], weight, bias)
            logits += F.interpolate(found, (8, 8), mode="bilinear")[0]
        expected.append(logits[:, rows[image], columns[image]].T)
    torch.testing.assert_close(head(decoded, points, task), torch.stack(expected))


def test_point_head_gives_the_same_gradient_each_time(two_threads: None) -> None:
    torch.manual_seed(0)
    decoded = [torch.randn(64, 64, 8, 8), torch.randn(64, 16, 16, 16)]
    points, task = torch.rand(64, 256, 2) * 2 - 1, torch.arange(64) % 2
    head = PointHead([64, 16], 5, 64)

    def gradients() -> list[Tensor]:
        head.zero_grad()
        head(decoded, points, task).logsumexp(-1).sum().backward()
        return [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]

    first = gradients()
    assert len(first) == 4
    assert all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, gradients(), strict=True))
