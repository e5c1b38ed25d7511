from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from hssl.networks import UNet
from hssl.objectives import Domains, Objective, PretrainBatch, build_objective

MakeBatch = Callable[..., PretrainBatch]


@pytest.fixture
def objective(network: UNet) -> Objective:
    return build_objective("byol", network, Domains(("A",), (-1,)), {"momentum": 0.9})


def test_each_view_predicts_the_other(network: UNet, objective: Objective, make_batch: MakeBatch) -> None:
    batch = make_batch(3, tasks=1)
    for part in ("projector", "predictor", "target_projector"):
        objective.get_submodule(part).eval()  # fixed statistics, so that the views can be seen one at a time
    projector, predictor = (objective.get_submodule(part) for part in ("projector", "predictor"))
    expected = 0.0
    for here, there in ((batch.first, batch.second), (batch.second, batch.first)):
        seen = [F.adaptive_avg_pool2d(network.encode(view.image)[-1], 3).flatten(1) for view in (here, there)]
        predicted, target = predictor(projector(seen[0])), projector(seen[1])  # the copy is still the same
        expected += (2 - 2 * F.cosine_similarity(predicted, target)).mean().item() / 2
    assert objective(network, batch)["image"].item() == pytest.approx(expected, rel=1e-4)


def test_the_copy_follows_slowly(network: UNet, objective: Objective) -> None:
    copies = dict(objective.get_submodule("target_encoder").named_parameters())
    before = {name: copy.clone() for name, copy in copies.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
        for parameter in objective.get_submodule("projector").parameters():
            parameter.add_(2)
    kept = [parameter.clone() for parameter in objective.get_submodule("target_projector").parameters()]
    objective.after_step(network)
    for name, parameter in network.encoder.named_parameters():
        torch.testing.assert_close(copies[name], 0.9 * before[name] + 0.1 * parameter)
    for old, parameter in zip(kept, objective.get_submodule("target_projector").parameters(), strict=True):
        torch.testing.assert_close(parameter, old + 0.2)


def test_the_copy_has_no_gradient(network: UNet, objective: Objective, make_batch: MakeBatch) -> None:
    objective(network, make_batch(3))["image"].backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_")
        assert parameter.requires_grad != name.startswith("target_")
