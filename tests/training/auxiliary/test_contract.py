"""What every auxiliary must do, whatever it learns from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError
from hssl.networks import SegmentationNetwork, build_network
from hssl.registry import AUXILIARIES
from hssl.store import Store
from hssl.training.auxiliary import (
    Auxiliary,
    AuxiliaryBatch,
    LabelledView,
    Setting,
    build_auxiliaries,
    resolve_auxiliaries,
)
from hssl.training.data import FinetuneData, WindowData
from hssl.views import follow, make_view

every = pytest.mark.parametrize("name", list(AUXILIARIES))
LATE = 5


class Bench:
    """One auxiliary, and a batch for it."""

    def __init__(self, name: str, store: Store, config: FinetuneConfig, before: PretrainConfig) -> None:
        self.name = name
        off = {other: other == name for other in AUXILIARIES}
        self.config = config.model_copy(update={"auxiliary": off})
        torch.manual_seed(0)
        self.network = SegmentationNetwork(build_network(config.network), store.tasks["Blobs"].classes)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.options = resolve_auxiliaries(self.config, before)
        self.setting = Setting(self.config, before, self.network, store, ["blobs0"])
        self.auxiliary = self.build()
        windows = {"batch_size": 4, "size": config.window, "steps": config.steps, "seed": 0}
        self.windows = WindowData(store, ("Blobs",), **windows)[0]
        patch = FinetuneData(store, ["blobs0"], config)[0].labelled
        view = make_view(patch.window, config.patch_size, config.view, torch.Generator().manual_seed(0))
        self.labelled = LabelledView(view.image, follow(patch.label, view.grid))

    def build(self) -> Auxiliary:
        torch.manual_seed(1)
        return build_auxiliaries(self.options, self.setting)[self.name]

    def losses(self, auxiliary: Auxiliary | None = None, step: int = LATE) -> dict[str, Tensor]:
        torch.manual_seed(2)
        generator = torch.Generator().manual_seed(3)
        batch = AuxiliaryBatch(self.labelled, self.windows, self.average, step, generator)
        found: dict[str, Tensor] = (auxiliary or self.auxiliary)(self.network, batch)
        return found


MakeBench = Callable[[str], Bench]


@pytest.fixture
def bench(make_store: Callable[..., Store], finetune_config: Any, pretrain_config: Any) -> MakeBench:
    return lambda name: Bench(name, make_store(), finetune_config(), pretrain_config())


def summed(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss for name, loss in losses.items() if not name.startswith("watch/")]).sum()


@every
def test_losses_are_finite_scalars_with_gradient(name: str, bench: MakeBench) -> None:
    here = bench(name)
    losses = here.losses()
    assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
    summed(losses).backward()  # type: ignore[no-untyped-call]
    trained = {key.split(".")[1] for key, p in here.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder", "decoder"} <= trained
    assert all(p.grad is None for p in here.average.parameters())


@every
def test_seed_and_step_fix_the_draws(name: str, bench: MakeBench) -> None:
    here = bench(name)
    first, second = here.losses(), here.losses(here.build())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_state_goes_round(name: str, bench: MakeBench) -> None:
    """A continued run has the state of an undisturbed one, whatever that is."""
    here = bench(name)
    summed(here.losses()).backward()  # type: ignore[no-untyped-call]
    here.auxiliary.after_step(here.network)
    other = here.build()
    other.load_state_dict(here.auxiliary.state_dict())
    first, second = here.losses(), here.losses(other)
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_the_network_stays_with_the_loop(name: str, bench: MakeBench) -> None:
    here = bench(name)
    mine = {p.data_ptr() for p in here.auxiliary.parameters()}
    assert not mine & {p.data_ptr() for p in (*here.network.parameters(), *here.average.parameters())}
    assert not any(isinstance(module, SegmentationNetwork) for module in here.auxiliary.modules())


@every
def test_it_says_what_it_does(name: str, bench: MakeBench) -> None:
    assert bench(name).auxiliary.describe()


@every
def test_unknown_options_are_errors(name: str, finetune_config: Any, pretrain_config: Any) -> None:
    config = finetune_config(auxiliary={name: {"no_such_option": 1}})
    with pytest.raises(ConfigError, match=f"auxiliary '{name}': no option 'no_such_option'"):
        resolve_auxiliaries(config, pretrain_config())


@every
def test_a_batch_that_is_too_small(name: str, finetune_config: Any, pretrain_config: Any) -> None:
    config = finetune_config(auxiliary={name: {"batch_size": 1}})
    with pytest.raises(
        ConfigError, match=rf"auxiliary '{name}': batch size 1 is too small.*auxiliary={{{name}: false}}"
    ):
        resolve_auxiliaries(config, pretrain_config())


@every
@pytest.mark.parametrize("off", [False, {"weight": 0}])
def test_what_is_off_does_nothing(name: str, off: object, finetune_config: Any, pretrain_config: Any) -> None:
    others = dict.fromkeys(AUXILIARIES, False)
    assert resolve_auxiliaries(finetune_config(auxiliary={**others, name: off}), pretrain_config()) == {}


def test_an_unknown_auxiliary_is_an_error(finetune_config: Any) -> None:
    with pytest.raises(ValueError, match=r"no auxiliary 'self_trainin'; did you mean 'self_training'\?"):
        finetune_config(auxiliary={"self_trainin": True})
