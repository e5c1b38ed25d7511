"""Options that pre-training and fine-tuning share."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hssl.config.base import StageConfig, number_as_text
from hssl.config.view import ViewConfig

HARMLESS = ("workers", "log_every", "checkpoint_every")
"""Options of a training that may change when it goes on; what it computes does not depend on them."""
Precision = Annotated[Literal["auto", "bf16", "32"], number_as_text]


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

    def fingerprint_fields(self) -> dict[str, Any]:
        """The options that a result depends on, as JSON has them: no curves, and the defaults of `HARMLESS`."""
        defaults = {name: type(self).model_fields[name].default for name in HARMLESS}
        return self.model_dump(mode="json", exclude={"loggers", "probe_every"}) | defaults

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
