from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hssl
from hssl.config import FinetuneConfig
from hssl.errors import ConfigError, RunError
from hssl.export import export_run, hub, push
from hssl.runs import Run, load_segmentation, load_unet
from hssl.runs.hub import fetch
from hssl.store import Preprocessing

from .conftest import TASK, MakeRun


def front(card: Path) -> dict[str, Any]:
    _, head, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    facts: dict[str, Any] = yaml.safe_load(head)
    return facts


def test_the_folder_is_a_run_without_paths_of_its_maker(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(task=TASK)
    folder = export_run(run, "hub", tmp_path / "hub")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "run.json",
        "weights.safetensors",
    ]
    network, copy, task = load_segmentation(folder)
    for name, value in load_segmentation(run)[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert copy.info.subjects_seen == {"Blobs": ["a", "b", "c"]}
    assert (task.labels, task.preprocessing) == (TASK.labels, TASK.preprocessing)
    assert isinstance(copy.config, FinetuneConfig)
    assert copy.config.init == "pre"
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert "/home" not in path.read_text()
            assert "mine" not in path.read_text()


def test_a_pretrained_folder_has_no_paths_of_its_maker_either(make_run: MakeRun, tmp_path: Path) -> None:
    folder = export_run(make_run(), "hub", tmp_path / "hub")
    assert Run.open(folder).config.init == "joint"
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert "/home" not in path.read_text()


def test_the_card_names_data_tasks_and_limits(make_run: MakeRun, tmp_path: Path) -> None:
    card = export_run(make_run(task=TASK), "hub", tmp_path / "hub") / "README.md"
    assert front(card)["license"] == "unknown"
    assert front(card)["pipeline_tag"] == "image-segmentation"
    assert front(card)["hssl"] == {
        "stage": "finetune",
        "tasks": ["Blobs"],
        "store_sha256": "5" * 64,
        "split_sha256": "6" * 64,
    }
    text = card.read_text()
    for part in (
        "| Blobs | 3 | 1 |",
        "1 liver, 2 spleen",
        "1.5 x 1.5 mm",
        "0 to 80",
        "Not a medical device",
        "pip install",
    ):
        assert part in text
    preprocessing = Preprocessing(orientation="PLS", spacing=(1.5, 1.5))
    other = make_run(task=TASK.model_copy(update={"preprocessing": preprocessing}), seed=1)
    assert "percentiles" in (export_run(other, "hub", tmp_path / "mr") / "README.md").read_text()
    pretrained = export_run(make_run(seed=2), "hub", tmp_path / "pre") / "README.md"
    assert front(pretrained)["pipeline_tag"] == "image-feature-extraction"
    assert "--init hf://OWNER/NAME" in pretrained.read_text()


def test_a_card_that_was_edited_is_kept(make_run: MakeRun, tmp_path: Path) -> None:
    first = export_run(make_run(), "hub", tmp_path / "first")
    (first / "README.md").write_text("mine")
    assert (export_run(first, "hub", tmp_path / "second") / "README.md").read_text() == "mine"


def test_the_folder_one_is_in_is_not_replaced(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="already exists"):
        export_run(run, "hub", ".")
    assert not list(Path.cwd().iterdir())


def test_nothing_is_written_over_or_from_half_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    with pytest.raises(ConfigError, match="taken: already exists"):
        export_run(run, "hub", tmp_path / "taken")
    information = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(information | {"complete": False}))
    with pytest.raises(RunError, match="is incomplete"):
        export_run(run, "hub", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name, "taken"]


class Hub:
    """Takes the place of the network: what is uploaded lands in a folder laid out as the hub's own cache."""

    def __init__(self, root: Path) -> None:
        self.root, self.repositories = root, {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repositories[repo_id] = private

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.snapshot(repo_id) / filename).is_file()

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        snapshot = self.snapshot(repo_id)
        (snapshot.parents[1] / "refs").mkdir(parents=True, exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder_path, snapshot, dirs_exist_ok=True)

    def snapshot(self, repo_id: str) -> Path:
        return self.root / f"models--{repo_id.replace('/', '--')}" / "snapshots" / ("0" * 40)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    library = pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    for name in ("create_repo", "file_exists", "upload_folder"):
        takes = inspect.signature(getattr(library.HfApi, name)).parameters
        assert set(inspect.signature(getattr(Hub, name)).parameters) <= set(takes)
    local = Hub(tmp_path / "cache")
    monkeypatch.setattr(library, "HfApi", lambda **_: local)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(local.root))
    return local


def test_what_is_pushed_is_a_run_at_its_address(make_run: MakeRun, local_hub: Hub) -> None:
    run = make_run()
    address = push(run, "somebody/network")
    assert (address, local_hub.repositories) == ("hf://somebody/network", {"somebody/network": True})
    for given in (address, Path(address), f"{address}@main", f"{address}@{'0' * 40}"):
        network, opened = load_unet(given)
        assert opened.info.stage == "pretrain"
        for name, value in load_unet(run)[0].state_dict().items():
            assert torch.equal(network.state_dict()[name], value)
    push(make_run(seed=1), "hf://somebody/other", public=True)
    assert local_hub.repositories["somebody/other"] is False


def test_a_card_that_is_on_the_hub_stays(make_run: MakeRun, local_hub: Hub) -> None:
    push(make_run(), "a/b")
    card, weights = (local_hub.snapshot("a/b") / name for name in ("README.md", "weights.safetensors"))
    card.write_text("license: mit")
    before, other = weights.read_bytes(), make_run(seed=1)
    push(other, "a/b")
    assert card.read_text() == "license: mit"
    assert weights.read_bytes() != before
    push("hf://a/b", "c/d")
    assert (local_hub.snapshot("c/d") / "README.md").read_text() == "license: mit"
    push(other, "a/b", replace_card=True)
    assert front(card)["license"] == "unknown"


def test_the_card_is_fetched_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def download(_: str, *, revision: str | None, allow_patterns: list[str]) -> Path:
        wanted.extend(allow_patterns)
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("hf://a/b") == tmp_path
    assert wanted == ["*.json", "*.safetensors", "README.md"]


@pytest.mark.usefixtures("local_hub")
def test_a_repository_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RunError, match="'hf://nobody/nothing' cannot be loaded from the hub: ") as caught:
        Run.open("hf://nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_refusal_of_the_hub_is_one_line(make_run: MakeRun, local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error\n\nRepository Not Found")

    monkeypatch.setattr(local_hub, "create_repo", refuse)
    with pytest.raises(ConfigError, match=r"cannot upload to 'a/b': 401 Client Error \(log in"):
        push(make_run(), "a/b")

    def unreachable(*_: object, **__: object) -> None:
        from huggingface_hub.errors import HTTPError

        raise HTTPError("no such host")

    monkeypatch.setattr(local_hub, "create_repo", unreachable)
    with pytest.raises(ConfigError, match="cannot upload to 'a/b': no such host"):
        push(make_run(seed=1), "a/b")
    with pytest.raises(ConfigError, match=r"'network' is not a repository of the hub \(give OWNER/NAME\)"):
        push(make_run(seed=2), "network")


def test_a_download_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        from huggingface_hub.errors import HTTPError

        raise HTTPError("connection reset")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(RunError, match="cannot be loaded from the hub: connection reset"):
        fetch("hf://a/b")


def test_addresses() -> None:
    assert fetch("runs/one") == Path("runs/one")
    for wrong in ("hf://", "hf://name", "hf://a/b/c", "hf://a/../b"):
        with pytest.raises(RunError, match="is not an address on the hub"):
            fetch(wrong)
    with pytest.raises(RunError, match="'hf://a/b/c' is not an address on the hub"):
        fetch(Path("hf://a/b/c"))


def test_a_missing_package_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"'\.\[hub\]'"):
        fetch("hf://a/b")
    with pytest.raises(ConfigError, match=r"'\.\[hub\]'"):
        push(make_run(), "a/b")


def test_the_bare_network(make_run: MakeRun) -> None:
    for task in (None, TASK):
        network = hssl.load(make_run(task=task, seed=3 if task else 4))
        features = network.encode(torch.rand(2, 1, 16, 24))
        assert [tuple(each.shape) for each in features] == [(2, 4, 16, 24), (2, 6, 8, 12), (2, 8, 4, 6)]
        assert [each.shape[1] for each in network.decode(features)] == [6, 4]
        assert not network.training


def test_the_folder_is_written_once_whole(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(hub, "model_card", fail)
    run = make_run()
    with pytest.raises(OSError, match="no space"):
        export_run(run, "hub", tmp_path / "hub")
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def evaluated(run: Path, **changes: Any) -> None:
    row = {"case": "c", "subject": "s", "label": 1, "name": "a|b", "truth_voxels": 1, "predicted_voxels": 1}
    row |= {"dice": 0.5, "hd95": 2.0, "surface_dice": 0.75}
    mean = {"cases": 1, "dice": 0.5, "hd95": 2.25, "surface_dice": 0.75}
    values = {
        "run": "run",
        "task": "Blobs",
        "part": "test",
        "space": "source",
        "leaked": [],
        "tolerance": 2.0,
        "predictions": None,
        "store_hash": "",
        "split_hash": "",
        "versions": {},
        "scores": [row],
        "labels": [{"name": "a|b", **mean}, {"name": "spleen", **dict.fromkeys(mean), "cases": 0}],
        "mean": {"name": "mean", **mean},
    }
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "test.json").write_text(json.dumps(values | changes))


def test_scores_on_test_subjects_are_in_the_card(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(task=TASK)
    assert "## Scores" not in hub.model_card(Run.open(run))
    evaluated(run)
    text = hub.model_card(Run.open(run))
    assert (
        "## Scores\n\nOn the 1 test subjects of its task.\n\n"
        "| label | cases | Dice | HD95 (mm) | surface Dice (2 mm) |\n"
        "|---|---|---|---|---|\n"
        "| a\\|b | 1 | 0.500 | 2.250 | 0.750 |\n"
        "| spleen | 0 | - | - | - |\n"
        "| mean | 1 | 0.500 | 2.250 | 0.750 |\n"
    ) in text
    evaluated(run, leaked=["s"])
    assert "Training has seen 1 of them, so this says nothing about new ones." in hub.model_card(Run.open(run))
    (run / "evaluation" / "test.json").write_text("{}")
    with pytest.raises(RunError, match=r"test\.json: is not an evaluation"):
        export_run(run, "hub", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_names_are_no_markup_in_the_card(make_run: MakeRun) -> None:
    run = make_run(task=TASK.model_copy(update={"name": "Blobs", "labels": {1: "a|b", 2: "<script>\n[x](y)"}}))
    content = json.loads((run / "run.json").read_text())
    content["subjects_seen"] = {"T|1": ["a"], "`T2`": ["b"]}
    (run / "run.json").write_text(json.dumps(content))
    text = hub.model_card(Run.open(run))
    assert "| T\\|1 | 1 | 0 |\n" in text
    assert "| \\`T2\\` | 1 | 0 |\n" in text
    assert "Labels: 1 a\\|b, 2 \\<script\\> \\[x\\](y)." in text
