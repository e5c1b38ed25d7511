from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hssl.errors import ConfigError
from hssl.networks import SegmentationNetwork, build_network
from hssl.store import Store
from hssl.training.auxiliary import LabelledView, Setting
from hssl.training.auxiliary.self_training import SelfTraining, SelfTrainingOptions
from hssl.training.finetune import finetune

Make = Callable[..., SelfTraining]
ALONE = {"pretext": False, "self_training": True}


@pytest.fixture
def make(make_store: Callable[..., Store], finetune_config: Any) -> Make:
    """Self-training on bright squares; keywords are its options."""
    store = make_store()

    def build(steps: int = 100, ema_decay: float = 0.9, **options: Any) -> SelfTraining:
        config = finetune_config(steps=steps, ema_decay=ema_decay)
        network = SegmentationNetwork(build_network(config.network), 2)
        return SelfTraining(SelfTrainingOptions.checked(options), Setting(config, None, network, store, ["blobs0"]))

    return build


class Says(nn.Module):
    """A teacher with a known opinion: logits of the foreground from the image's brightness."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(image), self.scale * (image - 0.5)), 1)


def teach(auxiliary: SelfTraining, image: Tensor, scale: float = 20.0) -> tuple[Tensor, Tensor]:
    return auxiliary._teach(Says(scale), image)  # type: ignore[arg-type]


def test_only_certain_pixels_are_believed(make: Make) -> None:
    image = torch.tensor([0.0, 0.45, 0.55, 1.0]).view(1, 1, 2, 2)
    label, believed = teach(make(confidence=0.9, per_class=False), image)
    assert label.flatten().tolist() == [0, 0, 1, 1]
    assert believed.flatten().tolist() == [1, 0, 0, 1]
    _, all_ = teach(make(confidence=0, per_class=False), image)
    assert all_.flatten().tolist() == [1, 1, 1, 1]


def test_a_class_that_the_teacher_is_less_sure_of_needs_less(make: Make) -> None:
    image = torch.tensor([0.0, 0.0, 0.0, 0.6]).view(1, 1, 2, 2)  # 0.88 sure of the foreground
    fixed, own = make(confidence=0.95, per_class=False), make(confidence=0.95, per_class=True)
    for auxiliary in (fixed, own):
        for _ in range(400):
            _, believed = teach(auxiliary, image)
        assert believed.flatten()[:3].tolist() == [1, 1, 1]
        assert believed.flatten()[3] == float(auxiliary is own)


def test_the_weight_rises_after_the_start(make: Make) -> None:
    auxiliary = make(steps=100, start=0.2, ramp=0.1)
    assert [auxiliary._rise(step) for step in (0, 19, 20, 24, 29, 99)] == pytest.approx([0, 0, 0.1, 0.5, 1, 1])


@pytest.mark.parametrize(("paste", "source"), [(0.0, "unlabelled"), (1.0, "labelled")])
def test_boxes_bring_image_label_and_belief_along(make: Make, paste: float, source: str) -> None:
    auxiliary = make(cutmix=1.0, paste=paste, box=(0.3, 0.3))
    # Every image is a constant of its own, so that each pixel says where it comes from.
    own = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16) / 10
    label, believed = (own[:, 0] * 10).long(), own[:, 0] * 2
    labelled = LabelledView(own + 0.5, label + 5)
    generator = torch.Generator().manual_seed(0)
    image, mixed, belief = auxiliary._mix(own, label, believed, labelled, generator)
    numbers = (image[:, 0] * 10).round().long()
    assert torch.equal(mixed, numbers)
    from_labelled = numbers >= 5
    torch.testing.assert_close(belief[from_labelled], torch.ones(int(from_labelled.sum())))
    torch.testing.assert_close(belief[~from_labelled], numbers[~from_labelled] / 5)
    strange = numbers != torch.arange(4).view(4, 1, 1)
    assert from_labelled.any() == (source == "labelled")
    if source == "labelled":
        assert 0.2 < from_labelled.float().mean() < 0.4
        assert torch.equal(strange, from_labelled)
        # A box: all rows that have any of it have the same columns of it.
        for picture in from_labelled:
            rows, columns = picture.any(1), picture.any(0)
            assert torch.equal(picture, rows[:, None] & columns)


def test_no_box_without_cutmix(make: Make) -> None:
    image = torch.rand(3, 1, 16, 16)
    label = torch.zeros(3, 16, 16, dtype=torch.int64)
    labelled = LabelledView(image.flip(0), label)
    mixed, _, _ = make(cutmix=0.0)._mix(image, label, label.float(), labelled, torch.Generator().manual_seed(0))
    assert torch.equal(mixed, image)


def test_nothing_is_learned_before_the_start(make_store: Any, finetune_config: Any, tmp_path: Any) -> None:
    store = make_store()
    options = {"validation": False, "steps": 4, "checkpoint_every": 10}
    late = {"pretext": False, "self_training": {"start": 1.0}}
    alone = finetune(store, tmp_path / "alone", config=finetune_config(auxiliary={"pretext": False}, **options))
    waiting = finetune(store, tmp_path / "waiting", config=finetune_config(auxiliary=late, **options))
    first, second = alone.load_weights(), waiting.load_weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
    learning = {"pretext": False, "self_training": {"start": 0.0}}
    other = finetune(store, tmp_path / "other", config=finetune_config(auxiliary=learning, **options)).load_weights()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("covers", "held"), [(1.0, True), (5.0, True), (50.0, False), (0.01, False)])
def test_the_guard_holds_back_what_vanishes_or_floods(make: Make, covers: float, held: bool) -> None:
    auxiliary = make(guard=10.0)
    assert auxiliary.expected[1] > 0.01
    network = build_network
    auxiliary.covered[1] = covers * auxiliary.expected[1]
    for _ in range(60):
        auxiliary.after_step(network)  # type: ignore[arg-type]
    assert (auxiliary.held.item() == 1) == held
    if not held:
        assert auxiliary.held.item() == pytest.approx(0.98**60, rel=1e-4)
        auxiliary.covered.copy_(auxiliary.expected)
        for _ in range(60):
            auxiliary.after_step(network)  # type: ignore[arg-type]
        assert auxiliary.held.item() == 1


def test_the_guard_says_what_it_sees(make: Make, monkeypatch: Any) -> None:
    told = []
    monkeypatch.setattr("hssl.training.auxiliary.self_training.logger.warning", lambda *args: told.append(args))
    auxiliary = make(guard=10.0)
    auxiliary.covered[1] = 100 * auxiliary.expected[1]
    for _ in range(200):
        auxiliary.after_step(build_network)  # type: ignore[arg-type]
        auxiliary._tell()
    assert len(told) == 1
    assert "'square' covers 1e+02 times" in told[0][1]


def test_what_a_class_covers_is_learned_from_labelled_masks_alone(make_store: Any, make: Make) -> None:
    auxiliary = make()
    assert auxiliary.expected.sum().item() == pytest.approx(1)
    # A square of 8 x 8 pixels in windows of 24 x 24 of a slice of 28 x 32.
    assert 0.03 < auxiliary.expected[1].item() < 8 * 8 / 24**2 + 1e-6


def test_without_an_average_there_is_no_teacher(make: Make) -> None:
    with pytest.raises(ConfigError, match="needs a moving average"):
        make(ema_decay=0)


def test_a_continued_run_equals_an_undisturbed_one(
    make_store: Any, finetune_config: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    from hssl.training.finetune import Finetuning

    store = make_store()
    auxiliary = {"pretext": False, "self_training": {"start": 0.2, "ramp": 0.4}}
    config = finetune_config(validation=False, steps=6, checkpoint_every=1, auxiliary=auxiliary)
    whole = finetune(store, tmp_path / "whole", config=config)
    original = Finetuning.after_step

    class Stop(Exception):
        pass

    def after_step(self: Finetuning, step: int) -> None:
        original(self, step)
        if step == 4:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "after_step", after_step)
        with pytest.raises(Stop):
            finetune(store, tmp_path / "stopped", config=config)
    stopped = finetune(store, tmp_path / "stopped", config=config)
    first, second = whole.load_weights(), stopped.load_weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.path / "metrics.csv").read_bytes() == (stopped.path / "metrics.csv").read_bytes()


def test_only_labelled_masks_and_training_images_are_read(
    make_store: Any, finetune_config: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    store = make_store()
    masks, images = set(), set()
    label, image_slice = type(store).label, type(store).image_slice
    monkeypatch.setattr(type(store), "label", lambda self, case: masks.add(case.subject) or label(self, case))
    monkeypatch.setattr(
        type(store),
        "image_slice",
        lambda self, case, index: images.add(case.subject) or image_slice(self, case, index),
    )
    options = {"validation": False, "label_budget": ("blobs1",), "auxiliary": ALONE, "steps": 12}
    run = finetune(store, tmp_path / "run", config=finetune_config(**options))
    assert masks == {"blobs1"}
    assert images == set(store.split("Blobs").train)
    assert run.info.masks_seen == {"Blobs": ["blobs1"]}
    assert run.info.subjects_seen == {"Blobs": store.split("Blobs").train}
