"""What every objective must do, whatever it asks of the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hssl.errors import ConfigError
from hssl.networks import UNet
from hssl.objectives import Domains, Objective, PretrainBatch, build_objective
from hssl.registry import OBJECTIVES

MakeBatch = Callable[..., PretrainBatch]
ONE_TASK = Domains(("A",), (-1,))
# These leave the decoder as it was; every other objective must train it.
ENCODER_ONLY = {"simclr", "byol", "rotation", "jigsaw"}
# These keep a momentum copy of the encoder, which is not the network.
MOMENTUM = {"byol"}

every = pytest.mark.parametrize("name", list(OBJECTIVES))


def build(name: str, network: UNet, domains: Domains = ONE_TASK) -> Objective:
    torch.manual_seed(1)
    return build_objective(name, network, domains, {})


def losses(objective: Objective, network: UNet, batch: PretrainBatch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    found: dict[str, Tensor] = objective(network, batch)
    return found


def total(found: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss for name, loss in found.items() if not name.startswith("watch/")]).sum()


def scalars(found: dict[str, Tensor]) -> bool:
    return all(loss.ndim == 0 and loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in found.values())


@every
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_losses_are_finite_scalars_with_gradient(
    name: str, tasks: int, autocast: bool, network: UNet, make_batch: MakeBatch, three_tasks: Domains
) -> None:
    objective = build(name, network, three_tasks if tasks == 3 else ONE_TASK)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses(objective, network, make_batch(6, tasks=tasks))
    assert scalars(found)
    total(found).backward()  # type: ignore[no-untyped-call]
    gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    trained = {key.split(".")[0] for key, gradient in gradients.items() if gradient.any()}
    assert trained == ({"encoder"} if name in ENCODER_ONLY else {"encoder", "decoder"})
    # Every stage of the encoder learns, not the shallow or the deep ones alone.
    weights = [key for key, _ in network.encoder.named_parameters() if key.endswith("conv.weight")]
    assert all(gradients[f"encoder.{key}"].any() for key in weights)


@every
def test_the_seed_fixes_the_draws(name: str, network: UNet, make_batch: MakeBatch) -> None:
    batch, objective = make_batch(4, tasks=1), build(name, network)
    first, second = (losses(objective, network, batch) for _ in range(2))
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_a_batch_is_left_as_it_was(name: str, network: UNet, make_batch: MakeBatch) -> None:
    batch, same = make_batch(4, tasks=1), make_batch(4, tasks=1)
    losses(build(name, network), network, batch)
    for view, untouched in ((batch.first, same.first), (batch.second, same.second)):
        assert torch.equal(view.image, untouched.image)
        assert torch.equal(view.clean, untouched.clean)


@every
def test_one_batch_can_be_learnt(name: str, network: UNet, make_batch: MakeBatch, three_tasks: Domains) -> None:
    batch, objective = make_batch(6), build(name, network, three_tasks)
    parameters = [p for p in (*network.parameters(), *objective.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    values = []
    for _ in range(20):
        loss = total(losses(objective, network, batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        objective.after_step(network)
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


@every
def test_state_goes_round(name: str, network: UNet, make_batch: MakeBatch, three_tasks: Domains) -> None:
    batch, objective = make_batch(6), build(name, network, three_tasks)
    torch.manual_seed(2)
    other = build_objective(name, network, three_tasks, {})
    before = losses(other, network, batch)
    other.load_state_dict(objective.state_dict())
    after, expected = losses(other, network, batch), losses(objective, network, batch)
    assert all(torch.equal(after[key], expected[key]) for key in expected)
    assert any(not torch.equal(before[key], expected[key]) for key in expected)


@every
def test_the_network_stays_with_the_loop(name: str, network: UNet) -> None:
    objective = build(name, network)
    assert not any(module is network or isinstance(module, UNet) for module in objective.modules())
    mine = {p.data_ptr() for p in objective.parameters()}
    assert not mine & {p.data_ptr() for p in network.parameters()}
    if name not in MOMENTUM:
        assert not any(key.startswith(("encoder.", "decoder.")) or ".stages." in key for key in objective.state_dict())


@every
def test_unknown_options_are_errors(name: str, network: UNet) -> None:
    with pytest.raises(ConfigError, match="option 'no_such_option'"):
        build_objective(name, network, ONE_TASK, {"no_such_option": 1})


def test_unknown_objective_is_an_error(network: UNet) -> None:
    with pytest.raises(ConfigError, match=r"no objective 'nothing'.*hierarchical"):
        build_objective("nothing", network, ONE_TASK, {})
