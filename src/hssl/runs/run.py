"""Run folders: the options of a training, what it saw, and the weights that came out.

RUN/config.json           the stage's configuration, as validated
RUN/run.json              stage, task, subjects and masks seen, provenance, whether it is complete
RUN/weights.safetensors   the network
RUN/metrics.csv           one line every few steps
RUN/tensorboard/          the same as curves; also RUN/wandb/ and RUN/mlflow/, if configured
RUN/checkpoint/step-N/    all that is needed to continue; gone once the run is complete
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

from hssl import __version__
from hssl.config import FinetuneConfig, NetworkConfig, PretrainConfig, TrainingConfig
from hssl.errors import RunError, TrainingError, first_line, first_mistake
from hssl.files import file_sha256, flush, full_disk_named, replacing, write_text
from hssl.networks import SegmentationNetwork, UNet, build_network
from hssl.runs.hub import fetch
from hssl.store import Store, TaskInfo
from hssl.text import duration

RESTART = "train again in another folder with a lower learning rate, or with precision 32"
"""What helps after a run has gone wrong; the same options would only go wrong again."""

FORMAT: Literal[2] = 2
"""Of the folder; raised when what an older version wrote can no longer be read."""
_NEWER = "a newer version wrote it: update hssl"
_OLDER = "an older version wrote it: train again, in another folder"
_METRICS_HEAD = "step,name,value"
_METRICS_HINT = "remove the file; the weights do not depend on it"
_CHECKPOINT = re.compile(r"step-(\d+)|\.step-\d+\.tmp")
"""A checkpoint, whose step is the group, or one that is being written."""
INIT_HASH = "init_weights_sha256"
"""In the provenance: of the weights that a run started from, where it was not from scratch."""

CONFIG, INFO, WEIGHTS, METRICS, CHECKPOINT = (
    "config.json",
    "run.json",
    "weights.safetensors",
    "metrics.csv",
    "checkpoint",
)


class ComponentRule(BaseModel):
    """Which labels are single connected components; neighbours share a face, an edge or a corner.

    Attributes:
        foreground: Whether all labels together are one component.
        labels: Label values that are one component each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    foreground: bool = False
    labels: tuple[int, ...] = ()

    def describe(self, names: dict[int, str]) -> str:
        """The rule in words, with the names of the labels; empty where there is none."""
        single = [names[label] for label in self.labels]
        parts = [*(["the whole foreground"] if self.foreground else []), *single]
        return ", ".join(parts)


class RunInfo(BaseModel):
    """What ``run.json`` holds.

    Attributes:
        format: Of the folder. One that names none is of format 1.
        stage: Pre-training or fine-tuning.
        network: Shape of the network.
        task: The task of a fine-tuned network; None for a pre-trained one.
        subjects_seen: Subjects whose images training used, by task; those of its pre-training included.
        masks_seen: Subjects whose masks training or validation used, by task.
        components: What the labelled masks say of connected components; prediction removes what contradicts it.
        provenance: Versions, seed, data hashes, git revision, machine.
        complete: Whether training came to its end.
        weights_sha256: Of ``weights.safetensors`` of a complete run.
        result: Final figures: losses, best validation Dice, seconds.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[2] = FORMAT
    stage: Literal["pretrain", "finetune"]
    network: NetworkConfig
    task: TaskInfo | None = None
    subjects_seen: dict[str, list[str]]
    masks_seen: dict[str, list[str]]
    components: ComponentRule = ComponentRule()
    provenance: dict[str, Any]
    complete: bool = False
    weights_sha256: str | None = None
    result: dict[str, Any] = Field(default_factory=dict)


class _State(BaseModel):
    """What ``state.json`` of a checkpoint holds, besides figures of the stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | int | None] = Field(init=False)

    step: int = Field(ge=0)
    seconds: float = 0.0
    latest: dict[str, float] = Field(default_factory=dict)
    machine: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


class Run:
    """A run folder, opened.

    Args:
        path: The folder.
        config: The stage's configuration.
        info: What the run saw and is.
    """

    def __init__(self, path: Path, config: PretrainConfig | FinetuneConfig, info: RunInfo) -> None:
        self.path, self.config, self.info = path, config, info

    def __repr__(self) -> str:
        """What it is, what it has seen and what came of it."""
        info, config, result = self.info, self.config, self.info.result
        tasks = sorted(info.subjects_seen)
        what = f"fine-tuned for {info.task.name}" if info.task else f"pre-trained on {', '.join(tasks[:4])}"
        what += " ..." * (info.task is None and len(tasks) > 4)
        images, masks = (sum(map(len, seen.values())) for seen in (info.subjects_seen, info.masks_seen))
        lines = [
            f"Run('{self.path}'): {what}, {'complete' if info.complete else 'incomplete'}",
            f"  {config.steps} steps from {config.init}; images of {images} subjects, masks of {masks}",
        ]
        if "best" in result:
            lines.append(f"  validation Dice {result['best']:.3f} at step {result.get('best_step')}, which is kept")
        if "seconds" in result:
            lines.append(f"  took {duration(result['seconds'])}")
        return "\n".join(lines)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Opens a run folder, or the one at ``hf://OWNER/NAME``; weights are not read.

        Raises:
            RunError: The folder is not a run, or one of its files cannot be read.
        """
        path = fetch(path)
        if not (path / INFO).is_file():
            raise RunError("is not a run folder", path=path, hint="make one with 'hssl pretrain' or 'hssl finetune'")
        try:
            content = (path / INFO).read_bytes()
            _check_format(content, path)
            info = RunInfo.model_validate_json(content)
            kind = PretrainConfig if info.stage == "pretrain" else FinetuneConfig
            config = kind.model_validate_json((path / CONFIG).read_bytes())
        except OSError as error:
            raise RunError(
                f"its files cannot be read: {error}",
                path=path,
                hint="copy the run again from where it came, or check its permissions",
            ) from error
        except ValidationError as error:
            raise _unreadable(error, path) from error
        return cls(path, config, info)

    @property
    def task(self) -> TaskInfo:
        """The task that its network segments.

        Raises:
            RunError: It is a pre-training run.
        """
        if self.info.task is None:
            raise RunError("is a pre-training run, which predicts no masks", path=self.path, hint="fine-tune it first")
        return self.info.task

    def seen(self, store: Store, task: str) -> set[str]:
        """The subjects of a store's task that this run has seen, in it or in another channel of the same source."""
        records = (self.info.subjects_seen, self.info.masks_seen)
        return {subject for name in store.siblings(task) for record in records for subject in record.get(name, [])}

    @classmethod
    def prepare(cls, path: Path, config: PretrainConfig | FinetuneConfig, info: RunInfo) -> Run:
        """A new run, whose folder `create` makes, or the one that is there, to continue it.

        Raises:
            RunError: The folder holds another run or something else, and is left as it is.
        """
        if (path / INFO).exists():
            run = cls.open(path)
            if run.info.stage != info.stage:
                raise RunError(
                    f"holds a run of another stage ({run.info.stage})", path=path, hint="give another folder"
                )
            # As JSON, for that is what was read back: a list and a tuple are the same option.
            before, now = run.config.fingerprint_fields(), config.fingerprint_fields()
            # Where it started tells the hash of the weights below, which may be called another way by now.
            told = {"init"} if INIT_HASH in run.info.provenance and INIT_HASH in info.provenance else set()
            if changed := [name for name in now | before if now.get(name) != before.get(name) and name not in told]:
                raise RunError(
                    f"holds a run with other options ({', '.join(changed)})",
                    path=path,
                    hint="give another folder, or the same options to continue it",
                )
            if run.info.provenance.get("data") != info.provenance.get("data"):
                raise RunError("was made from other data than this store holds", path=path, hint="give another folder")
            if run.info.provenance.get(INIT_HASH) != info.provenance.get(INIT_HASH):
                raise RunError(
                    "started from other weights than 'init' holds now", path=path, hint="give another folder"
                )
            return run
        # A start that was killed, or another process that starts now, may have come no further than the configuration.
        if path.exists() and (not path.is_dir() or not all(_begun(entry.name) for entry in path.iterdir())):
            raise RunError("is not a run folder, and not empty", path=path, hint="give another folder")
        return cls(path, config, info)

    def create(self) -> Self:
        """Makes the folder of a new run; returns the run."""
        if not (self.path / INFO).exists():
            with full_disk_named(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / CONFIG, self.config.model_dump_json(indent=1))
            self.write_info()
        return self

    def write_info(self) -> None:
        """Writes ``run.json``."""
        write_text(self.path / INFO, self.info.model_dump_json(indent=1))

    def save_weights(self, network: nn.Module) -> None:
        """Writes the network's weights, in one step."""
        _save_tensors(network.state_dict(), self.path / WEIGHTS)

    def load_weights(self) -> dict[str, Tensor]:
        """The weights of a complete run, on the CPU.

        Raises:
            RunError: The run is incomplete, or the file is damaged.
        """
        if not self.info.complete:
            raise RunError("is incomplete", path=self.path, hint="run the same command again to continue it")
        return _load_tensors(self.path / WEIGHTS, self.info.weights_sha256)

    # Checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, modules: dict[str, nn.Module], optimizer: Optimizer, extra: dict[str, Any]
    ) -> None:
        """Writes all that is needed to continue after `step` steps, in one move, and drops the one before."""
        folder = self.path / CHECKPOINT
        temporary = folder / f".step-{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with full_disk_named(temporary):
            temporary.mkdir(parents=True)
        for name, module in modules.items():
            if not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise TrainingError(f"weights of the {name} are not finite after step {step}", hint=RESTART)
            _save_tensors(module.state_dict(), temporary / f"{name}.safetensors")
        state = optimizer.state_dict()["state"]
        tensors = {f"{number}.{key}": value for number, values in state.items() for key, value in values.items()}
        _save_tensors(tensors, temporary / "optimizer.safetensors")
        hashes = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        write_text(temporary / "state.json", json.dumps({"step": step, "sha256": hashes, **extra}))
        flush(temporary / "state.json")
        target = folder / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for other in folder.iterdir():
            if other != target and _CHECKPOINT.fullmatch(other.name):
                shutil.rmtree(other, ignore_errors=True)  # what stays is older, and does not count

    @property
    def latest_step(self) -> int | None:
        """Of the latest checkpoint; None without one."""
        found = [_CHECKPOINT.fullmatch(path.name) for path in (self.path / CHECKPOINT).glob("step-*")]
        return max((int(each[1]) for each in found if each), default=None)

    def load_checkpoint(self, modules: dict[str, nn.Module], optimizer: Optimizer) -> dict[str, Any]:
        """Puts the latest checkpoint into `modules` and `optimizer`.

        Returns:
            What was saved beside them, with ``step``; step 0 where there is no checkpoint.

        Raises:
            RunError: It is damaged.
        """
        latest = self.latest_step
        if latest is None:
            return {"step": 0}
        source = self.path / CHECKPOINT / f"step-{latest}"
        try:
            content = _State.model_validate_json((source / "state.json").read_bytes())
            for name, module in modules.items():
                file = f"{name}.safetensors"
                module.load_state_dict(_load_tensors(source / file, content.sha256.get(file)))
            state: dict[int, dict[str, Tensor]] = {}
            file = "optimizer.safetensors"
            for key, tensor in _load_tensors(source / file, content.sha256.get(file)).items():
                number, _, name = key.partition(".")
                state.setdefault(int(number), {})[name] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        except (RunError, OSError, ValueError, RuntimeError) as error:
            said = first_line(error)
            if isinstance(error, RunError) and error.path is not None:
                said = f"{error.path.name}: {error.what}"
            hint = "remove this folder, and the run begins again"
            raise RunError(f"is damaged: {said}", path=source, hint=hint) from error
        return content.model_dump(exclude_unset=True, exclude={"sha256"})

    def checkpoint_tensors(self, *names: str) -> tuple[int, dict[str, dict[str, Tensor]]]:
        """Tensors of the latest checkpoint of a training, which may go on meanwhile.

        Args:
            names: Of the modules that are wanted; those that it does not have are left out.

        Returns:
            Its step, and the tensors of each module, on the CPU.

        Raises:
            RunError: There is no checkpoint, or it is damaged.
        """
        for _ in range(3):  # one that is read may give way to the next
            step = self.latest_step
            if step is None:
                break
            folder = self.path / CHECKPOINT / f"step-{step}"
            try:
                files = {name: folder / f"{name}.safetensors" for name in names}
                return step, {name: _load_tensors(file) for name, file in files.items() if file.exists()}
            except RunError:
                if folder.exists():
                    raise
        raise RunError("has no checkpoint yet", path=self.path, hint="wait for the first one")

    def finish(self, result: dict[str, Any]) -> None:
        """Marks the run complete and drops its checkpoint."""
        self.info.result.update(result)
        self.info.complete = True
        self.info.weights_sha256 = file_sha256(self.path / WEIGHTS) if (self.path / WEIGHTS).exists() else None
        self.write_info()
        shutil.rmtree(self.path / CHECKPOINT, ignore_errors=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Adds a line to ``metrics.csv``: one value a row, so that any metric may come at any step."""
        path = self.path / METRICS
        new = not path.exists()
        with full_disk_named(path), path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                file.write(f"{_METRICS_HEAD}\n")
            writer.writerows((step, name, f"{value:.6g}") for name, value in values.items())

    def trim_metrics(self, step: int) -> None:
        """Drops the lines after `step`, which a continued run will write again, and a torn last line.

        Raises:
            RunError: A line is damaged.
        """
        path = self.path / METRICS
        if path.exists():
            kept = [line for line, (at, _, _) in self._metric_lines() if at <= step]
            write_text(path, "\n".join([_METRICS_HEAD, *kept]) + "\n")

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """The curves of ``metrics.csv``: steps and values by name; none before the first line.

        Raises:
            RunError: A line is damaged.
        """
        curves: dict[str, list[tuple[int, float]]] = {}
        for _, (step, name, value) in self._metric_lines():
            curves.setdefault(name, []).append((step, value))
        return curves

    def _metric_lines(self) -> Iterator[tuple[str, tuple[int, str, float]]]:
        path = self.path / METRICS
        if not path.exists():
            return
        try:
            *lines, torn = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"cannot be read: {error}", path=path, hint=_METRICS_HINT) from error
        if not lines and torn in _METRICS_HEAD:  # empty, or killed within its first line
            return
        if not lines or lines[0] != _METRICS_HEAD:
            raise RunError(f"does not begin with '{_METRICS_HEAD}'", path=path, hint=_METRICS_HINT)
        # A process that was killed leaves half a line at the end: it counts as not written.
        for number, line in enumerate(lines[1:], 2):
            try:
                (cells,) = csv.reader([line])
                step, name, value = cells
                yield line, (int(step), name, float(value))
            except ValueError as error:
                raise RunError(f"line {number} is no '{_METRICS_HEAD}'", path=path, hint=_METRICS_HINT) from error


def _check_format(content: bytes, path: Path) -> None:
    """Refuses a run of another format by its number, before its other fields are looked at.

    Raises:
        RunError: It is of another format.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return  # the model names what is wrong
    number = found.get("format", 1) if isinstance(found, dict) else FORMAT
    if number != FORMAT:
        older = isinstance(number, int) and number < FORMAT
        what = f"is of format {number}, and this hssl reads format {FORMAT}"
        raise RunError(what, path=path, hint=_OLDER if older else _NEWER)


def _unreadable(error: ValidationError, path: Path) -> RunError:
    """What is wrong with a run's files; the first mistake is named."""
    mistakes = error.errors()
    if mistakes[0]["type"] == "extra_forbidden":
        field = ".".join(map(str, mistakes[0]["loc"]))
        return RunError(f"has a field '{field}' that this hssl does not know", path=path, hint=_NEWER)
    return RunError(
        f"its files cannot be read: {first_mistake(error)}",
        path=path,
        hint="copy the run again from where it came, or train again",
    )


def _begun(name: str) -> bool:
    return name == CONFIG or name.startswith(".partial-")


def load_unet(path: Path | str) -> tuple[UNet, Run]:
    """The encoder-decoder of a pre-training or fine-tuning run, in evaluation mode on the CPU.

    Raises:
        RunError: The folder is not a complete run.
    """
    run = Run.open(path)
    return _unet(run, run.load_weights(), run.path / WEIGHTS), run


def latest_unet(run: Run) -> tuple[UNet, int]:
    """As :func:`load_unet`, and the step that it is from: of the latest checkpoint where the run still trains.

    Raises:
        RunError: There is neither.
    """
    step, weights, place = _latest_weights(run)
    return _unet(run, weights, place), step


def latest_segmentation(run: Run) -> tuple[SegmentationNetwork, int]:
    """The network of a fine-tuning, and the step that it is from: of the latest checkpoint where it still trains.

    Raises:
        RunError: There is neither, or the run is no fine-tuning.
    """
    network = _segmentation(run)
    step, weights, place = _latest_weights(run)
    _put(weights, network, place)
    return network.eval(), step


def _latest_weights(run: Run) -> tuple[int, dict[str, Tensor], Path]:
    """The step of the latest weights, the weights, and where they are: of a checkpoint where the run still trains."""
    if run.info.complete:
        return run.config.steps, run.load_weights(), run.path / WEIGHTS
    step, modules = run.checkpoint_tensors("average", "network")
    return step, modules.get("average") or modules.get("network", {}), run.path / CHECKPOINT


def _unet(run: Run, weights: dict[str, Tensor], place: Path) -> UNet:
    """The encoder-decoder of a run, with the weights that are at `place`; of a fine-tuning these have a head too."""
    if run.info.stage == "finetune":
        weights = {key.removeprefix("unet."): value for key, value in weights.items() if key.startswith("unet.")}
    network = build_network(run.info.network)
    _put(weights, network, place)
    return network.eval()


def load(path: Path | str) -> UNet:
    """The encoder-decoder of a run as a :class:`torch.nn.Module`, in evaluation mode on the CPU.

    ``network.encode(images)`` maps ``[B, 1, H, W]`` in [0, 1] to the features of every encoder stage, shallow to deep;
    ``network.channels`` are their channels. ``network.decode(features)`` gives those of every decoder stage, coarse to
    fine, and ``network(images)`` the last of them, ``[B, channels[0], H, W]``. Height and width are multiples of
    ``network.divisor``, per axis.

    Args:
        path: A complete run folder, or ``hf://OWNER/NAME``.

    Raises:
        RunError: There is no complete run.
    """
    return load_unet(path)[0]


def load_segmentation(path: Path | str) -> tuple[SegmentationNetwork, Run, TaskInfo]:
    """The network of a fine-tuning run, in evaluation mode on the CPU, and its task with preprocessing and labels.

    Raises:
        RunError: The folder is not a complete fine-tuning run.
    """
    run = Run.open(path)
    network = _segmentation(run)
    _put(run.load_weights(), network, run.path / WEIGHTS)
    return network.eval(), run, run.task


def _segmentation(run: Run) -> SegmentationNetwork:
    """A network of the shape of a fine-tuning run."""
    task = run.task
    if not isinstance(run.config, FinetuneConfig):
        hint = "run.json and config.json are of two runs: copy the folder again"
        raise RunError("has a task, and the options of a pre-training", path=run.path, hint=hint)
    return SegmentationNetwork(build_network(run.info.network), task.classes, run.config.head)


def provenance(config: TrainingConfig, store: Store) -> dict[str, Any]:
    """What it takes to make a run again: hashes of the data and its split, seed, versions, git revision, machine."""
    return {
        "data": {"store": store.hash, "split": store.split_hash},
        "store_path": str(store.path.absolute()),
        "seed": config.seed,
        "versions": versions("torch", "lightning", "numpy") | {"python": platform.python_version()},
        "git": _git_revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of hssl, which need not be installed to run, and of these packages."""
    return {"hssl": __version__} | {name: version(name) for name in packages}


def _git_revision() -> str | None:
    # Only a checkout of this project says something about the code that ran.
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # `save_file` would make a file that nobody else can read, and has errors of its own for a full disk.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)
        flush(temporary)


def _load_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a file, on the CPU: as they were written, and finite.

    Raises:
        RunError: They have changed or are not finite, or the file cannot be read.
    """
    again = "copy the run again from where it came, or train again"
    try:
        if sha256 is not None and file_sha256(path) != sha256:
            raise RunError("has changed since training wrote it: its checksum is another", path=path, hint=again)
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot be read: {error}", path=path, hint=again) from error
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise RunError(f"'{broken[0]}' holds values that are not finite", path=path, hint=again)
    return tensors


def _put(weights: dict[str, Tensor], network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        hint = "copy the run again from where it came, or train again"
        raise RunError("are not the weights of this run's network", path=path, hint=hint) from error
