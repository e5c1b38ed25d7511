"""Where curves go besides ``metrics.csv``: Lightning's loggers, on this machine unless told otherwise."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger

from hssl.config import TrainingConfig
from hssl.errors import ConfigError

PROJECT = "hssl"
"""Under what W&B and MLflow file the runs, unless their own variables say something else."""


def check_loggers(config: TrainingConfig) -> None:
    """Checks that what the loggers need is installed.

    Raises:
        ConfigError: A package is missing.
    """
    for name in config.loggers:
        spec = find_spec(name)
        # A mere folder of this name, such as one that W&B has made, has no origin.
        if spec is None or spec.origin is None:
            raise ConfigError(f"logger '{name}' needs a package that is not installed", hint=f"pip install {name}")


def open_loggers(config: TrainingConfig, folder: Path) -> list[Logger]:
    """The loggers of a run; those for a server write into its folder instead, unless their own variables name one.

    Args:
        config: Which ones.
        folder: The run folder.
    """
    opened: list[Logger] = []
    for name in dict.fromkeys(config.loggers):
        if name == "tensorboard":
            opened.append(loggers.TensorBoardLogger(folder, name="tensorboard", version=""))
        elif name == "wandb":
            # The argument would win over the variable, so the variable is passed on.
            mode = os.environ.get("WANDB_MODE", "offline")
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            opened.append(loggers.WandbLogger(name=folder.name, save_dir=folder, project=project, mode=mode))
        else:
            opened.append(_mlflow(folder))
    return opened


def close_loggers(config: TrainingConfig) -> None:
    """Closes open runs: W&B would use the open run for the next training in this process."""
    if "wandb" in config.loggers:
        import wandb

        wandb.finish()


def _mlflow(folder: Path) -> Logger:
    address, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not address:
        # A database, for MLflow gives up its plain files; it makes neither the folder nor a place for artifacts in it.
        home = (folder / "mlflow").absolute()
        home.mkdir(parents=True, exist_ok=True)
        address, artifacts = f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    return loggers.MLFlowLogger(experiment, folder.name, tracking_uri=address, artifact_location=artifacts)
