from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hssl.errors import ConfigError
from hssl.networks import UNet
from hssl.objectives import Domains, PretrainBatch, build_objective
from hssl.objectives.global_local import global_contrast, local_contrast

TASK = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 1, 1])
PARTITION = torch.tensor([0, 1, 0, 2, 3, 0, 1, 0, 2, 3])


def test_global_contrast_equals_the_formula() -> None:
    projected = F.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    similarity = (projected.double() @ projected.double().T / 0.1).tolist()
    total = 0.0
    for i in range(10):
        mates = [j for j in range(10) if TASK[j] == TASK[i] and j != i]
        positives = [j for j in mates if PARTITION[j] == PARTITION[i]]
        negatives = sum(math.exp(similarity[i][j]) for j in mates if j not in positives)
        for j in positives:
            itself = math.exp(similarity[i][j])
            total -= math.log(itself / (itself + negatives)) / len(positives)
    assert global_contrast(projected, TASK, PARTITION, 0.1).item() == pytest.approx(total / 10, rel=1e-5)


def test_without_negatives_there_is_nothing_to_learn() -> None:
    projected = torch.randn(4, 3, requires_grad=True)
    loss = global_contrast(F.normalize(projected, dim=1), torch.zeros(4).long(), torch.zeros(4).long(), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert projected.grad is not None
    assert torch.equal(projected.grad, torch.zeros(4, 3))


def local(features: list[torch.Tensor], here: torch.Tensor, there: torch.Tensor) -> float:
    seen = (there.abs() < 1).all(-1)
    return local_contrast(features[0], features[1], here, there, seen, 0.05).item()


def test_local_contrast_finds_regions_again() -> None:
    torch.manual_seed(0)
    first = torch.randn(2, 8, 12, 12)
    here = torch.rand(2, 10, 2) * 1.8 - 0.9
    mirrored = here * torch.tensor([-1.0, 1])
    right = local([first, first.flip(3)], here, mirrored)
    assert right < 0.5
    assert local([first, first.flip(2)], here, mirrored) > 4 * right
    assert local([first, first.flip(3)[[1, 0]]], here, mirrored) > 4 * right


def test_regions_that_the_other_view_lacks_count_nothing() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 8, 12, 12)
    here = torch.rand(1, 10, 2) * 1.8 - 0.9
    there = here.clone()
    there[:, 5:] += 2
    some = local([first, second], here, there)
    assert some == pytest.approx(local([first, second], here[:, :5], there[:, :5]), rel=1e-5)
    assert local([first, second], here, there + 2) == 0


def test_overlapping_regions_do_not_repel() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 8, 12, 12)
    pitch = 2 / 12
    alone = torch.tensor([[[-0.5, -0.5], [0.5, 0.5]]])
    for shift, overlaps in (([2.9, 0.0], True), ([0.0, 3.1], False), ([2.9, 2.9], True), ([3.1, 2.9], False)):
        here = torch.cat((alone, alone[:, :1] + pitch * torch.tensor(shift)), 1)
        means = [F.avg_pool2d(each, 3, 1, 1, count_include_pad=False) for each in (first, second)]
        sampled = [
            F.grid_sample(each, here[:, None], padding_mode="border", align_corners=False)[0, :, 0].T for each in means
        ]
        vectors = F.normalize(torch.cat(sampled), dim=1)
        similarity = (vectors @ vectors.T / 0.05).tolist()
        total = 0.0
        for i in range(6):
            near = {0: {2}, 2: {0}}.get(i % 3, set()) if overlaps else set()
            others = [j for j in range(6) if j != i and (j % 3 not in near)]
            total -= similarity[i][(i + 3) % 6] - math.log(sum(math.exp(similarity[i][j]) for j in others))
        assert local([first, second], here, here) == pytest.approx(total / 6, rel=1e-4)


def test_the_decoder_does_not_teach_the_encoder(
    network: UNet, make_batch: Callable[..., PretrainBatch], three_tasks: Domains
) -> None:
    losses: dict[str, Any] = build_objective("global_local", network, three_tasks, {})(network, make_batch(6))
    losses["local"].backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    losses["global"].backward()
    assert any(p.grad.any() for p in network.encoder.parameters() if p.grad is not None)


def test_a_stage_that_is_not_there(network: UNet, three_tasks: Domains) -> None:
    with pytest.raises(ConfigError, match="'local_stage': this network's decoder has stages 0 to 2"):
        build_objective("global_local", network, three_tasks, {"local_stage": 3})


class Given(torch.nn.Module):
    """A head that gives what it was given."""

    def __init__(self, projected: torch.Tensor) -> None:
        super().__init__()
        self.projected = projected

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.projected


def test_volumes_are_cut_along_their_slices(network: UNet, make_batch: Callable[..., PretrainBatch]) -> None:
    batch = make_batch(6, tasks=1)
    batch = replace(batch, origin=batch.origin._replace(position=torch.tensor([0.0, 0.24, 0.26, 0.5, 0.99, 1.0])))
    objective = build_objective("global_local", network, Domains(("A",), (0,)), {"local_stage": 0})
    torch.manual_seed(0)
    projected = torch.randn(12, 5)
    objective.global_head = Given(projected)
    parts = torch.tensor([0, 0, 1, 2, 3, 3]).repeat(2)
    expected = global_contrast(F.normalize(projected, dim=1), torch.zeros(12, dtype=torch.int64), parts, 0.1)
    torch.testing.assert_close(objective(network, batch)["global"], expected)


def test_pictures_attract_those_of_their_own_subject(network: UNet, make_batch: Callable[..., PretrainBatch]) -> None:
    batch = make_batch(4, tasks=1)
    one = torch.ones(4, dtype=torch.int64)
    origin = batch.origin._replace(slices=one, position=torch.zeros(4), subject=torch.tensor([0, 0, 1, 2]))
    batch = replace(batch, origin=origin)
    objective = build_objective("global_local", network, Domains(("A",), (0,)), {"local_stage": 0})
    torch.manual_seed(0)
    projected = torch.randn(8, 5)
    objective.global_head = Given(projected)
    found = objective(network, batch)["global"]
    expected = global_contrast(F.normalize(projected, dim=1), one.repeat(2), batch.origin.subject.repeat(2), 0.1)
    torch.testing.assert_close(found, expected)
    assert found.item() > 0
