"""Options of ``hssl finetune``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hssl.config.base import SCRATCH, Fraction, SubjectName, registered, split_slices
from hssl.config.network import HeadKind, NetworkConfig
from hssl.config.training import TrainingConfig
from hssl.config.view import ViewConfig
from hssl.registry import AUXILIARIES

AUXILIARY_DEFAULTS: dict[str, bool | dict[str, Any]] = {"pretext": True, "self_training": False}
"""Auxiliaries that a mapping does not name are as here."""


class FinetuneConfig(TrainingConfig):
    """Fine-tuning on masks of one task.

    Attributes:
        task: The task.
        label_budget: Subjects whose masks may be used for training: a share (``5%``), a number, or their ids;
            ``3@5`` is 3 subjects and sets `labelled_slices` to 5.
        labelled_slices: Slices of each labelled case whose masks are used, evenly spread; None is all of them. The
            others are images without masks.
        init: A run folder, usually of pre-training, or ``scratch``.
        network: Shape of the network when starting from scratch; a run brings its own.
        batch_size: Patches a step, over all devices.
        foreground: Share of the patches that are drawn around a voxel of a label.
        head: Decoder stages that the segmentation head reads: ``all``, or the ``last`` alone.
        head_lr_factor: Learning rate of the segmentation head, relative to `learning_rate`.
        init_lr_factor: Learning rate of loaded layers, relative to `learning_rate`.
        freeze_steps: Steps at the start in which only the new head learns.
        ema_decay: Decay per step of the moving average of the weights, which is what the run keeps; 0 keeps the
            weights of the last step.
        auxiliary: What is learned from besides masks, on the images of all training subjects of the task: for each
            name ``true``, ``false`` or its options. Those not named are as here by default.
        validation: Keep the checkpoint with the best validation Dice; the validation subjects then count as
            labelled. Off: the last checkpoint of a fixed schedule.
        validate_every: Steps between validations.
        view: Ranges of the augmentation; those not given are as here by default.
    """

    task: str
    label_budget: str | PositiveInt | tuple[SubjectName, ...] = "100%"
    labelled_slices: PositiveInt | None = None
    init: str = SCRATCH
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    batch_size: PositiveInt = 16
    # At 1e-3 loaded weights need as many steps as new ones, and both are far from done (docs/experiments.md).
    learning_rate: PositiveFloat = 3e-3
    foreground: Fraction = 0.5
    head: HeadKind = "all"
    # Its few weights must grow to several units before the network is sure of anything (docs/experiments.md).
    head_lr_factor: PositiveFloat = 30.0
    init_lr_factor: PositiveFloat = 1.0
    freeze_steps: int = Field(0, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    auxiliary: dict[str, bool | dict[str, Any]] = Field(default_factory=AUXILIARY_DEFAULTS.copy)
    validation: bool = True
    validate_every: PositiveInt = 250
    view: ViewConfig = ViewConfig(elastic=0.02)

    @model_validator(mode="before")
    @classmethod
    def _slices_of_the_budget(cls, values: Any) -> Any:
        if isinstance(values, dict):
            label_budget, slices = split_slices(values.get("label_budget"))
            if slices is not None:
                return {**values, "label_budget": label_budget, "labelled_slices": slices}
        return values

    @field_validator("auxiliary")
    @classmethod
    def _others_are_as_by_default(cls, given: dict[str, bool | dict[str, Any]]) -> dict[str, bool | dict[str, Any]]:
        for name in given:
            registered(AUXILIARIES, name)
        return {**AUXILIARY_DEFAULTS, **given}

    @property
    def auxiliaries(self) -> dict[str, dict[str, Any]]:
        """Options of each auxiliary that is on."""
        return {name: {} if value is True else value for name, value in self.auxiliary.items() if value is not False}

    def fingerprint_fields(self) -> dict[str, Any]:
        """As for every stage; auxiliaries that are off do not count, and one without options is an empty mapping."""
        return super().fingerprint_fields() | {"auxiliary": self.auxiliaries}
