from __future__ import annotations

import math

import pytest
import torch

from hssl.config import TrainingConfig
from hssl.errors import TrainingError
from hssl.training.loop import check, lost_process_as_error, schedule, wants_bf16
from hssl.training.pretrain import Pretraining, pretrain


def test_schedule():
    config = TrainingConfig(steps=110, warmup=10, learning_rate=2.0)
    assert [schedule(step, config) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert schedule(10, config) == 2.0
    assert schedule(60, config) == pytest.approx(1.0)
    assert schedule(35, config) == pytest.approx(1 + math.cos(math.pi / 4))
    assert schedule(110, config) == 0
    assert 0 < schedule(109, config) < 0.001


@pytest.mark.parametrize("warmup", [0, 5, 50])
def test_schedules_that_do_not_fit_are_still_rates(warmup):
    config = TrainingConfig(steps=5, warmup=warmup, learning_rate=1.0)
    assert all(0 <= schedule(step, config) <= 1 for step in range(5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value):
    with pytest.raises(TrainingError, match="loss 'image' is not finite at step 7"):
        check({"pixel": 1.0, "image": value}, 7)


def test_collapse():
    check({"watch/spread": 0.5, "image": 0.0}, 7)
    with pytest.raises(TrainingError, match=r"have collapsed to one point \(spread 0.0010\) at step 7"):
        check({"watch/spread": 0.001}, 7)


def test_precision_as_asked():
    assert wants_bf16(TrainingConfig(precision="bf16", learning_rate=1.0))
    assert not wants_bf16(TrainingConfig(precision="32", learning_rate=1.0))


def test_objectives_draw_other_numbers_than_views(make_store, pretrain_config, tmp_path, monkeypatch):
    drawn = []

    def losses(self, batch, step, generator):
        drawn.append((torch.rand(8), torch.rand(8, generator=generator)))
        return original(self, batch, step, generator)

    original = Pretraining.losses
    monkeypatch.setattr(Pretraining, "losses", losses)
    pretrain(make_store(), tmp_path / "run", config=pretrain_config(steps=3))
    assert len(drawn) == 3 + 3  # three to measure, and those of the training
    numbers = torch.cat([torch.stack(pair) for pair in drawn[3:]])
    assert len(torch.unique(numbers)) == numbers.numel()


def test_a_rank_that_is_gone_is_one_line():
    said = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:6567: Connection reset by peer."
    for error in (RuntimeError(said), torch.distributed.DistBackendError("NCCL error")):
        with pytest.raises(TrainingError, match="another process of this training has ended"), lost_process_as_error():
            raise error
    with pytest.raises(RuntimeError, match="shape"), lost_process_as_error():
        raise RuntimeError("shape")
