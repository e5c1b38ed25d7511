from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hssl.config import FinetuneConfig
from hssl.errors import ConfigError, RunError, StoreError, TrainingError
from hssl.evaluation import evaluate
from hssl.networks import build_network
from hssl.prediction.tiling import predict_volume
from hssl.runs import Run, load_segmentation, load_unet
from hssl.store import Split
from hssl.training.auxiliary.pretext import PretextOptions
from hssl.training.finetune import Finetuning, finetune, update_average
from hssl.training.pretrain import pretrain

TWO = {"Blobs": 6, "Other": 5}


class Stop(Exception):
    """As if the power failed."""


def stop_at(monkeypatch, step):
    original = Finetuning.after_step

    def after_step(self, number):
        original(self, number)
        if number == step:
            raise Stop

    monkeypatch.setattr(Finetuning, "after_step", after_step)


def values(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(step): float(value) for step, found, value in list(csv.reader(file))[1:] if found == name}


STAGE = sys.modules[Finetuning.__module__]


def assert_same_runs(first: Path, second: Path) -> None:
    weights, others = (load_file(path / "weights.safetensors") for path in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    results = [Run.open(path).info.result | {"seconds": 0} for path in (first, second)]
    assert results[0] == results[1]


@pytest.fixture
def pretrained(make_store, pretrain_config, tmp_path) -> Callable[..., Path]:
    def make(store, **given) -> Path:
        return pretrain(store, tmp_path / "pretrained", config=pretrain_config(steps=2, **given)).path

    return make


def test_what_a_run_leaves(make_store, finetune_config, tmp_path):
    store = make_store(TWO)
    run = finetune(store, tmp_path / "run", config=finetune_config())
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("tensorboard/")}
    assert files == {"config.json", "metrics.csv", "progress.png", "run.json", "weights.safetensors"}
    labelled = store.labelled("Blobs", 2, 0)
    split = store.split("Blobs")
    assert run.info.complete
    assert run.info.task == store.tasks["Blobs"]
    assert run.info.result["labelled"] == labelled
    # Whoever chose the checkpoint counts as labelled.
    assert run.info.masks_seen == {"Blobs": sorted([*labelled, *split.val])}
    assert run.info.subjects_seen == run.info.masks_seen
    network, _, task = load_segmentation(run.path)
    assert task.classes == 2
    assert network(torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)


def test_label_values_with_gaps_give_no_empty_channels(make_store, finetune_config, tmp_path):
    runs = {
        value: finetune(
            make_store(value=value, name=f"store{value}"), tmp_path / f"run{value}", config=finetune_config()
        )
        for value in (1, 250)
    }
    # What is learnt does not depend on the number that a file has for the label.
    assert_same_runs(runs[1].path, runs[250].path)
    assert load_segmentation(runs[250].path)[0](torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)
    results = {
        value: evaluate(run.path, tmp_path / f"store{value}", space="store", part="val", allow_leak=True)
        for value, run in runs.items()
    }
    assert {score.label for score in results[250].scores} == {250}
    assert results[250].mean.dice == results[1].mean.dice


def test_without_validation(make_store, finetune_config, tmp_path, monkeypatch):
    store = make_store()
    monkeypatch.setattr(Finetuning, "validate", lambda _: pytest.fail("validated"))
    run = finetune(store, tmp_path / "run", config=finetune_config(validation=False, label_budget=("blobs2",)))
    assert run.info.masks_seen == run.info.subjects_seen == {"Blobs": ["blobs2"]}
    assert not {"best", "best_step"} & run.info.result.keys()
    assert not values(run.path, "validation_dice")


def test_only_labelled_and_validation_masks_are_read(make_store, finetune_config, tmp_path, monkeypatch):
    store = make_store(TWO)
    read, label = set(), type(store).label
    monkeypatch.setattr(type(store), "label", lambda self, case: read.add(case.subject) or label(self, case))
    finetune(store, tmp_path / "run", config=finetune_config(label_budget=("blobs1",)))
    assert read == {"blobs1", *store.split("Blobs").val}


def test_the_best_checkpoint_is_kept(make_store, finetune_config, tmp_path, monkeypatch):
    weights = {}

    def validate(self):
        step = self.step_number()
        weights[step] = {name: tensor.clone() for name, tensor in self.kept.state_dict().items()}
        return {2: 0.1, 4: 0.7, 6: 0.7}[step]

    monkeypatch.setattr(Finetuning, "validate", validate)
    run = finetune(make_store(), tmp_path / "run", config=finetune_config())
    assert (run.info.result["best"], run.info.result["best_step"]) == (0.7, 4)
    assert values(run.path, "validation_dice") == {2: 0.1, 4: 0.7, 6: 0.7}
    saved = run.load_weights()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in weights[4].items())
    assert not all(torch.equal(tensor, saved[name]) for name, tensor in weights[6].items())


def test_validation_dice_is_that_of_the_saved_weights(make_store, finetune_config, tmp_path):
    store = make_store()
    run = finetune(store, tmp_path / "run", config=finetune_config(steps=30, learning_rate=0.02, validate_every=30))
    network, _, _ = load_segmentation(run.path)
    (case,) = store.cases("Blobs", part="val")
    prediction = predict_volume(network, store.image(case), patch_size=16).argmax(0)
    truth = store.label(case) == 1
    dice = 2 * ((prediction == 1) & truth).sum() / ((prediction == 1).sum() + truth.sum())
    assert run.info.result["best"] == pytest.approx(dice)
    assert dice > 0.5  # bright squares are easily learned


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("validation", [True, False])
def test_a_continued_run_equals_an_undisturbed_one(
    make_store, finetune_config, tmp_path, monkeypatch, stop, validation
):
    store = make_store()
    config = finetune_config(validation=validation, validate_every=1)
    finetune(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Stop):
            finetune(store, tmp_path / "stopped", config=config)
    with pytest.raises(RunError, match="is incomplete"):
        load_segmentation(tmp_path / "stopped")
    finetune(store, tmp_path / "stopped", config=config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_the_best_of_before_the_interruption_is_remembered(make_store, finetune_config, tmp_path, monkeypatch):
    store = make_store()
    dice = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.5, 5: 0.1, 6: 0.4}
    monkeypatch.setattr(Finetuning, "validate", lambda self: dice[self.step_number()])
    config = finetune_config(validate_every=1)
    finetune(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stop):
            finetune(store, tmp_path / "stopped", config=config)
    run = finetune(store, tmp_path / "stopped", config=config)
    assert run.info.result["best_step"] == 2
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_from_a_pretrained_run(make_store, finetune_config, pretrained, tmp_path, monkeypatch, said):
    store = make_store(TWO)
    init = pretrained(store)
    starts = {}
    configure = Finetuning.configure_optimizers

    def remember(self):
        starts[self.loaded] = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return configure(self)

    monkeypatch.setattr(Finetuning, "configure_optimizers", remember)
    config = finetune_config(steps=2, init=str(init))
    run = finetune(store, tmp_path / "run", config=config)
    assert "loaded encoder and decoder" in said()
    finetune(store, tmp_path / "scratch", config=finetune_config(steps=2))
    assert "from scratch" in said()
    expected = load_file(init / "weights.safetensors")
    assert all(torch.equal(starts[True][f"unet.{name}"], tensor) for name, tensor in expected.items())
    # A seed gives every arm the same new head; the body is another.
    assert torch.equal(starts[True]["head.0.weight"], starts[False]["head.0.weight"])
    name = "unet.encoder.stages.0.0.conv.weight"
    assert not torch.equal(starts[True][name], starts[False][name])
    # What pre-training saw is seen for good; it read no masks.
    assert run.info.subjects_seen == {
        "Blobs": sorted({*store.split("Blobs").train, *store.split("Blobs").val}),
        "Other": store.split("Other").train,
    }
    assert run.info.masks_seen == {"Blobs": sorted([*store.labelled("Blobs", 2, 0), *store.split("Blobs").val])}


def test_another_seed_is_another_head_and_other_subjects(make_store, finetune_config, tmp_path):
    store = make_store({"Blobs": 12})
    first, second = (
        finetune(store, tmp_path / str(seed), config=finetune_config(steps=1, seed=seed)) for seed in (0, 1)
    )
    assert not torch.equal(first.load_weights()["head.0.weight"], second.load_weights()["head.0.weight"])
    assert first.info.result["labelled"] != second.info.result["labelled"]


def test_a_pretrained_run_brings_its_own_network(make_store, finetune_config, pretrained, tmp_path):
    store = make_store(TWO)
    init = str(pretrained(store))
    options = finetune_config(steps=1, init=init).model_dump(exclude_unset=True)
    with pytest.raises(ConfigError, match="option 'network' is not that of this run"):
        finetune(store, tmp_path / "run", config=FinetuneConfig.checked({**options, "network": "small"}))
    config = FinetuneConfig.checked({name: value for name, value in options.items() if name != "network"})
    run = finetune(store, tmp_path / "run", config=config)
    assert run.info.network.features == (4, 8, 8)
    load_segmentation(run.path)


def test_a_fine_tuned_run_as_the_start_hands_on_what_it_saw(make_store, finetune_config, tmp_path, said):
    store = make_store(TWO)
    first = finetune(store, tmp_path / "first", config=finetune_config(task="Other", steps=1))
    second = finetune(store, tmp_path / "second", config=finetune_config(steps=1, init=str(first.path)))
    assert second.info.subjects_seen["Other"] == first.info.subjects_seen["Other"]
    assert second.info.masks_seen["Other"] == first.info.masks_seen["Other"]
    assert "which count as labels too" not in said()
    config = finetune_config(task="Other", steps=1, init=str(first.path))
    finetune(store, tmp_path / "third", config=config)
    assert f"masks of {len(first.info.masks_seen['Other'])} subjects of Other, which count as labels too" in said()


@pytest.mark.parametrize("init", ["missing", "store"])
def test_a_start_that_is_no_run(make_store, finetune_config, tmp_path, init):
    store = make_store()
    with pytest.raises(RunError, match="is not a run folder"):
        finetune(store, tmp_path / "run", config=finetune_config(init=str(tmp_path / init)))
    assert not (tmp_path / "run").exists()


def test_a_start_that_saw_test_subjects_is_refused(make_store, finetune_config, pretrained, tmp_path):
    init = pretrained(make_store(TWO))
    names = [f"blobs{index}" for index in range(6)]
    other = make_store(TWO, name="other", splits={"Blobs": Split(train=names[2:], val=names[1:2], test=names[:1])})
    with pytest.raises(RunError, match="was trained on 'blobs0', a test subject of task 'Blobs'"):
        finetune(other, tmp_path / "run", config=finetune_config(init=str(init)))


def test_frozen_steps_train_the_head_alone(make_store, finetune_config, pretrained, tmp_path):
    store = make_store(TWO)
    init = pretrained(store)
    config = finetune_config(steps=3, freeze_steps=3, init=str(init), validation=False, warmup=0)
    run = finetune(store, tmp_path / "run", config=config)
    unet, _ = load_unet(run.path)
    expected = load_file(init / "weights.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unet.state_dict().items())
    fresh = finetune(
        store, tmp_path / "fresh", config=finetune_config(steps=3, freeze_steps=3, validation=False, warmup=0)
    )
    torch.manual_seed(0)
    start = build_network(config.network).state_dict()
    unet, _ = load_unet(fresh.path)
    # Nothing was loaded, so nothing is frozen.
    assert not torch.equal(unet.state_dict()["encoder.stages.0.0.conv.weight"], start["encoder.stages.0.0.conv.weight"])


def test_rates_of_loaded_and_new_layers(make_store, finetune_config, pretrained, tmp_path, monkeypatch):
    store = make_store(TWO)
    rates = []
    monkeypatch.setattr(
        Finetuning,
        "after_step",
        lambda self, _: rates.append([group["lr"] for group in self.optimizers().param_groups]),
    )
    config = finetune_config(
        steps=3,
        init=str(pretrained(store)),
        validation=False,
        warmup=0,
        init_lr_factor=0.1,
        head_lr_factor=4,
        freeze_steps=1,
        learning_rate=0.5,
    )
    finetune(store, tmp_path / "run", config=config)
    body, head, auxiliary = zip(*rates, strict=True)
    assert head == pytest.approx([2, 1.5, 0.5])
    assert auxiliary == pytest.approx([0.5, 0.375, 0.125])
    assert body == pytest.approx([0, 0.0375, 0.0125])


def test_pretext_losses_of_the_start_go_on(make_store, finetune_config, pretrained, tmp_path, monkeypatch, said):
    store = make_store(TWO)
    init = str(pretrained(store))
    read, label = set(), type(store).label
    monkeypatch.setattr(type(store), "label", lambda self, case: read.add(case.subject) or label(self, case))
    for weight in (0.0, 0.3, 0.6):
        said()
        auxiliary = {"pretext": {"weight": weight}}
        options = {"label_budget": ("blobs1",), "validation": False, "steps": 3, "auxiliary": auxiliary}
        config = finetune_config(init=init, **options)
        run = finetune(store, tmp_path / str(weight), config=config)
        assert ("losses of 'hierarchical'" in said()) == bool(weight)
        # Images of all training subjects were in the pre-training already; masks are those of the labelled one.
        assert run.info.subjects_seen["Blobs"] == store.split("Blobs").train
        assert run.info.masks_seen == {"Blobs": ["blobs1"]}
        assert set(run.load_weights()) == set(load_file(tmp_path / "0.0" / "weights.safetensors"))
    assert read == {"blobs1"}
    assert not values(tmp_path / "0.0", "pretext/cluster")
    half, whole = (values(tmp_path / name, "pretext/cluster") for name in ("0.3", "0.6"))
    assert whole[1] == pytest.approx(2 * half[1], rel=1e-5)
    assert values(tmp_path / "0.0", "dice_ce")[1] == values(tmp_path / "0.6", "dice_ce")[1]
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("0.0", "0.3"))
    assert not torch.equal(first["unet.encoder.stages.0.0.conv.weight"], second["unet.encoder.stages.0.0.conv.weight"])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_continued_run_with_pretext_equals_an_undisturbed_one(
    make_store, finetune_config, pretrained, tmp_path, monkeypatch, stop
):
    store = make_store(TWO)
    config = finetune_config(init=str(pretrained(store)), steps=5, checkpoint_every=1)
    finetune(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Stop):
            finetune(store, tmp_path / "stopped", config=config)
    finetune(store, tmp_path / "stopped", config=config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_start_from_scratch_can_be_asked_the_same(make_store, finetune_config, tmp_path):
    store = make_store(TWO)
    options = {"label_budget": ("blobs1",), "validation": False, "steps": 2}
    plain = finetune(store, tmp_path / "plain", config=finetune_config(**options))
    asked = finetune(
        store, tmp_path / "asked", config=finetune_config(**options, auxiliary={"pretext": {"objective": "simclr"}})
    )
    assert plain.info.subjects_seen == {"Blobs": ["blobs1"]}
    assert asked.info.subjects_seen == {"Blobs": store.split("Blobs").train}
    assert not values(plain.path, "pretext/image")
    assert values(asked.path, "pretext/image")[1] > 0


def test_an_objective_that_has_nothing_to_ask_of_one_task(make_store, finetune_config, pretrained, tmp_path):
    store = make_store(TWO)
    stages = {"group_stage": 1, "task_stage": 2, "position_stage": 1, "local_stage": 1}
    init = str(pretrained(store, options={"weights": {"task": 1.0}, **stages}))
    with pytest.raises(ConfigError, match=r"cannot use 'hierarchical' on one task.*auxiliary={pretext: false}"):
        finetune(store, tmp_path / "run", config=finetune_config(init=init))
    config = finetune_config(init=init, auxiliary={"pretext": {"batch_size": 1}})
    with pytest.raises(ConfigError, match=r"1 is too small .at least 2 each, or auxiliary={pretext: false}"):
        finetune(store, tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()
    finetune(store, tmp_path / "run", config=finetune_config(init=init, auxiliary={"pretext": False}, steps=1))


def test_a_complete_run_is_left_alone(make_store, finetune_config, tmp_path, said):
    store, config = make_store(), finetune_config(steps=1)
    run = finetune(store, tmp_path / "run", config=config)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    finetune(store, tmp_path / "run", config=config)
    assert "nothing to do" in said()
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    with pytest.raises(RunError, match=r"other options \(label_budget\)"):
        finetune(store, tmp_path / "run", config=finetune_config(steps=1, label_budget=1))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"task": "Z"}, StoreError, "has no task 'Z'"),
        ({"label_budget": 9}, StoreError, "9 labelled subjects requested"),
        ({"label_budget": "0%"}, StoreError, "not a percentage"),
        ({"label_budget": ("blobs5",)}, StoreError, "not a training subject"),
        ({"patch_size": 18}, ConfigError, "not a multiple"),
    ],
)
def test_options_that_do_not_fit(make_store, finetune_config, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        finetune(make_store(), tmp_path / "run", config=finetune_config(**given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_validation_computes_as_the_run_does(make_store, finetune_config, tmp_path, monkeypatch, precision):
    asked = []

    def watched(network, image, **options):
        asked.append(options["amp"])
        yield predict_volume(network, image, **options)

    monkeypatch.setattr(STAGE, "predict_slabs", watched)
    finetune(make_store(), tmp_path / "run", config=finetune_config(steps=1, precision=precision))
    assert set(asked) == {precision == "bf16"}


@pytest.mark.parametrize("case", ["nobody", "no masks"])
def test_nobody_to_validate_on(make_store, finetune_config, tmp_path, case):
    names = [f"blobs{index}" for index in range(6)]
    splits = {"Blobs": Split(train=names[:4], val=[], test=names[4:])} if case == "nobody" else {}
    store = make_store(splits=splits, unlabelled={"Blobs": (4,)} if case == "no masks" else {})
    with pytest.raises(ConfigError, match=r"no validation subject.*--no-validation"):
        finetune(store, tmp_path / "run", config=finetune_config())
    assert not (tmp_path / "run").exists()
    assert finetune(store, tmp_path / "run", config=finetune_config(steps=1, validation=False)).info.complete


def test_masks_without_any_label_are_refused(make_store, finetune_config, tmp_path):
    store = make_store()
    for case in store.index.cases:
        object.__setattr__(case, "label_voxels", {})
    with pytest.raises(StoreError, match=r"no mask of .* of 'Blobs' holds a label"):
        finetune(store, tmp_path / "run", config=finetune_config())
    assert not (tmp_path / "run").exists()


def test_validation_masks_that_are_empty(make_store, finetune_config, tmp_path, monkeypatch, said):
    store = make_store()
    np.save(store.path / "labels" / "Blobs" / "blobs4.npy", np.zeros((5, 28, 32), np.uint8))
    monkeypatch.setattr(
        STAGE,
        "predict_slabs",
        lambda _, image, **__: [np.stack((np.ones(image.shape), np.zeros(image.shape)))],
    )
    run = finetune(store, tmp_path / "run", config=finetune_config(steps=4, validate_every=2))
    # Nothing to find and nothing found says nothing: the weights are not those of the first validation.
    assert run.info.result["best"] == 0
    assert run.info.result["best_step"] == 4
    assert "no validation has found any label" in said()
    load_segmentation(run.path)


def test_a_loss_that_is_not_a_number_stops_the_run(make_store, finetune_config, tmp_path, monkeypatch):
    original = Finetuning.losses

    def losses(self, batch, step, generator):
        found = original(self, batch, step, generator)
        return {name: loss * (float("nan") if step == 3 else 1) for name, loss in found.items()}

    monkeypatch.setattr(Finetuning, "losses", losses)
    with pytest.raises(TrainingError, match=r"loss 'dice_ce' is not finite at step 4.* batch of \w+/\w+"):
        finetune(make_store(), tmp_path / "run", config=finetune_config(validation=False))
    (saved,) = (tmp_path / "run" / "checkpoint").glob("step-*")
    assert saved.name == "step-2"
    assert all(tensor.isfinite().all() for tensor in load_file(saved / "network.safetensors").values())


def test_nothing_is_pickled(make_store, finetune_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Stop):
            finetune(make_store(), tmp_path / "run", config=finetune_config())
    files = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*") if path.is_file()}
    kinds = {path.suffix for path in files if "tfevents" not in path.name and path.name != ".lock"}
    assert kinds <= {".json", ".csv", ".safetensors", ".yaml"}
    assert {"network.safetensors", "optimizer.safetensors", "state.json"} <= {path.name for path in files}


def test_the_run_keeps_the_moving_average_of_the_weights(make_store, finetune_config, tmp_path, monkeypatch):
    store, seen, after_step = make_store(), [], Finetuning.after_step

    def watched(self, step):
        seen.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        after_step(self, step)

    monkeypatch.setattr(Finetuning, "after_step", watched)
    start = {}
    monkeypatch.setattr(Finetuning, "configure_optimizers", _with_start(start, Finetuning.configure_optimizers))
    run = finetune(store, tmp_path / "run", config=finetune_config(steps=3, validation=False, ema_decay=0.2))
    name = "head.0.weight"
    average = start[name]
    for step, weights in enumerate(seen, start=1):
        decay = min(0.2, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights[name]
    torch.testing.assert_close(run.load_weights()[name], average)
    last = finetune(store, tmp_path / "last", config=finetune_config(steps=3, validation=False, ema_decay=0))
    assert torch.equal(last.load_weights()[name], seen[-1][name])


def _with_start(start, original):
    def configure(self):
        start.update({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        return original(self)

    return configure


def test_update_average():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for layer, value in ((average, 1.0), (network, 3.0)):
        torch.nn.init.constant_(layer.weight, value)
        torch.nn.init.constant_(layer.bias, value)
    update_average(average.requires_grad_(False), network, 0.75, 10_000)
    assert (average.weight.item(), average.bias.item()) == (1.5, 1.5)


def test_configuration_of_the_run(make_store, finetune_config, tmp_path):
    config = finetune_config(steps=1, label_budget="50%")
    run = finetune(make_store().path, str(tmp_path / "run"), config=config)
    assert isinstance(run.config, FinetuneConfig)
    # What is kept spells out the options of what is on.
    auxiliary = {"pretext": PretextOptions().model_dump(mode="json"), "self_training": False}
    assert Run.open(run.path).config == config.model_copy(update={"auxiliary": auxiliary})
    assert len(run.info.result["labelled"]) == 2


def test_three_subjects_and_two_slices_of_each(make_store, finetune_config, tmp_path, said):
    store = make_store()
    run = finetune(store, tmp_path / "run", config=finetune_config(label_budget="3@2", steps=1, validation=False))
    assert (run.config.label_budget, run.config.labelled_slices) == (3, 2)
    assert len(run.info.masks_seen["Blobs"]) == 3
    assert "2 slices of each case" in said()
    # Slices apart from each other say nothing of components in space.
    assert run.info.components.labels == ()


def test_keywords_go_over_a_configuration(make_store, finetune_config, tmp_path):
    store = make_store()
    base = finetune_config(steps=3, validation=False)
    run = finetune(store, tmp_path / "run", config=base, labels="1@2", steps=1, auxiliary={"pretext": False}, warmup=0)
    assert (run.config.label_budget, run.config.labelled_slices, run.config.steps, run.config.warmup) == (1, 2, 1, 0)
    assert run.config.auxiliary == {"pretext": False, "self_training": False}
    assert run.config.patch_size == base.patch_size
    with pytest.raises(ConfigError, match=r"no option 'step'; did you mean 'steps'\?"):
        finetune(store, tmp_path / "other", config=base, step=1)


def test_a_damaged_store_is_found_before_training(make_store, finetune_config, tmp_path):
    store = make_store()
    array = store.path / "images" / "Blobs" / "blobs2.npy"
    array.write_bytes(array.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"blobs2.npy"):
        finetune(store, tmp_path / "run", config=finetune_config())
    assert not (tmp_path / "run").exists()
