"""One pydantic model per stage: validated before anything runs, saved with every run, read back on resume."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from hssl.errors import ConfigError

HARMLESS = ("workers", "log_every", "checkpoint_every")
"""Options of a training that may change when it goes on; what it computes does not depend on them."""
SCRATCH = "scratch"
"""Stands for a run to start from where there is none."""

Fraction = Annotated[float, Field(ge=0, le=1)]
HeadKind = Literal["all", "last"]
# YAML reads a bare 32 as a number, and `hssl groups -o FILE.json` writes numbers for the names of groups.
_number_as_text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
Precision = Annotated[Literal["auto", "bf16", "32"], _number_as_text]
GroupName = Annotated[str, _number_as_text]
SubjectName = Annotated[str, _number_as_text]


class _Yaml(yaml.SafeLoader):
    """YAML whose whole numbers are decimal: 003 is a name, as of a subject, and neither 3 nor octal."""


_INT = "tag:yaml.org,2002:int"
_Yaml.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """What a YAML text holds; whole numbers are decimal, and one with a leading zero is a name.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, _Yaml)


def names_in(text: str) -> list[str]:
    """The names in a text with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def labels_in(text: str) -> str | int | list[str]:
    """``5%`` stays text, ``3`` is a number of subjects; ``a,b``, ``003`` and ``3,`` are lists of them."""
    text = text.strip()
    if text.endswith("%"):
        return text
    return int(text) if text.isdecimal() and (text == "0" or not text.startswith("0")) else names_in(text)


_KINDS = {
    r"a valid (tuple|list)": "a list",
    r"a valid dictionary( or instance of \w+)?": "names with values",
    r"a valid string": "text",
    r"a valid integer": "a whole number",
    r"a valid number": "a number",
    r"a valid boolean": "true or false",
}
"""What pydantic calls the kinds of values, and what one would say."""


class StageConfig(BaseModel):
    """Base of every configuration: unknown keys are errors, values are frozen once validated."""

    # Infinity and NaN have no place in the JSON that a run keeps.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def load(cls, path: Path | str | None = None, below: dict[str, Any] | None = None, /, **overrides: Any) -> Self:
        """Reads a YAML file, puts `overrides` on top, and validates.

        Args:
            path: A YAML (or JSON) file with any subset of the fields; None for the defaults.
            below: Fields that take the place of defaults.
            **overrides: Fields by name.

        Raises:
            ConfigError: The file cannot be read, or a value is not valid; the message names the field.
        """
        values = dict(below or {})
        if path is not None:
            values.update(read_mapping(path, "options", may_be_empty=True))
        return cls.checked(values | overrides, path=path)

    @classmethod
    def checked(cls, values: dict[str, Any], *, path: Path | str | None = None) -> Self:
        """Validates `values`; a mistake becomes a one-line :class:`ConfigError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_told(error, cls), path=path) from error


def read_mapping(
    path: Path | str, what: str, line: str = "name: value", *, may_be_empty: bool = False
) -> dict[str, Any]:
    """Reads a YAML (or JSON) file of names and values.

    Args:
        path: The file.
        what: What it should hold, for messages.
        line: How a line of it looks, for messages.
        may_be_empty: Take an empty file for an empty mapping.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        loaded = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"not a readable YAML file: {error}", path=path) from error
    if loaded is None and may_be_empty:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"holds no {what}", path=path, hint=f"write one '{line}' a line")
    return loaded


def _told(error: ValidationError, cls: type[StageConfig]) -> str:
    """The first mistake in one line, without pydantic's names of the kinds that a value may have."""
    mistakes = error.errors()
    # A name that nobody knows comes first: it may be a misspelled one that is missing.
    first = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    name = _option(first)
    if first["type"] == "extra_forbidden":
        close = get_close_matches(name, cls.model_fields, 1) if len(first["loc"]) == 1 else []
        return f"no option '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    says = " or ".join(dict.fromkeys(_says(each) for each in mistakes if _option(each) == name))
    return f"option '{name}': {says}" if name else says


def _option(mistake: ErrorDetails) -> str:
    # A value that may be of several kinds has a mistake for each, with the kind at the end of its place.
    parts = [str(part) for part in mistake["loc"]]
    while parts and (parts[-1] in ("str", "int", "constrained-int", "constrained-str") or "[" in parts[-1]):
        parts.pop()
    return ".".join(parts)


def _says(mistake: ErrorDetails) -> str:
    if mistake["type"] == "missing":
        return "has to be given"
    said = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    for kind, plain in _KINDS.items():
        said = re.sub(kind, plain, said)
    return said


class GivenSplit(StageConfig):
    """Who validates and who tests, by name; all others train.

    Attributes:
        val: Subjects for validation.
        test: Subjects for test.
    """

    val: tuple[SubjectName, ...] = ()
    test: tuple[SubjectName, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _names_val_and_test(cls, value: Any) -> Any:
        if isinstance(value, list | tuple | str):
            raise ValueError("should be {val: [...], test: [...]}")
        if isinstance(value, dict) and "train" in value:
            raise ValueError("all who are not named train: leave 'train' out")
        return value

    @model_validator(mode="after")
    def _once(self) -> Self:
        named = [*self.val, *self.test]
        if twice := sorted({subject for subject in named if named.count(subject) > 1}):
            raise ValueError(f"subject '{twice[0]}' is named twice")
        return self


class AggregateConfig(StageConfig):
    """How raw challenges become a store.

    Attributes:
        layout: Reader to use; None finds it from the folder.
        subject: Regular expression over the case id whose first group (or whole match) is the subject.
        channel: Channel of multi-channel sources by name or number; None makes one task of each channel.
        task: Name of the task, for a single source; None takes it from the folder.
        window: CT window (low, high) in HU, for sources that are CT or do not say; None scales each case by robust
            percentiles.
        spacing: In-plane spacing in mm (rows, columns) for all tasks; None takes each task's median.
        orientation: Where stored rows, columns and slices point, for example ``PLS``; None decides by task.
        fractions: Shares of the subjects in training, validation and test.
        seed: Seed of the split.
        splits: Split of your own, by name of the source's folder; those without one are split at random.
        skip_bad: Leave bad cases out and list them, instead of stopping before anything is written.
        workers: Threads; None uses every core.
    """

    layout: Literal["msd", "nnunet", "nifti", "images2d", "dicom"] | None = None
    subject: str | None = None
    channel: str | int | None = None
    task: str | None = None
    window: tuple[float, float] | None = None
    spacing: tuple[PositiveFloat, PositiveFloat] | None = None
    orientation: str | None = None
    fractions: tuple[Fraction, Fraction, Fraction] = (0.60, 0.15, 0.25)
    seed: int = Field(0, ge=0)
    splits: dict[str, GivenSplit] | None = None
    skip_bad: bool = False
    workers: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("the three fractions must add up to 1")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("a window is (low, high) with low < high")
        if self.orientation is not None:
            axes = sorted(
                "".join(sorted(line for line in ("LR", "AP", "IS") if letter in line)) for letter in self.orientation
            )
            if axes != ["AP", "IS", "LR"]:
                raise ValueError("an orientation is three letters, one each of L/R, A/P and I/S, like PLS")
        return self


class NetworkConfig(StageConfig):
    """Shape of the U-Net, in the terms of nnU-Net's plans.

    Attributes:
        encoder: ``plain`` (nnU-Net's PlainConvUNet) or ``residual`` (its ResidualEncoderUNet).
        features: Channels per encoder stage, full resolution first.
        blocks: Convolutions (plain) or residual blocks (residual) per encoder stage.
        decoder_convs: Convolutions per decoder stage, lowest resolution first.
        kernels: Kernel size per encoder stage.
        strides: Stride on entering each encoder stage; the first is 1.
    """

    encoder: Literal["plain", "residual"] = "plain"
    features: tuple[PositiveInt, ...] = (16, 32, 64, 128, 256)
    blocks: tuple[PositiveInt, ...] = ()
    decoder_convs: tuple[PositiveInt, ...] = ()
    kernels: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    strides: tuple[tuple[PositiveInt, PositiveInt], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, str):
            if values not in PRESETS:
                raise ValueError(f"no network preset '{values}', choose one of {', '.join(PRESETS)}")
            values = dict(PRESETS[values])
        features = values.get("features", cls.model_fields["features"].default) if isinstance(values, dict) else None
        if isinstance(features, list | tuple):
            stages = len(features)
            values = {
                "blocks": (2,) * stages,
                "decoder_convs": (2,) * (stages - 1),
                "kernels": ((3, 3),) * stages,
                "strides": ((1, 1),) + ((2, 2),) * (stages - 1),
                **values,
            }
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = len(self.features)
        lengths = (len(self.blocks), len(self.decoder_convs) + 1, len(self.kernels), len(self.strides))
        if stages < 3 or any(length != stages for length in lengths):
            raise ValueError("a network needs at least 3 stages, and one entry for each stage in every list")
        if self.strides[0] != (1, 1):
            raise ValueError("the first stride must be (1, 1): the decoder ends at the first stage's resolution")
        if any(side % 2 == 0 for kernel in self.kernels for side in kernel):
            raise ValueError("kernel sizes must be odd")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    # About 1.9 M parameters: trains on a CPU.
    "small": {"features": (16, 32, 64, 128, 256)},
    # nnU-Net's own 2D shapes, six stages so that any multiple of 32 is a patch size.
    "base": {"features": (32, 64, 128, 256, 512, 512)},
    "large": {
        "encoder": "residual",
        "features": (32, 64, 128, 256, 512, 512),
        "blocks": (1, 3, 4, 6, 6, 6),
        "decoder_convs": (1, 1, 1, 1, 1),
    },
}


class ViewConfig(StageConfig):
    """Ranges of the augmentation. Lengths are shares of the patch, intensities lie in [0, 1].

    Attributes:
        scale: Smallest and largest side of the region shown, relative to the patch.
        rotate: Largest rotation in degrees.
        shift: Share of the free room between region and window that a shift may use.
        flip: Probability of a flip along rows and along columns. 0 by default: left and right differ in the body.
        elastic: Standard deviation of the shift of a control point, as a share of the window.
        intensity: Probability of each of the intensity changes below.
        contrast: Largest absolute logarithm of the contrast factor.
        brightness: Largest shift.
        gamma: Largest absolute logarithm of the exponent.
        bias_field: Largest standard deviation of the logarithm of the bias field at its control points.
        blur: Largest standard deviation of the Gaussian blur, in pixels; its kernel has a radius of 3.
        noise: Largest standard deviation of the noise.
        hide: Share of the image hidden in blocks.
        hide_block: Side of a hidden block in pixels.
    """

    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.3)
    rotate: float = Field(20.0, ge=0, le=180)
    shift: Fraction = 1.0
    flip: tuple[Fraction, Fraction] = (0.0, 0.0)
    elastic: float = Field(0.0, ge=0, le=0.1)
    intensity: Fraction = 0.5
    contrast: float = Field(0.4, ge=0)
    brightness: float = Field(0.15, ge=0)
    gamma: float = Field(0.5, ge=0)
    bias_field: float = Field(0.3, ge=0)
    blur: float = Field(1.2, ge=0, le=1.5)
    noise: float = Field(0.06, ge=0)
    hide: Fraction = 0.0
    hide_block: PositiveInt = 8

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale is (smallest, largest)")
        return self


class TrainingConfig(StageConfig):
    """What pre-training and fine-tuning have in common.

    Attributes:
        patch_size: Side of what the network sees, in pixels; a multiple of the network's divisor.
        window_size: Side of what is read around it; None is the patch size times 4/3, in steps of 8.
        steps: Optimiser steps.
        learning_rate: Peak of the schedule (linear warm-up, then cosine to 0; AdamW).
        weight_decay: Of AdamW.
        warmup: Steps of the warm-up.
        gradient_clip: Largest norm of the gradient.
        seed: Fixes every draw: step t of a run depends on (seed, t) alone.
        precision: ``bf16`` (autocast) or ``32``; ``auto`` is bf16 where the device has it.
        checkpoint_every: Steps between checkpoints to continue from.
        log_every: Steps between lines of the metrics.
        accelerator: As Lightning's: ``auto``, ``cpu``, ``gpu`` ...
        devices: Devices per node.
        nodes: Nodes.
        workers: Loader processes; None is 0 on a CPU and 4 a device elsewhere.
        loggers: Where curves go besides ``metrics.csv``: ``tensorboard``, ``wandb`` and ``mlflow``, which write into
            the run folder unless their own variables (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``) say otherwise.
    """

    patch_size: PositiveInt = 96
    window_size: PositiveInt | None = None
    steps: PositiveInt = 1250
    learning_rate: PositiveFloat
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(50, ge=0)
    gradient_clip: PositiveFloat = 5.0
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 250
    log_every: PositiveInt = 10
    accelerator: str = "auto"
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    workers: int | None = Field(None, ge=0)
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    @property
    def window(self) -> int:
        """Side of the window that is read, in pixels."""
        return self.window_size or math.ceil(self.patch_size / 6) * 8

    def decisive(self) -> dict[str, Any]:
        """What decides what a run computes, as JSON has it: without `loggers`, and with the defaults of `HARMLESS`."""
        defaults = {name: type(self).model_fields[name].default for name in HARMLESS}
        return self.model_dump(mode="json", exclude={"loggers"}) | defaults

    @model_validator(mode="before")
    @classmethod
    def _rest_of_view_is_the_stage_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("view"), dict):
            default: ViewConfig = cls.model_fields["view"].get_default(call_default_factory=True)
            return {**values, "view": {**default.model_dump(), **values["view"]}}
        return values

    @model_validator(mode="after")
    def _window_holds_patch(self) -> Self:
        if self.window < self.patch_size:
            raise ValueError("window_size must not be smaller than patch_size")
        return self


class PretrainConfig(TrainingConfig):
    """Pre-training without masks.

    Attributes:
        tasks: Tasks of the store to learn from; None is all of them.
        init: A run folder whose encoder and decoder to go on with, usually of pre-training on more tasks, or
            ``scratch``. The objective's heads are new.
        objective: Name in the registry of objectives.
        options: Options of the objective, by name.
        network: A preset (``small``, ``base``, ``large``) or a shape; a run to start from brings its own.
        batch_size: Images a step, over all devices; each is seen in two views.
        domains_per_batch: Tasks that share a batch; `hierarchical` tells them apart, and needs two.
        tempering: A task is drawn with probability proportional to its slices to this power.
        groups: ``auto`` finds groups of tasks in the features, and how many; a number finds so many; ``none`` leaves
            the group level off, and a mapping of task to group name sets them.
        group_start: Share of the steps after which groups are looked for.
        view: Ranges of the augmentation; those not given are as here by default.
    """

    tasks: tuple[str, ...] | None = Field(None, min_length=1)
    init: str = SCRATCH
    objective: str = "hierarchical"
    options: dict[str, Any] = Field(default_factory=dict)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    batch_size: PositiveInt = 32
    # Lower losses than at 1e-3 after as many steps, for `hierarchical` on `small` (docs/experiments.md).
    learning_rate: PositiveFloat = 4e-3
    domains_per_batch: PositiveInt = 2
    tempering: Fraction = 0.5
    groups: Literal["auto", "none"] | Annotated[int, Field(ge=2)] | dict[str, GroupName] = "auto"
    group_start: Fraction = 0.1
    view: ViewConfig = ViewConfig(hide=0.3)

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := [task for task in tasks or () if (tasks or ()).count(task) > 1]:
            raise ValueError(f"task '{twice[0]}' is named twice")
        return tasks

    @model_validator(mode="after")
    def _views_are_affine(self) -> Self:
        if self.view.elastic:
            raise ValueError("view.elastic is for fine-tuning: points are followed from view to view by affine maps")
        return self

    def decisive(self) -> dict[str, Any]:
        """As for every stage; ledgers from before `init` hold runs from scratch."""
        decided = super().decisive()
        return {name: value for name, value in decided.items() if name != "init" or value != SCRATCH}


class FinetuneConfig(TrainingConfig):
    """Fine-tuning on masks of one task.

    Attributes:
        task: The task.
        labels: Masks that may be used for training: a share (``5%``), a number of subjects, or their ids.
        init: A run folder, usually of pre-training, or ``scratch``.
        network: Shape of the network when starting from scratch; a run brings its own.
        batch_size: Patches a step, over all devices.
        foreground: Share of the patches that are drawn around a voxel of a label.
        head: Decoder stages that the segmentation head reads: ``all``, or the ``last`` alone.
        head_rate: Learning rate of the segmentation head, relative to `learning_rate`.
        init_rate: Learning rate of loaded layers, relative to `learning_rate`.
        frozen: Steps at the start in which only the new head learns.
        rehearsal: Weight of the pretext losses as an auxiliary loss, on all training scans of the task, masked or
            not. 0 is fine-tuning on masks alone, and so is a start without an objective.
        rehearsal_batch_size: Scans of the auxiliary loss a step, over all devices; each is seen in two views.
        rehearsal_objective: Of the auxiliary loss; None is that of the pre-training to start from, and none from
            scratch.
        validation: Keep the checkpoint with the best validation Dice; the validation subjects then count as
            labelled. Off: the last checkpoint of a fixed schedule.
        validate_every: Steps between validations.
        view: Ranges of the augmentation; those not given are as here by default.
    """

    task: str
    labels: str | PositiveInt | tuple[SubjectName, ...] = "100%"
    init: str = SCRATCH
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    batch_size: PositiveInt = 16
    # At 1e-3 loaded weights need as many steps as new ones, and both are far from done (docs/experiments.md).
    learning_rate: PositiveFloat = 3e-3
    foreground: Fraction = 0.5
    head: HeadKind = "all"
    # Its few weights must grow to several units before the network is sure of anything (docs/experiments.md).
    head_rate: PositiveFloat = 30.0
    init_rate: PositiveFloat = 1.0
    frozen: int = Field(0, ge=0)
    rehearsal: float = Field(0.3, ge=0)
    rehearsal_batch_size: PositiveInt = 4
    rehearsal_objective: str | None = None
    validation: bool = True
    validate_every: PositiveInt = 250
    view: ViewConfig = ViewConfig(elastic=0.02)

    @property
    def rehearses(self) -> bool:
        """Whether pretext losses are asked for; from scratch only if an objective is named."""
        return self.rehearsal > 0 and (self.init != SCRATCH or self.rehearsal_objective is not None)

    def rehearsed(self, before: PretrainConfig | None) -> dict[str, Any]:
        """Objective, options and views of the auxiliary loss after the pre-training `before`; empty without one."""
        if not self.rehearsal:
            return {}
        if before is not None and self.rehearsal_objective in (None, before.objective):
            return before.model_dump(include={"objective", "options", "view"})
        return {} if self.rehearsal_objective is None else {"objective": self.rehearsal_objective}

    def decisive(self) -> dict[str, Any]:
        """As for every stage; ledgers from before `head`, `head_rate` and `rehearsal` hold runs without them."""
        decided = super().decisive()
        without = {"head": "last", "head_rate": 1, "rehearsal_objective": None}
        if not self.rehearses:
            without |= {name: decided[name] for name in decided if name.startswith("rehearsal")}
        return {name: value for name, value in decided.items() if name not in without or without[name] != value}
