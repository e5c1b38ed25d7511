"""What a training tells: its cost before the start, where it continues, validation, and its curves as a picture."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.networks import SegmentationNetwork, build_network
from hssl.runs import Run, RunInfo
from hssl.runs.run import provenance
from hssl.store import Store
from hssl.training import cost, progress
from hssl.training.finetune import Finetuning, finetune
from hssl.training.loop import Stage
from hssl.training.pretrain import Pretraining, pretrain
from hssl.training.progress import PICTURE, ProgressPicture, draw_progress


@pytest.fixture
def run(tmp_path: Path, pretrain_config: Callable[..., PretrainConfig]) -> Run:
    config = pretrain_config()
    info = RunInfo(stage="pretrain", network=config.network, subjects_seen={}, masks_seen={}, provenance={})
    return Run.prepare(tmp_path / "run", config, info).create()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "hssl")

    def messages() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return messages


def test_the_picture_shows_losses_and_validation_and_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str | None, list[int], list[float]]] = []
    plot = Axes.plot

    def note(self: Axes, steps: tuple[int, ...], values: tuple[float, ...], **more: object) -> object:
        drawn.append((str(more["label"]) if "label" in more else None, list(steps), list(values)))
        return plot(self, steps, values, **more)

    monkeypatch.setattr(Axes, "plot", note)
    run.log(10, {"dice_ce": 2.0, "loss": 2.5, "watch/spread": 0.5, "learning_rate": 1e-3})
    run.log(20, {"dice_ce": 1.0, "loss": 1.5})
    draw_progress(run)
    assert drawn == [("dice_ce", [10, 20], [2.0, 1.0]), ("loss", [10, 20], [2.5, 1.5])]
    with Image.open(run.path / PICTURE) as low:
        size = low.size
    run.log(20, {"validation_dice": 0.75})
    draw_progress(run)
    assert drawn[4:] == [(None, [20], [0.75])]
    with Image.open(run.path / PICTURE) as high:
        assert (high.width, high.height > size[1]) == (size[0], True)


@pytest.mark.parametrize("values", [{}, {"loss": 0.0}, {"loss": -1.0}])
def test_a_picture_of_odd_curves(run: Run, values: dict[str, float]) -> None:
    if values:
        run.log(1, values)
    draw_progress(run)
    assert (run.path / PICTURE).is_file()


def test_it_is_drawn_now_and_then_and_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[Run] = []
    monkeypatch.setattr(progress, "draw_progress", count.append)
    picture = ProgressPicture(run)
    picture.update(last=False)
    assert len(count) == 0
    picture.drawn -= progress.PAUSE
    picture.update(last=False)
    picture.update(last=False)
    assert len(count) == 1
    picture.update(last=True)
    assert len(count) == 2


def test_a_picture_that_cannot_be_written_does_not_end_a_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    def full(_: Run) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "draw_progress", full)
    ProgressPicture(run).update(last=True)
    assert told() == [f"{run.path / PICTURE} cannot be drawn: [Errno 28] No space left on device"]


def test_fine_tuning_tells_cost_validation_and_what_is_kept(
    make_store: Callable[..., Store],
    finetune_config: Callable[..., FinetuneConfig],
    tmp_path: Path,
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([0.25, 0.5, 0.375])
    monkeypatch.setattr(Finetuning, "validate", lambda _: next(scores))
    done = finetune(make_store(), tmp_path / "run", config=finetune_config(steps=6, validate_every=2))
    messages = told()
    assert any(
        re.fullmatch(r"0\.00 M parameters, 6 steps of 2 patches at 16x16; about \d+ s and \d+\.\d GiB", each)
        for each in messages
    )
    assert [each for each in messages if "validation Dice" in each] == [
        "step 2: validation Dice 0.250, the best so far",
        "step 4: validation Dice 0.500, the best so far",
        "step 6: validation Dice 0.375",
        "kept: step 4, validation Dice 0.500",
    ]
    assert done.metrics()["validation_dice"] == [(2, 0.25), (4, 0.5), (6, 0.375)]
    assert (done.path / PICTURE).is_file()


def test_a_training_that_continues_says_from_where_and_what_is_left(
    make_store: Callable[..., Store],
    pretrain_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = pretrain_config(steps=8, checkpoint_every=2, groups="none")
    store = make_store({"A": 5, "B": 5})

    def stop(self: Stage, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "after_step", stop)
        patch.setattr(Stage, "seconds", lambda _: 600.0)
        with pytest.raises(KeyboardInterrupt):
            pretrain(store, tmp_path / "run", config=config)
    assert not [each for each in told() if "continues" in each]
    pretrain(store, tmp_path / "run", config=config)
    assert "continues from step 4 of 8; about 10 min left" in told()


def test_measuring_leaves_the_training_as_it_was(
    make_store: Callable[..., Store], pretrain_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    store, config = make_store({"A": 5, "B": 5}), pretrain_config(groups="none")
    values = provenance(config, store)
    info = RunInfo(stage="pretrain", network=config.network, subjects_seen={}, masks_seen={}, provenance=values)
    stage = Pretraining(config, store, Run.prepare(tmp_path / "run", config, info), ("A", "B"))
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    assert re.fullmatch(r"about \d+ min and \d+\.\d GiB", cost.cost_in_words(stage, besides=600.0))
    assert before.keys() == stage.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in stage.state_dict().items())
    assert all(p.grad is None for p in stage.parameters())
    assert not (tmp_path / "run").exists()


def test_the_cost_of_validation_grows_with_its_slices_and_times(
    make_store: Callable[..., Store],
    finetune_config: Callable[..., FinetuneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make_store(shape=(5, 28, 32))

    def stage(**given: object) -> Finetuning:
        config = finetune_config(**given)
        info = RunInfo(stage="finetune", network=config.network, subjects_seen={}, masks_seen={}, provenance={})
        network = SegmentationNetwork(build_network(config.network), 2)
        return Finetuning(config, store, Run.prepare(tmp_path / "run", config, info), network, ["blobs0"], loaded=False)

    clock = iter(range(0, 1000, 8))  # four slices of the five take 8 s
    monkeypatch.setattr("hssl.training.finetune.time.monotonic", lambda: next(clock))
    assert stage(steps=6, validate_every=2).validation_seconds() == 3 * 5 * 2.0
    assert stage(steps=7, validate_every=2).validation_seconds() == 4 * 5 * 2.0
    assert stage(validation=False).validation_seconds() == 0.0
