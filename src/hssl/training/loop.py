"""What pre-training and fine-tuning share: one Lightning loop that continues where it stopped, on CPUs bit by bit.

Every draw of step t comes from generators seeded with (seed, t), and the learning rate is a function of t. So weights,
optimiser state and t are all there is to save.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import rich
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from hssl.config import TrainingConfig
from hssl.errors import ConfigError, HsslError, TrainingError, attempt
from hssl.files import locked
from hssl.machine import bf16_pays
from hssl.objectives import SPREAD, WATCH, total
from hssl.runs.run import CHECKPOINT, RESTART, Run
from hssl.text import duration
from hssl.training.data import BatchData
from hssl.training.loggers import close_loggers, open_loggers
from hssl.training.progress import ProgressPicture

_NAMED = 8
"""Cases of a batch that a message names."""
MOST_RANKS = 2_048
"""Seeds of a step are 4,099 apart: so many are for views, a rank each, and as many for what objectives draw."""
logger = logging.getLogger(__name__)


class Stage(pl.LightningModule):
    """A training stage: modules to train, and the losses of a step.

    Args:
        config: Schedule, seed and precision.
        run: Where it is kept.
    """

    def __init__(self, config: TrainingConfig, run: Run) -> None:
        super().__init__()
        self.config, self.run = config, run
        self.start = 0
        self.earlier, self.began = 0.0, time.monotonic()
        self.extra: dict[str, Any] = {}
        self.latest: dict[str, Tensor] = {}
        self.bad_step = torch.tensor(-1)  # the first one whose loss was not finite; looked at where losses are

    @abstractmethod
    def losses(self, batch: Any, step: int, generator: Generator) -> dict[str, Tensor]:
        """Weighted losses of a batch; names with `WATCH` are logged alone."""

    @abstractmethod
    def data(self, rank: int, world_size: int) -> BatchData[Any]:
        """The batches, indexed by step."""

    @abstractmethod
    def trained(self) -> dict[str, nn.Module]:
        """Modules with parameters, by the name of their file in a checkpoint."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser; ``rate`` in a group scales its learning rate."""

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Learning rate of a parameter group at `step`: linear warm-up, then cosine to 0."""
        return float(group.get("rate", 1.0)) * schedule(step, self.config)

    def after_step(self, step: int) -> None:
        """Called when `step` steps have been taken."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes values of a step to ``metrics.csv`` and to the loggers."""
        self.run.log(step, values)
        for curves in self.loggers:
            curves.log_metrics(values, step)

    def step_number(self) -> int:
        """Steps taken since the beginning of the run, over all its parts."""
        return self.start + self.global_step

    def seconds(self) -> float:
        """Seconds that training took, over all its parts, as far as their checkpoints tell."""
        return self.earlier + time.monotonic() - self.began

    def configure_optimizers(self) -> Optimizer:
        """AdamW over the parameter groups, with the state of the checkpoint if there is one."""
        optimizer = AdamW(self.parameter_groups(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        state = self.run.load_checkpoint(self.trained(), optimizer)
        self.start, self.earlier = int(state.pop("step")), float(state.pop("seconds", 0.0))
        self.latest = {name: torch.tensor(value) for name, value in state.pop("latest", {}).items()}
        here, before = self.machine(), state.pop("machine", None)
        if before not in (None, here) and self.global_rank == 0:
            logger.warning(
                "continues with %s after %s: its result differs from that of a run without interruption", here, before
            )
        self.extra.update(state)
        return optimizer

    def machine(self) -> str:
        """Kind of device and precision, as ``cuda, bf16-mixed``: what `auto` in the options came to."""
        return f"{self.trainer.strategy.root_device.type}, {self.trainer.precision}"

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the step after the checkpoint to the last."""
        workers = self.config.workers
        if workers is None:
            workers = 0 if self.device.type == "cpu" else 4
        return DataLoader(
            _Attempts(self.data(self.global_rank, self.trainer.world_size)),
            batch_size=None,
            sampler=range(self.start, self.config.steps),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def training_step(self, batch: Any, index: int) -> Tensor:
        """One step; its draws depend on the seed and the step number alone."""
        if isinstance(batch, HsslError):
            raise batch
        step = self.step_number()
        seed = (self.config.seed * 1_000_003 + step) * 4_099 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        # Another stream than that of the views, within the 32 bits that a CPU's generator takes of a seed.
        torch.manual_seed(seed + MOST_RANKS)
        for group in cast("Optimizer", self.optimizers()).param_groups:
            group["lr"] = self.rate(step, group)
        losses = self.losses(batch, step, generator)
        loss = total(losses)
        self.latest = {name: each.detach() for name, each in losses.items()} | {"loss": loss.detach()}
        known = self.bad_step.to(loss.device)
        self.bad_step = torch.where((known >= 0) | loss.detach().isfinite(), known, step)
        return loss

    def blamed(self) -> str:
        """The step and the cases with which the losses stopped being finite, for a message; empty where none did."""
        step = int(self.bad_step)
        if step < 0:
            return ""
        cases = list(dict.fromkeys(self.data(self.global_rank, self.trainer.world_size).cases_of(step)))
        more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
        return f"; it began in step {step + 1}, with a batch of {', '.join(cases[:_NAMED])}{more}"


class _Attempts(Dataset[Any]):
    """Batches by step, or what is wrong with one: raised in a loader process, an error would lose its path."""

    def __init__(self, data: BatchData[Any]) -> None:
        self.data = data

    def __getitem__(self, step: int) -> Any:
        return attempt(self.data.__getitem__, step)


class TrainingCallback(Callback):
    """Logs, checks, shows progress and saves checkpoints."""

    def __init__(self, title: str) -> None:
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
        )
        self.progress = Progress(*columns, console=rich.get_console(), disable=not rich.get_console().is_terminal)
        self.last_line = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the progress bar."""
        if trainer.is_global_zero:
            stage = cast("Stage", pl_module)
            stage.run.trim_metrics(stage.start)
            for curves in trainer.loggers:
                if not isinstance(curves, TensorBoardLogger):  # which adds a metric that means nothing
                    curves.log_hyperparams(stage.config.model_dump(mode="json"))
            self.picture = ProgressPicture(stage.run)
            if stage.start:
                left = stage.earlier / stage.start * (stage.config.steps - stage.start)
                logger.info(
                    "continues from step %d of %d; about %s left", stage.start, stage.config.steps, duration(left)
                )
            self.progress.start()
            self.bar = self.progress.add_task("", total=stage.config.steps, completed=stage.start, losses="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs and checks every few steps, and saves a checkpoint now and then."""
        stage = cast("Stage", pl_module)
        step = stage.step_number()
        stage.after_step(step)
        last = step == stage.config.steps
        logs, saves = step % stage.config.log_every == 0 or last, step % stage.config.checkpoint_every == 0 or last
        if logs or saves:  # what is checked here never replaces a good checkpoint by a bad one
            values = {name: float(value) for name, value in stage.latest.items()}
            check(values, step, stage.blamed)
            if logs and trainer.is_global_zero:
                rate = {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
                stage.record(step, values | rate)
                self._show(stage, step, values)
        if saves and trainer.is_global_zero:
            extra = {"seconds": stage.seconds(), "latest": values, "machine": stage.machine(), **stage.extra}
            stage.run.save_checkpoint(step, stage.trained(), trainer.optimizers[0], extra)
            self.picture.update(last=last)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the progress bar."""
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes it after an error or an interrupt too, which leave out the teardown."""
        self.progress.stop()

    def _show(self, stage: Stage, step: int, values: dict[str, float]) -> None:
        steps = stage.config.steps
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items() if not name.startswith(WATCH))
        if watched := [f"{n.removeprefix(WATCH)} {v:.3g}" for n, v in values.items() if n.startswith(WATCH)]:
            text += f"  (watched: {', '.join(watched)})"
        self.progress.update(self.bar, completed=step, losses=text)
        # Without a terminal there is no bar: a plain line now and then.
        if self.progress.disable and (time.monotonic() - self.last_line > 30 or step == steps):
            self.last_line = time.monotonic()
            here = max(step - stage.start, 1)
            left = (time.monotonic() - stage.began) / here * (steps - step)
            logger.info("step %d/%d  %s%s", step, steps, text, f"  ({duration(left)} left)" if left else "")


def check(values: dict[str, float], step: int, blamed: Callable[[], str] = str) -> None:
    """Stops a run that has gone wrong.

    Args:
        values: Losses by name.
        step: Steps taken.
        blamed: Says with which batch it began.

    Raises:
        TrainingError: A loss is not finite, or the projections have collapsed to one point.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"loss '{name}' is not finite at step {step}{blamed()}",
                hint=RESTART,
            )
    if values.get(SPREAD, 1.0) < 0.01:
        raise TrainingError(
            f"the projections of all images have collapsed to one point (spread {values[SPREAD]:.4f}) at step {step}",
            hint=f"{RESTART}, or raise the batch size or the temperature",
        )


def schedule(step: int, config: TrainingConfig) -> float:
    """Learning rate at `step`: linear warm-up, then cosine to 0 at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def make_trainer(config: TrainingConfig, folder: Path, title: str) -> pl.Trainer:
    """Lightning's trainer for a run of this configuration.

    Args:
        config: Devices, precision, schedule.
        folder: The run folder, which need not be there yet.
        title: What the progress bar says.

    Raises:
        ConfigError: There is no such accelerator here, there are fewer devices, or the job has other tasks.
    """
    _silence()
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            # A head whose level is off has no gradient, which DDP must be told.
            strategy="auto" if config.devices * config.nodes == 1 else "ddp_find_unused_parameters_true",
            devices=config.devices,
            num_nodes=config.nodes,
            precision="bf16-mixed" if wants_bf16(config) else "32-true",
            max_epochs=1,
            gradient_clip_val=config.gradient_clip,
            logger=False,  # they write into the run's folder, which is not there yet
            callbacks=[TrainingCallback(title)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=config.log_every,
            # Checkpoints are ours: under SLURM Lightning would write one of its own into the current folder before a
            # job ends, and load whatever lies there into the next run.
            default_root_dir=folder,
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"accelerator '{config.accelerator}' with devices {config.devices} cannot be used here: {error}",
            hint="choose what this machine has, for example --set accelerator=cpu --set devices=1",
        ) from error


def fit(stage: Stage, trainer: pl.Trainer) -> float:
    """Trains `stage` from its checkpoint, or from the start, to its last step.

    Args:
        stage: What to train; its run has a folder.
        trainer: What :func:`make_trainer` gave.

    Returns:
        Seconds it took, over all its parts.

    Raises:
        TrainingError: See :func:`check`; or a step does not fit into memory, or another rank has ended.
        RunError: Another process trains this run.
        HsslError: The data cannot be read.
        KeyboardInterrupt: The user has stopped it.
        SystemExit: SIGTERM has stopped it.
    """
    config = stage.config
    stage.began = time.monotonic()
    checkpoints = stage.run.path / CHECKPOINT
    checkpoints.mkdir(exist_ok=True)
    if config.warmup >= config.steps and trainer.is_global_zero:
        logger.warning(f"{config.steps} steps are no more than the warm-up of {config.warmup}: set a shorter 'warmup'")
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        lock = locked(checkpoints, "training") if trainer.is_global_zero else nullcontext()
        with lock, oom_as_error(), lost_process_as_error():
            trainer.loggers = open_loggers(config, stage.run.path)
            trainer.fit(stage)
    except SIGTERMException:
        logger.warning("ended by SIGTERM; the same command continues from the last checkpoint")
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        # Lightning makes this of Ctrl-C, and has no ear for a second one.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if interrupt is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
        raise error.__context__ from None
    finally:
        close_loggers(config)
    return stage.seconds()


def as_finished(run: Run, trainer: pl.Trainer) -> Run:
    """The run as the first rank leaves it, on every rank, so that a script can use it at once."""
    trainer.strategy.barrier("finished")
    return run if trainer.is_global_zero else Run.open(run.path)


@contextmanager
def oom_as_error() -> Iterator[None]:
    """Says in one line that a step has not found the memory it needs.

    Raises:
        TrainingError: The step does not fit into memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On CPUs torch has no error of its own for it.
        lack = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not lack:
            raise
        hint = "take a smaller batch_size, patch_size or network, and another folder if this one has a run by now"
        raise TrainingError("a step does not fit into memory", hint=hint) from error


@contextmanager
def lost_process_as_error() -> Iterator[None]:
    """Says in one line that another rank of the training has ended.

    Raises:
        TrainingError: It has.
    """
    try:
        yield
    except RuntimeError as error:
        # NCCL has errors of its own; gloo says in a text which socket broke.
        if not (isinstance(error, dist.DistError) or ("gloo" in str(error) and "onnection" in str(error))):
            raise
        hint = "see its messages; the same command continues from the last checkpoint"
        raise TrainingError("another process of this training has ended or cannot be reached", hint=hint) from error


def wants_bf16(config: TrainingConfig) -> bool:
    """Whether to train under bf16 autocast: as configured, or else where the device supports it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    return bf16_pays(expected_device(config))


def expected_device(config: TrainingConfig) -> torch.device:
    """Where a run of this configuration will train, as far as is known before the start."""
    return torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")


def _silence() -> None:
    # Lightning's remarks on loggers, workers and hardware; ours says what matters before the start.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
