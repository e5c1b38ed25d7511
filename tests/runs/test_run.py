from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW

import hssl
from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError, RunError
from hssl.networks import SegmentationNetwork, UNet
from hssl.runs.run import Run, RunInfo, load_segmentation, load_unet, provenance, versions


def info(config, **given) -> RunInfo:
    values = {
        "stage": "pretrain" if isinstance(config, PretrainConfig) else "finetune",
        "network": config.network,
        "subjects_seen": {"Blobs": ["b"]},
        "masks_seen": {},
        "provenance": provenance(config, SimpleNamespace(hash="s", split_hash="p", path=Path("store"))),
    }
    return RunInfo.model_validate({**values, **given})


@pytest.fixture
def run(tmp_path, pretrain_config) -> Run:
    config = pretrain_config()
    return created(tmp_path / "run", config)


def created(path: Path, config: PretrainConfig | FinetuneConfig, **given: object) -> Run:
    return Run.prepare(path, config, info(config, **given)).create()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def trained(seed: int) -> tuple[nn.Module, AdamW]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        step(network, optimizer)
    return network, optimizer


def step(network: nn.Module, optimizer: AdamW) -> None:
    optimizer.zero_grad()
    network(torch.linspace(0, 1, 6).view(2, 3)).square().sum().backward()
    optimizer.step()


def test_a_new_run_can_be_opened(run):
    opened = Run.open(run.path)
    assert opened.config == run.config
    assert opened.info == run.info
    assert names(run.path) == {"config.json", "run.json"}
    assert not opened.info.complete
    assert opened.info.provenance["seed"] == 0
    assert {"hssl", "torch", "python"} <= opened.info.provenance["versions"].keys()


def test_the_same_options_continue_a_run(run):
    written = (run.path / "run.json").stat().st_mtime_ns
    again = Run.prepare(run.path, run.config, info(run.config)).create()
    assert again.info == run.info
    assert (run.path / "run.json").stat().st_mtime_ns == written


def test_nothing_is_written_before_create(tmp_path, pretrain_config):
    config = pretrain_config()
    run = Run.prepare(tmp_path / "run", config, info(config))
    assert not names(tmp_path)
    run.create()
    assert names(tmp_path / "run") == {"config.json", "run.json"}


def test_options_given_as_other_types_are_the_same_options(tmp_path, pretrain_config):
    config = pretrain_config(options={"weights": {"image": 1}, "places": (1, 2)})
    created(tmp_path / "run", config)
    assert Run.prepare(tmp_path / "run", config, info(config)).create().config.options["weights"] == {"image": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 9}, r"other options \(steps\)"),
        ({"seed": 1, "view": {"rotate": 3}}, r"other options \(seed, view\)"),
        ({"network": "small"}, r"other options \(network\)"),
    ],
)
def test_other_options_are_refused_by_name(run, pretrain_config, given, message):
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    config = pretrain_config(**given)
    with pytest.raises(RunError, match=message):
        Run.prepare(run.path, config, info(config))
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_options_that_change_nothing_may_change(run, pretrain_config):
    config = pretrain_config(workers=3, log_every=1, checkpoint_every=7, loggers=())
    assert Run.prepare(run.path, config, info(config)).create().path == run.path


def test_another_stage_is_refused(run, finetune_config):
    config = finetune_config()
    with pytest.raises(RunError, match="another stage"):
        Run.prepare(run.path, config, info(config))


def test_other_data_is_refused(run):
    other = info(
        run.config, provenance=provenance(run.config, SimpleNamespace(hash="other", split_hash="p", path=Path("store")))
    )
    with pytest.raises(RunError, match="from other data"):
        Run.prepare(run.path, run.config, other)


def test_a_folder_with_something_else_is_left_alone(tmp_path, pretrain_config):
    (tmp_path / "thesis.txt").write_text("years of work")
    config = pretrain_config()
    with pytest.raises(RunError, match="is not a run folder, and not empty"):
        Run.prepare(tmp_path, config, info(config))
    assert names(tmp_path) == {"thesis.txt"}
    with pytest.raises(RunError, match="is not a run folder"):
        Run.prepare(tmp_path / "thesis.txt", config, info(config))


def test_a_start_that_was_killed_early_can_be_given_again(tmp_path, pretrain_config):
    config = pretrain_config()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / ".partial-0123abcd-run.json").write_text("{")
    Run.prepare(tmp_path, config, info(config)).create()
    assert Run.open(tmp_path).config == config


def test_several_processes_may_make_one_run(tmp_path, pretrain_config):
    # As under srun, where each rank starts by itself.
    config = pretrain_config()
    runs = [Run.prepare(tmp_path / "run", config, info(config)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(Run.create, runs))
    assert all(run is given for run, given in zip(made, runs, strict=True))
    assert names(tmp_path / "run") == {"config.json", "run.json"}


def test_what_is_no_run_cannot_be_opened(tmp_path, run):
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        load_unet(tmp_path / "missing")
    (run.path / "config.json").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(run.path)


@pytest.mark.parametrize("text", ["", "{", '{"stage": "pretrain"}', '{"stage": "bake"}'])
def test_damaged_run_files(run, text):
    (run.path / "run.json").write_text(text)
    with pytest.raises(RunError) as caught:
        Run.open(run.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", [{}, {"format": 1}])
def test_a_run_of_an_older_version_is_refused_by_its_format(run, told):
    content = json.loads((run.path / "run.json").read_text())
    assert content.pop("format") == 2
    (run.path / "run.json").write_text(json.dumps(content | told | {"field_of_the_past": 1}))
    with pytest.raises(RunError, match=r"run: is of format 1, and this hssl reads format 2 \(.*train again"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ("run.json", {"format": 3, "stage": "bake"}, r"is of format 3, and this hssl reads format 2 \(.*update hssl"),
        ("run.json", {"colour": 1}, r"has a field 'colour' that this hssl does not know \(.*update hssl"),
        ("config.json", {"view": {"tilt": 1}}, r"has a field 'view\.tilt' that this hssl does not know"),
        ("run.json", {"complete": "perhaps"}, r"cannot be read: complete: Input should be a valid boolean"),
    ],
)
def test_a_run_of_a_newer_hssl_is_named(run, file, more, message):
    content = json.loads((run.path / file).read_text())
    (run.path / file).write_text(json.dumps(content | more))
    with pytest.raises(RunError, match=message):
        Run.open(run.path)


def test_a_checkpoint_brings_everything_back(run):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {"best": 0.25})
    copy, fresh = trained(1)
    fresh = AdamW(copy.parameters(), lr=0.1)
    assert run.load_checkpoint({"net": copy}, fresh) == {"step": 3, "best": 0.25}
    for _ in range(2):
        step(network, optimizer)
        step(copy, fresh)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), copy.parameters(), strict=True))


def test_only_the_latest_checkpoint_is_kept(run):
    network, optimizer = trained(0)
    for number in (2, 10, 4):
        run.save_checkpoint(number, {"net": network}, optimizer, {})
    assert names(run.path / "checkpoint") == {"step-4"}
    assert names(run.path / "checkpoint" / "step-4") == {"net.safetensors", "optimizer.safetensors", "state.json"}


def test_the_later_of_two_checkpoints_counts(run):
    network, optimizer = trained(0)
    run.save_checkpoint(9, {"net": network}, optimizer, {})
    (run.path / "checkpoint" / "step-9").rename(run.path / "kept")
    run.save_checkpoint(10, {"net": network}, optimizer, {})
    (run.path / "kept").rename(run.path / "checkpoint" / "step-9")  # as if stopped before it was dropped
    assert run.load_checkpoint({"net": network}, optimizer)["step"] == 10


def test_tensors_of_the_latest_checkpoint_can_be_looked_at(run):
    with pytest.raises(RunError, match="has no checkpoint yet"):
        run.checkpoint_tensors("net")
    assert run.latest_step is None
    network, optimizer = trained(0)
    for number in (9, 10):
        run.save_checkpoint(number, {"net": network}, optimizer, {})
    step, found = run.checkpoint_tensors("average", "net")
    assert (step, run.latest_step, set(found)) == (10, 10, {"net"})
    assert all(torch.equal(found["net"][name], value) for name, value in network.state_dict().items())
    (run.path / "checkpoint" / "step-10" / "net.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"net\.safetensors"):
        run.checkpoint_tensors("net")


def test_half_a_checkpoint_is_harmless(run, monkeypatch):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step(network, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr("hssl.runs.run.write_text", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run.save_checkpoint(4, {"net": network}, optimizer, {})
    assert names(run.path / "checkpoint") == {"step-3", ".step-4.tmp"}
    copy, fresh = trained(1)
    assert run.load_checkpoint({"net": copy}, fresh)["step"] == 3
    assert all(torch.equal(copy.state_dict()[name], tensor) for name, tensor in expected.items())
    run.save_checkpoint(4, {"net": network}, optimizer, {})
    assert names(run.path / "checkpoint") == {"step-4"}


def test_a_damaged_checkpoint_is_named(run):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    file = run.path / "checkpoint" / "step-3" / "net.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"step-3: is damaged: net\.safetensors: has changed since"):
        run.load_checkpoint({"net": network}, optimizer)


@pytest.mark.parametrize("file", ["net.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_emptied_by_a_power_cut(run, file):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    (run.path / "checkpoint" / "step-3" / file).write_bytes(b"")
    with pytest.raises(RunError, match=r"step-3: is damaged: .*\(remove this folder, and the run begins again\)"):
        run.load_checkpoint({"net": network}, optimizer)


def test_a_checkpoint_of_another_network(run):
    run.save_checkpoint(3, {"net": trained(0)[0]}, trained(0)[1], {})
    other = nn.Linear(2, 2)
    with pytest.raises(RunError, match="step-3: is damaged"):
        run.load_checkpoint({"net": other}, AdamW(other.parameters()))


def test_what_others_leave_beside_checkpoints_stays(run):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    (run.path / "checkpoint" / ".DS_Store").touch()
    (run.path / "checkpoint" / "step-250 (copy)").mkdir()
    run.save_checkpoint(4, {"net": network}, optimizer, {})
    assert names(run.path / "checkpoint") == {"step-4", ".DS_Store", "step-250 (copy)"}
    assert run.load_checkpoint({"net": network}, optimizer)["step"] == 4


def test_everybody_may_read_what_the_umask_lets_them(run):
    umask = os.umask(0o022)
    try:
        run.save_weights(trained(0)[0])
    finally:
        os.umask(umask)
    assert (run.path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_start_may_be_called_another_way(tmp_path, pretrain_config):
    def start(init: str, weights: str) -> Run:
        config = pretrain_config(init=init)
        begun = info(config)
        begun.provenance["init_weights_sha256"] = weights
        return Run.prepare(tmp_path / "run", config, begun).create()

    start("joint", "abc")
    assert start("./joint/", "abc").config.init == "joint"
    with pytest.raises(RunError, match="started from other weights"):
        start("joint", "def")


def test_metrics_are_one_value_a_row(run):
    run.log(1, {"loss": 1 / 3, "rate": 1e-3})
    run.log(2, {"dice": 0.5})
    text = "step,name,value\n1,loss,0.333333\n1,rate,0.001\n2,dice,0.5\n"
    assert (run.path / "metrics.csv").read_bytes() == text.encode()


@pytest.mark.parametrize(("step", "kept"), [(0, ""), (2, "2,loss,1\n"), (10, "2,loss,1\n10,loss,2\n")])
def test_metrics_after_the_checkpoint_are_dropped(run, step, kept):
    run.trim_metrics(step)
    run.log(2, {"loss": 1.0})
    run.log(10, {"loss": 2.0})
    run.trim_metrics(step)
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n" + kept


def test_an_empty_metrics_file_is_begun_again(run):
    (run.path / "metrics.csv").touch()
    run.trim_metrics(3)
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n"


def test_metrics_come_back_as_curves(run):
    assert run.metrics() == {}
    run.log(1, {"loss": 1 / 3, "aux, of mine": 1e-3})
    run.log(2, {"loss": 0.5})
    assert run.metrics() == {"loss": [(1, 0.333333), (2, 0.5)], "aux, of mine": [(1, 0.001)]}


@pytest.mark.parametrize("torn", ["2,lo", "2,loss,0.", "2", ""])
def test_a_torn_last_line_of_the_metrics_counts_as_not_written(run, torn):
    run.log(1, {"loss": 0.25})
    with (run.path / "metrics.csv").open("a") as file:
        file.write(torn)
    assert run.metrics() == {"loss": [(1, 0.25)]}
    run.trim_metrics(5)
    run.log(2, {"loss": 0.5})
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n1,loss,0.25\n2,loss,0.5\n"


@pytest.mark.parametrize("torn", ["", "s", "step,name,valu"])
def test_metrics_torn_in_their_first_line_are_begun_again(run, torn):
    (run.path / "metrics.csv").write_text(torn)
    assert run.metrics() == {}
    run.trim_metrics(0)
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"step,name,value\nx,loss,1\n", r"metrics\.csv: line 2 is no 'step,name,value' \(remove the file"),
        (b"step,name,value\n1,loss,1\n1,loss\n2,loss,3\n", "line 3 is no"),
        (b"step,name,value\n1,loss,1,4\n", "line 2 is no"),
        (b"step,name,value\n1,loss,much\n", "line 2 is no"),
        (b"name,value\n1,2\n", "does not begin with 'step,name,value'"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_damaged_metrics_are_named(run, content, says):
    (run.path / "metrics.csv").write_bytes(content)
    for attempt in (run.metrics, lambda: run.trim_metrics(5)):
        with pytest.raises(RunError, match=says):
            attempt()
    assert (run.path / "metrics.csv").read_bytes() == content


def finished(path: Path, config: PretrainConfig | FinetuneConfig, network: nn.Module, **given: object) -> Run:
    run = created(path, config, **given)
    run.save_weights(network)
    run.finish({"loss": 0.5})
    return run


def test_finish_drops_the_checkpoint(run):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    run.save_weights(network)
    run.finish({"loss": 0.5})
    assert names(run.path) == {"config.json", "run.json", "weights.safetensors"}
    assert Run.open(run.path).info.complete
    assert Run.open(run.path).info.result == {"loss": 0.5}


def test_load_unet(tmp_path, pretrain_config):
    torch.manual_seed(0)
    network = UNet(pretrain_config().network)
    finished(tmp_path / "run", pretrain_config(), network)
    loaded, run = load_unet(tmp_path / "run")
    assert not loaded.training
    assert run.info.stage == "pretrain"
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("head", ["all", "last"])
def test_load_segmentation(tmp_path, finetune_config, make_store, head):
    torch.manual_seed(0)
    task = make_store().tasks["Blobs"]
    config = finetune_config(head=head)
    network = SegmentationNetwork(UNet(config.network), 2, head)
    finished(tmp_path / "run", config, network, task=task)
    loaded, run, found = load_segmentation(tmp_path / "run")
    assert (loaded.training, found, run.path) == (False, task, tmp_path / "run")
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(loaded(image), network(image))
    # Its encoder and decoder can be the start of another run.
    unet, _ = load_unet(tmp_path / "run")
    assert torch.equal(unet(image), network.unet(image))


def test_hssl_need_not_be_installed(monkeypatch):
    monkeypatch.setattr("hssl.runs.run.version", lambda name: {"torch": "2.13"}[name])
    assert versions("torch") == {"hssl": hssl.__version__, "torch": "2.13"}


def test_channels_last_weights_are_saved_as_they_are(tmp_path, pretrain_config):
    network = UNet(pretrain_config().network).to(memory_format=torch.channels_last)
    finished(tmp_path / "run", pretrain_config(), network)
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


def test_an_unfinished_run_cannot_be_loaded(run):
    with pytest.raises(RunError, match=r"is incomplete.*run the same command again"):
        load_unet(run.path)


def test_a_pretraining_run_predicts_nothing(tmp_path, pretrain_config):
    finished(tmp_path / "run", pretrain_config(), UNet(pretrain_config().network))
    with pytest.raises(RunError, match="predicts no masks"):
        load_segmentation(tmp_path / "run")


def test_damaged_weights(tmp_path, pretrain_config):
    run = finished(tmp_path / "run", pretrain_config(), UNet(pretrain_config().network))
    weights = run.path / "weights.safetensors"
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(info | {"weights_sha256": None}))
    save_file({"foreign": torch.zeros(1)}, weights)
    with pytest.raises(RunError, match="are not the weights of this run's network"):
        load_unet(run.path)
    weights.write_bytes(b"\x80\x04 not safetensors")
    with pytest.raises(RunError, match=r"weights\.safetensors: cannot be read"):
        load_unet(run.path)
    weights.unlink()
    with pytest.raises(RunError, match=r"weights\.safetensors: cannot be read"):
        load_unet(run.path)


def test_run_json_is_plain(run):
    content = json.loads((run.path / "run.json").read_text())
    assert content["stage"] == "pretrain"
    assert content["subjects_seen"] == {"Blobs": ["b"]}
    assert content["provenance"]["data"] == {"store": "s", "split": "p"}


def test_what_was_seen_in_another_channel_counts_and_in_another_source_does_not(make_store, pretrain_config, tmp_path):
    store = make_store({"T1": 3, "T2": 3, "CT": 3})
    store.tasks["CT"] = store.tasks["CT"].model_copy(update={"origin": "elsewhere"})
    record = {"T1": ["a"], "T2": ["b"], "CT": ["c"], "Gone": ["d"]}
    config = pretrain_config()
    run = Run.prepare(tmp_path / "run", config, info(config, subjects_seen=record, masks_seen={"CT": ["e"]})).create()
    assert {task: run.seen(store, task) for task in store.tasks} == {
        "T1": {"a", "b"},
        "T2": {"a", "b"},
        "CT": {"c", "e"},
    }


def test_a_run_says_what_it_is(tmp_path, finetune_config, pretrain_config, make_store):
    task = make_store().tasks["Blobs"]
    config = finetune_config(init="joint")
    run = created(tmp_path / "run", config, task=task, subjects_seen={"Blobs": ["a", "b"]}, masks_seen={"Blobs": ["a"]})
    assert repr(run).splitlines() == [
        f"Run('{tmp_path / 'run'}'): fine-tuned for Blobs, incomplete",
        "  6 steps from joint; images of 2 subjects, masks of 1",
    ]
    run.finish({"best": 0.8125, "best_step": 4, "seconds": 300})
    assert repr(Run.open(run.path)).splitlines()[2:] == [
        "  validation Dice 0.812 at step 4, which is kept",
        "  took 5 min",
    ]
    seen = {name: ["s"] for name in "ABCDE"}
    pretraining = created(tmp_path / "pre", pretrain_config(), subjects_seen=seen)
    assert "pre-trained on A, B, C, D ..., incomplete" in repr(pretraining)


def test_weights_with_a_flipped_bit_are_refused(tmp_path, pretrain_config):
    run = finished(tmp_path / "run", pretrain_config(), UNet(pretrain_config().network))
    weights = run.path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    assert Run.open(run.path).info.weights_sha256 == hashlib.sha256(content).hexdigest()
    content[-3] ^= 4
    weights.write_bytes(content)
    with pytest.raises(RunError, match=r"weights\.safetensors: has changed since .*copy the run again"):
        load_unet(run.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, pretrain_config, value):
    network = UNet(pretrain_config().network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = value
    finished(tmp_path / "run", pretrain_config(), network)
    with pytest.raises(RunError, match=r"weights\.safetensors: '[\w.]+' holds values that are not finite"):
        load_unet(tmp_path / "run")


@pytest.mark.parametrize("file", ["net.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_with_a_flipped_bit_is_refused(run, file):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {})
    path = run.path / "checkpoint" / "step-3" / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"step-3: is damaged: .*has changed.*\(remove this folder"):
        run.load_checkpoint({"net": network}, optimizer)


@pytest.mark.parametrize(
    "change", [{"step": "x"}, {"step": -1}, {"seconds": "long"}, {"latest": [1]}, {"machine": 3}, {"best": {}}]
)
def test_a_state_of_a_checkpoint_that_is_none_is_named(run, change):
    network, optimizer = trained(0)
    run.save_checkpoint(3, {"net": network}, optimizer, {"best": 0.5, "seconds": 2.0})
    path = run.path / "checkpoint" / "step-3" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=r"step-3: is damaged: .*\(remove this folder"):
        run.load_checkpoint({"net": network}, optimizer)


def test_a_full_disk_is_named(run, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"weights\.safetensors: cannot be written: No space left .*free some space"):
        run.save_weights(trained(0)[0])
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ConfigError, match=r"metrics\.csv: cannot be written: No space left"):
        run.log(1, {"loss": 1.0})


def test_json_that_is_nested_too_deeply_is_named(run):
    (run.path / "run.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="its files cannot be read"):
        Run.open(run.path)
