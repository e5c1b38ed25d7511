from __future__ import annotations

import sqlite3
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file

from hssl.errors import ConfigError
from hssl.training.finetune import finetune
from hssl.training.loggers import check_loggers, open_loggers
from hssl.training.pretrain import pretrain

VARIABLES = ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Recorder(CSVLogger):
    """Stands for a logger whose package is not here: remembers what it is given."""

    made: list[Recorder]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("recorder")
        self.args, self.kwargs = args, kwargs
        self.options: dict[str, Any] = {}
        self.values: dict[tuple[int, str], float] = {}
        self.made.append(self)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.options = params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.values |= {(step, name): value for name, value in metrics.items()}

    def save(self) -> None:
        """Nothing to a file."""

    def finalize(self, status: str) -> None:
        """Nothing to end."""


@pytest.fixture
def recorders(monkeypatch, tmp_path) -> list[Recorder]:
    """Makes W&B and MLflow seem installed; gives the loggers that are made."""
    monkeypatch.chdir(tmp_path)  # a recorder makes its folder where the training runs
    made: list[Recorder] = []
    finished = SimpleNamespace(finish=lambda: made.append("finished"))
    monkeypatch.setattr(Recorder, "made", made, raising=False)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Recorder)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", Recorder)
    monkeypatch.setattr("hssl.training.loggers.find_spec", lambda name: ModuleSpec(name, None, origin=name))
    monkeypatch.setitem(sys.modules, "wandb", finished)
    return made


def lines(run: Path) -> dict[tuple[int, str], float]:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    return {(int(step), name): float(value) for step, name, value in rows}


def test_tensorboard_alone_by_default(pretrain_config, tmp_path):
    (curves,) = open_loggers(pretrain_config(), tmp_path)
    assert isinstance(curves, TensorBoardLogger)
    assert Path(curves.log_dir) == tmp_path / "tensorboard"
    assert open_loggers(pretrain_config(loggers=()), tmp_path) == []
    check_loggers(pretrain_config())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_told_before_anything_is_written(
    name, monkeypatch, make_store, pretrain_config, finetune_config, tmp_path
):
    store = make_store({"Blobs": 6})
    # A folder of that name in the working directory is no package.
    for spec in (None, ModuleSpec(name, None, origin=None, is_package=True)):
        monkeypatch.setattr("hssl.training.loggers.find_spec", lambda _, spec=spec: spec)
        for stage, config in ((pretrain, pretrain_config), (finetune, finetune_config)):
            with pytest.raises(ConfigError, match=rf"^logger '{name}' needs .* \(pip install {name}\)$"):
                stage(store, tmp_path / "run", config=config(loggers=(name,)))
    assert not (tmp_path / "run").exists()


def test_wandb_stays_on_this_machine_unless_its_variables_say_otherwise(
    recorders, monkeypatch, pretrain_config, tmp_path
):
    config = pretrain_config(loggers=("wandb",))
    open_loggers(config, tmp_path / "joint")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "hearts")
    open_loggers(config, tmp_path / "joint")
    first, second = recorders
    folder = tmp_path / "joint"
    assert first.kwargs == {"name": "joint", "save_dir": folder, "project": "hssl", "mode": "offline"}
    assert second.kwargs == {"name": "joint", "save_dir": folder, "project": "hearts", "mode": "online"}


def test_mlflow_stays_on_this_machine_unless_its_variables_say_otherwise(
    recorders, monkeypatch, pretrain_config, tmp_path
):
    config = pretrain_config(loggers=("mlflow",))
    open_loggers(config, tmp_path / "joint")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hearts")
    open_loggers(config, tmp_path / "other")
    first, second = recorders
    assert (first.args, second.args) == (("hssl", "joint"), ("hearts", "other"))
    home = tmp_path / "joint" / "mlflow"
    assert first.kwargs["tracking_uri"] == f"sqlite:///{home}/mlflow.db"
    assert first.kwargs["artifact_location"] == (home / "artifacts").as_uri()
    assert second.kwargs == {"tracking_uri": "http://server:5000", "artifact_location": None}
    assert not (tmp_path / "other").exists()


def test_loggers_get_what_the_csv_gets_and_change_no_result(recorders, make_store, finetune_config, tmp_path):
    store = make_store()
    for name, loggers in (("bare", ()), ("watched", ("wandb", "mlflow", "wandb"))):
        finetune(store, tmp_path / name, config=finetune_config(loggers=loggers))
    wandb, mlflow, end = recorders  # one each, though one was named twice
    assert end == "finished"
    expected = lines(tmp_path / "watched")
    assert {name for _, name in expected} == {"loss", "dice_ce", "learning_rate", "validation_dice"}
    for curves in (wandb, mlflow):
        assert curves.options["task"] == "Blobs"
        assert curves.values == pytest.approx(expected, rel=1e-5)
    assert lines(tmp_path / "bare") == expected
    bare, watched = (load_file(tmp_path / name / "weights.safetensors") for name in ("bare", "watched"))
    assert all(torch.equal(tensor, watched[name]) for name, tensor in bare.items())


def test_a_run_may_be_continued_with_other_loggers(make_store, pretrain_config, tmp_path):
    store = make_store()
    first = pretrain(store, tmp_path / "run", config=pretrain_config())
    again = pretrain(store, tmp_path / "run", config=pretrain_config(loggers=()))
    assert (again.info, again.config.loggers) == (first.info, ("tensorboard",))


def test_mlflow_itself(make_store, pretrain_config, tmp_path):
    pytest.importorskip("mlflow")
    run = pretrain(make_store(), tmp_path / "run", config=pretrain_config(loggers=("mlflow",)))
    with sqlite3.connect(run.path / "mlflow" / "mlflow.db") as database:
        found = {(step, key): value for step, key, value in database.execute("select step, key, value from metrics")}
    assert found == pytest.approx(lines(run.path), rel=1e-5)


def test_wandb_itself(make_store, pretrain_config, tmp_path):
    wandb = pytest.importorskip("wandb")
    run = pretrain(make_store(), tmp_path / "run", config=pretrain_config(loggers=("wandb",)))
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None
