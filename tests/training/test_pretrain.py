from __future__ import annotations

import csv
import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from hssl.config import NetworkConfig, PretrainConfig
from hssl.errors import ConfigError, RunError, StoreError, TrainingError
from hssl.files import locked
from hssl.networks import UNet
from hssl.probing import probe
from hssl.runs import Run, load_unet
from hssl.store import Split
from hssl.text import duration
from hssl.training.checks import check_patch
from hssl.training.data import WindowData
from hssl.training.loop import TrainingCallback
from hssl.training.pretrain import Pretraining, pretrain

THREE = {"A": 5, "B": 5, "C": 5}
GROUP_ALONE = {"weights": {"group": 1}}


class Stop(Exception):
    """As if the power failed."""


def stop_at(monkeypatch, stage, step):
    """Stops a run when it has taken `step` steps, before anything is logged or saved of the last."""
    original = stage.after_step

    def after_step(self, number):
        original(self, number)
        if number == step:
            raise Stop

    monkeypatch.setattr(stage, "after_step", after_step)


def test_an_interrupt_comes_through_and_the_next_one_too(make_store, pretrain_config, tmp_path, monkeypatch):
    def press(self, number):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "after_step", press)
        with pytest.raises(KeyboardInterrupt):
            pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config())
    assert signal.getsignal(signal.SIGINT) is before


def test_the_end_from_outside_is_no_success(make_store, pretrain_config, tmp_path, monkeypatch, said):
    stopped = []
    stop = TrainingCallback.on_exception
    monkeypatch.setattr(
        TrainingCallback, "on_exception", lambda self, *rest: (stopped.append(rest[-1]), stop(self, *rest))
    )
    monkeypatch.setattr(Pretraining, "after_step", lambda self, number: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config())
    assert ended.value.code == 143
    assert "SIGTERM" in said()
    assert len(stopped) == 1  # which closes the progress bar


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def assert_same_runs(first, second):
    weights, others = (load_file(path / "weights.safetensors") for path in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    results = [Run.open(path).info.result | {"seconds": 0} for path in (first, second)]
    assert results[0] == results[1]
    assert "loss" in results[0]["losses"]


def test_what_a_run_leaves(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    run = pretrain(store, tmp_path / "run", config=pretrain_config())
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    curves = {name for name in files if name.startswith("tensorboard/")}
    assert files - curves == {
        "config.json",
        "groups.json",
        "groups.png",
        "metrics.csv",
        "progress.png",
        "run.json",
        "weights.safetensors",
    }
    assert any("tfevents" in name for name in curves)
    assert run.info.complete
    assert run.info.subjects_seen == {task: store.split(task).train for task in THREE}
    assert run.info.masks_seen == {}
    assert run.info.provenance["data"] == {"store": store.hash, "split": store.split_hash}
    assert {"loss", "task", "image", "local", "restoration"} <= run.info.result["losses"].keys()
    header, *lines = rows(run.path)
    assert header == ["step", "name", "value"]
    assert {int(line[0]) for line in lines} == set(range(1, 7))
    assert {line[1] for line in lines} >= {"loss", "group", "task", "image", "local", "restoration", "learning_rate"}
    network, _ = load_unet(run.path)
    assert network(torch.rand(1, 1, 16, 16)).shape == (1, 4, 16, 16)


def test_going_on_from_a_run(make_store, pretrain_config, tmp_path, monkeypatch, said):
    store = make_store(THREE)
    first = pretrain(store, tmp_path / "first", config=pretrain_config())
    starts = []
    configure = Pretraining.configure_optimizers

    def remember(self):
        starts.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        return configure(self)

    monkeypatch.setattr(Pretraining, "configure_optimizers", remember)
    config = pretrain_config(steps=2, tasks=("B",), init=str(first.path))
    second = pretrain(store, tmp_path / "second", config=config)
    assert "loaded encoder and decoder" in said()
    expected = first.load_weights()
    assert all(torch.equal(starts[0][name], tensor) for name, tensor in expected.items())
    assert not any(torch.equal(expected[name], new) for name, new in second.load_weights().items() if "conv.w" in name)
    # What the first saw is seen for good.
    assert second.info.subjects_seen == first.info.subjects_seen
    assert "init_weights_sha256" in second.info.provenance


def test_going_on_brings_the_network_along(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    first = pretrain(store, tmp_path / "first", config=pretrain_config(steps=1))
    options = pretrain_config(steps=1, init=str(first.path)).model_dump(exclude_unset=True)
    with pytest.raises(
        ConfigError, match=r"option 'network' is not that of this run .*writes it into files, remove it"
    ):
        pretrain(store, tmp_path / "second", config=PretrainConfig.checked({**options, "network": "small"}))
    assert not (tmp_path / "second").exists()
    config = PretrainConfig.checked({name: value for name, value in options.items() if name != "network"})
    assert pretrain(store, tmp_path / "second", config=config).info.network == first.info.network


def test_going_on_from_weights_that_have_changed_is_refused(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    first = pretrain(store, tmp_path / "first", config=pretrain_config(steps=1))
    config = pretrain_config(steps=1, init=str(first.path))
    pretrain(store, tmp_path / "second", config=config)
    assert pretrain(store, tmp_path / "second", config=config).info.complete
    first.save_weights(load_unet(tmp_path / "second")[0])
    first.finish({})  # as if it had been trained anew
    with pytest.raises(RunError, match="started from other weights than 'init' holds now"):
        pretrain(store, tmp_path / "second", config=config)


def test_going_on_where_test_subjects_were_seen_is_refused(make_store, pretrain_config, tmp_path):
    first = pretrain(make_store(THREE), tmp_path / "first", config=pretrain_config(steps=1))
    seen = first.info.subjects_seen["A"]
    names = [*seen, *(f"a{index}" for index in range(5) if f"a{index}" not in seen)]
    split = Split(train=names[2:], val=names[1:2], test=names[:1])
    other = make_store(THREE, name="other", splits={"A": split})
    with pytest.raises(RunError, match=f"was trained on '{names[0]}', a test subject of task 'A'"):
        pretrain(other, tmp_path / "second", config=pretrain_config(steps=1, init=str(first.path)))


def test_training_changes_the_weights(make_store, pretrain_config, tmp_path):
    config = pretrain_config(steps=2, warmup=0)
    run = pretrain(make_store(THREE), tmp_path / "run", config=config)
    torch.manual_seed(config.seed)
    start = UNet(config.network).state_dict()
    assert not any(torch.equal(start[name], tensor) for name, tensor in run.load_weights().items() if "conv.w" in name)


def test_no_mask_is_read(make_store, pretrain_config, tmp_path, monkeypatch):
    store = make_store(THREE)
    monkeypatch.setattr(type(store), "label", lambda *_: pytest.fail("a mask was read"))
    pretrain(store, tmp_path / "run", config=pretrain_config(steps=2))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_continued_run_equals_an_undisturbed_one(make_store, pretrain_config, tmp_path, monkeypatch, stop):
    """Bit by bit: stopped before the first checkpoint, before the groups are found (step 4), and after."""
    store = make_store(THREE)
    config = pretrain_config(group_start=0.7)
    pretrain(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        stop_at(patch, Pretraining, stop)
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "stopped", config=config)
    saved = sorted((tmp_path / "stopped").glob("checkpoint/step-*"))
    assert [path.name for path in saved] == ([f"step-{stop - 1}"] if stop > 1 else [])
    with pytest.raises(RunError, match="is incomplete"):
        load_unet(tmp_path / "stopped")
    pretrain(store, tmp_path / "stopped", config=config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    groups = [json.loads((tmp_path / name / "groups.json").read_text()) for name in ("whole", "stopped")]
    assert groups[0] == groups[1]


def test_stopped_after_the_last_checkpoint(make_store, pretrain_config, tmp_path, monkeypatch):
    store, config = make_store(THREE), pretrain_config(steps=4)
    pretrain(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        patch.setattr("hssl.runs.run.Run.finish", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "stopped", config=config)
    run = pretrain(store, tmp_path / "stopped", config=config)
    assert run.info.complete
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_half_a_checkpoint_is_harmless(make_store, pretrain_config, tmp_path, monkeypatch):
    store, config = make_store(THREE), pretrain_config(steps=4)
    pretrain(store, tmp_path / "whole", config=config)
    with monkeypatch.context() as patch:
        stop_at(patch, Pretraining, 3)
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "stopped", config=config)
    half = tmp_path / "stopped" / "checkpoint" / ".step-4.tmp"
    half.mkdir()
    (half / "network.safetensors").write_bytes(b"half")
    pretrain(store, tmp_path / "stopped", config=config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        pretrain(store, tmp_path / name, config=pretrain_config(steps=2, seed=seed))
    assert_same_runs(tmp_path / "one", tmp_path / "again")
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("conv.weight"))


def test_a_complete_run_is_left_alone(make_store, pretrain_config, tmp_path, said):
    store, config = make_store(THREE), pretrain_config(steps=2)
    pretrain(store, tmp_path / "run", config=config)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("run/*") if path.is_file()}
    pretrain(store, tmp_path / "run", config=config)
    assert "nothing to do" in said()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("run/*") if path.is_file()}
    assert after == before


def test_other_options_on_the_same_folder(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    pretrain(store, tmp_path / "run", config=pretrain_config(steps=2))
    with pytest.raises(RunError, match=r"other options \(steps, batch_size\)"):
        pretrain(store, tmp_path / "run", config=pretrain_config(steps=3, batch_size=6))
    with pytest.raises(RunError, match="from other data"):
        pretrain(make_store({"A": 4}, name="other"), tmp_path / "run", config=pretrain_config(steps=2))


def test_a_single_domain_is_the_same_command(make_store, pretrain_config, tmp_path):
    store = make_store(THREE)
    run = pretrain(store, tmp_path / "run", config=pretrain_config(steps=2, tasks=("B",)))
    assert run.info.subjects_seen == {"B": store.split("B").train}
    names = {line[1] for line in rows(run.path)}
    assert {"image", "local", "restoration"} <= names
    assert not {"group", "task"} & names
    assert not (run.path / "groups.json").exists()


def test_groups_that_are_set(make_store, pretrain_config, tmp_path):
    config = pretrain_config(steps=2, groups={"A": "x", "B": "y", "C": "x"})
    run = pretrain(make_store(THREE), tmp_path / "run", config=config)
    assert json.loads((run.path / "groups.json").read_text())["groups"] == {"A": 0, "B": 1, "C": 0}
    assert float(next(line[2] for line in rows(run.path) if line[1] == "group")) > 0


def test_so_many_groups_as_are_asked_for_are_found(make_store, pretrain_config, tmp_path):
    run = pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(steps=2, groups=2))
    assert sorted(set(json.loads((run.path / "groups.json").read_text())["groups"].values())) == [0, 1]
    with pytest.raises(ConfigError, match="cannot find 3 groups of 3 tasks"):
        pretrain(make_store(THREE, name="other"), tmp_path / "more", config=pretrain_config(steps=2, groups=3))
    assert not (tmp_path / "more").exists()


def test_groups_count_once_they_are_found(make_store, pretrain_config, tmp_path):
    run = pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(group_start=0.5))
    values = [float(line[2]) for line in rows(run.path) if line[1] == "group"]
    assert values[:3] == [0, 0, 0]
    assert min(values[3:]) > 0


def test_no_groups(make_store, pretrain_config, tmp_path):
    run = pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(steps=2, groups="none"))
    assert not (run.path / "groups.json").exists()
    assert "group" not in run.info.result["losses"]


def test_groups_are_not_looked_for_where_no_level_asks(make_store, pretrain_config, tmp_path):
    config = pretrain_config(steps=2, domains_per_batch=1, options={"weights": {"restoration": 1}})
    run = pretrain(make_store(THREE), tmp_path / "run", config=config)
    assert not (run.path / "groups.json").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tasks": ("Z",)}, StoreError, "has no task 'Z'"),
        ({"objective": "nowhere.at:All"}, ConfigError, "objective 'nowhere.at:All' cannot be imported"),
        ({"options": {"magic": 1}}, ConfigError, "option 'magic'"),
        ({"groups": {"A": "x"}}, ConfigError, "task 'B' has none"),
        ({"groups": "none", "options": GROUP_ALONE}, ConfigError, "no level is on"),
        ({"accelerator": "tpu"}, ConfigError, "accelerator 'tpu' with devices 1 cannot be used here"),
        ({"domains_per_batch": 1, "options": GROUP_ALONE}, ConfigError, "domains_per_batch 1"),
        ({"domains_per_batch": 1, "devices": 2, "options": GROUP_ALONE}, ConfigError, "domains_per_batch 1"),
        ({"batch_size": 1}, ConfigError, r"batch size 1 is too small \(take 2 or more\)"),
        ({"devices": 3}, ConfigError, r"batch size 4 is too small for each of 3 devices \(take 6 or more\)"),
        ({"batch_size": 5, "devices": 2}, ConfigError, r"5 cannot be shared by 2 devices \(take a multiple of 2\)"),
        ({"patch_size": 5}, ConfigError, r"patch size 5 is not a multiple of 4 \(take 8\)"),
        ({"accelerator": "abacus"}, ConfigError, "accelerator 'abacus' with devices 1 cannot be used here"),
        ({"patch_size": 18}, ConfigError, r"patch size 18 is not a multiple of 4 \(take 16\)"),
    ],
)
def test_options_that_do_not_fit(make_store, pretrain_config, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(**given))
    assert not (tmp_path / "run").exists()  # so that the corrected command finds no run with other options


def poisoned(monkeypatch, step, name, value):
    original = Pretraining.losses

    def losses(self, batch, number, generator):
        found = original(self, batch, number, generator)
        return found | ({name: found[name] * 0 + value} if number >= step else {})

    monkeypatch.setattr(Pretraining, "losses", losses)


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_a_number_stops_the_run(make_store, pretrain_config, tmp_path, monkeypatch, log_every):
    # The third step is poisoned; however seldom losses are logged, no checkpoint may come of it.
    poisoned(monkeypatch, 2, "restoration", float("nan"))
    config = pretrain_config(log_every=log_every, checkpoint_every=2 if log_every == 1 else 1)
    with pytest.raises(
        TrainingError, match=r"loss 'restoration' is not finite at step 3.*train again in another folder"
    ):
        pretrain(make_store(THREE), tmp_path / "run", config=config)
    (saved,) = (tmp_path / "run" / "checkpoint").glob("step-*")
    assert saved.name == "step-2"
    assert all(tensor.isfinite().all() for tensor in load_file(saved / "network.safetensors").values())


def test_a_loss_that_is_not_a_number_names_its_batch(make_store, pretrain_config, tmp_path, monkeypatch):
    poisoned(monkeypatch, 1, "restoration", float("nan"))
    store, config = make_store(THREE), pretrain_config(steps=4, log_every=4, checkpoint_every=4)
    data, batches = WindowData.__getitem__, {}
    monkeypatch.setattr(WindowData, "__getitem__", lambda self, n: batches.setdefault(n, data(self, n)))
    with pytest.raises(TrainingError, match="at step 4; it began in step 2, with a batch of ") as raised:
        pretrain(store, tmp_path / "run", config=config)
    cases = store.cases(part="train")
    named = raised.value.what.partition(" batch of ")[2].split(", ")
    assert named == list(dict.fromkeys(f"{cases[n].task}/{cases[n].id}" for n in batches[1].origin.case.tolist()))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_went_missing(make_store, pretrain_config, tmp_path, monkeypatch, workers):
    store = make_store(THREE)
    monkeypatch.setattr(sys.modules["hssl.training.pretrain"], "announce", lambda *_: None)  # which would read it first
    for path in (store.path / "images" / "B").iterdir():
        path.unlink()
    with pytest.raises(StoreError, match=r"^\S*npy: cannot be read: [^(]* \(aggregate again\)$") as raised:
        pretrain(store, tmp_path / "run", config=pretrain_config(workers=workers))
    assert raised.value.path.parent == store.path / "images" / "B"


def test_a_collapse_stops_the_run(make_store, pretrain_config, tmp_path, monkeypatch):
    poisoned(monkeypatch, 2, "watch/spread", 1e-4)
    with pytest.raises(TrainingError, match="have collapsed to one point"):
        pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config())
    assert [path.name for path in (tmp_path / "run" / "checkpoint").glob("step-*")] == ["step-2"]


def test_half_precision(make_store, pretrain_config, tmp_path):
    run = pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(steps=2, precision="bf16"))
    assert {tensor.dtype for tensor in run.load_weights().values()} == {torch.float32}


def test_the_start_says_what_is_coming(make_store, pretrain_config, tmp_path, said):
    pretrain(make_store(THREE), tmp_path / "run", config=pretrain_config(steps=2))
    text = said()
    assert "M parameters, 3 tasks, 2 steps of 4 images in two views at 16x16; about" in text
    assert "groups: " in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_two_trainings_in_one_folder(make_store, pretrain_config, tmp_path, monkeypatch):
    store, config = make_store(), pretrain_config(steps=2)
    checkpoints = tmp_path / "run" / "checkpoint"
    with monkeypatch.context() as patch:
        stop_at(patch, Pretraining, 1)
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "run", config=config)
    with locked(checkpoints, "training"), pytest.raises(RunError, match="another training is running"):
        pretrain(store, tmp_path / "run", config=config)
    assert pretrain(store, tmp_path / "run", config=config).info.complete
    assert not checkpoints.exists()


@pytest.mark.parametrize(
    "lack", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("[enforce] DefaultCPUAllocator: can't")]
)
def test_too_little_memory_is_one_line(make_store, pretrain_config, tmp_path, monkeypatch, lack):
    def fail(*_):
        raise lack

    monkeypatch.setattr(sys.modules["hssl.training.pretrain"], "compute_losses", fail)
    with pytest.raises(TrainingError, match="does not fit into memory"):
        pretrain(make_store(), tmp_path / "run", config=pretrain_config())
    assert not (tmp_path / "run").exists()


def test_a_job_of_slurm_keeps_to_our_checkpoints(make_store, pretrain_config, tmp_path, monkeypatch):
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another project, which Lightning would load")
    before, seen = signal.getsignal(signal.SIGUSR1), []

    def look(self, step):
        seen.append(signal.getsignal(signal.SIGUSR1))

    monkeypatch.setattr(Pretraining, "after_step", look)
    assert pretrain(make_store(), tmp_path / "run", config=pretrain_config(steps=2)).info.complete
    assert seen == [before, before]


def test_a_job_of_several_tasks_for_one_device(make_store, pretrain_config, tmp_path, monkeypatch):
    for name, value in {"NTASKS": "4", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="--ntasks"):
        pretrain(make_store(), tmp_path / "run", config=pretrain_config())


def test_going_on_in_another_precision_is_said(make_store, pretrain_config, tmp_path, monkeypatch, said):
    store, config = make_store(), pretrain_config(checkpoint_every=2, precision="auto")
    monkeypatch.setattr("hssl.training.loop.bf16_pays", lambda _: False)
    with monkeypatch.context() as patch:
        stop_at(patch, Pretraining, 3)
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "run", config=config)
    monkeypatch.setattr("hssl.training.loop.bf16_pays", lambda _: True)
    said()
    assert pretrain(store, tmp_path / "run", config=config).info.complete
    assert "continues with cpu, bf16-mixed after cpu, 32-true" in said()


def test_a_run_shorter_than_its_warmup_says_so(make_store, pretrain_config, tmp_path, said):
    pretrain(make_store(), tmp_path / "run", config=pretrain_config(steps=2, warmup=5))
    assert "2 steps are no more than the warm-up of 5" in said()


def test_a_task_is_named_once(pretrain_config):
    with pytest.raises(ConfigError, match="task 'A' is named twice"):
        PretrainConfig.checked({"tasks": ["A", "B", "A"]})


def test_check_patch():
    network = UNet(NetworkConfig(features=(2, 2, 2), strides=((1, 1), (2, 2), (3, 2))))
    check_patch(24, network)
    with pytest.raises(ConfigError, match="patch size 20 is not a multiple of 12"):
        check_patch(20, network)
    with pytest.raises(ConfigError, match="one pixel"):
        check_patch(4, UNet(NetworkConfig(features=(2, 2, 2))))


def test_a_probe_while_training_changes_nothing(make_store, pretrain_config, tmp_path):
    store = make_store({"A": 5, "B": 5})
    plain = pretrain(store, tmp_path / "plain", config=pretrain_config(steps=4))
    probed = pretrain(store, tmp_path / "probed", config=pretrain_config(steps=4, probe_every=3))
    first, second = plain.load_weights(), probed.load_weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (probed.path / "metrics.csv").read_text().splitlines()
    found = {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in lines if "probe/" in line}
    assert sorted(found) == [(step, f"probe/{task}") for step in "34" for task in "AB"]
    last = probe(probed.path, store)
    assert found["4", "probe/A"] == pytest.approx(next(s.linear for s in last.scores if s.label == "mean"), abs=1e-6)
    assert "every 3 steps" in probed.info.provenance["probed"]
    assert "probed" not in plain.info.provenance
    assert not probed.info.masks_seen
