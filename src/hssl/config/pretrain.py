"""Options of ``hssl pretrain``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hssl.config.base import SCRATCH, Fraction, number_as_text, registered
from hssl.config.network import NetworkConfig
from hssl.config.training import TrainingConfig
from hssl.config.view import ViewConfig
from hssl.registry import OBJECTIVES

GroupName = Annotated[str, number_as_text]


class PretrainConfig(TrainingConfig):
    """Pre-training without masks.

    Attributes:
        tasks: Tasks of the store to learn from; None is all of them.
        init: A run folder whose encoder and decoder to go on with, usually of pre-training on more tasks, or
            ``scratch``. The objective's heads are new.
        objective: Name of the pretext objective, or ``module:Class`` of one of your own.
        options: Options of the objective, by name.
        network: A preset (``small``, ``base``, ``large``) or a shape; a run to start from brings its own.
        batch_size: Images a step, over all devices; each is seen in two views.
        domains_per_batch: Tasks that share a batch; `hierarchical` tells them apart, and needs two.
        task_sampling_exponent: A task is drawn with probability proportional to its slices to this power.
        groups: ``auto`` finds groups of tasks in the features, and how many; a number finds that many; ``none`` leaves
            the group level off, and a mapping of task to group name sets them.
        group_start: Share of the steps after which groups are looked for.
        view: Ranges of the augmentation; those not given are as here by default.
        probe_every: Steps between probes as in ``hssl probe``, for a curve; None is no probe. A probe reads masks of
            training and validation subjects; nothing is learned from them.
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
    task_sampling_exponent: Fraction = 0.5
    groups: Literal["auto", "none"] | Annotated[int, Field(ge=2)] | dict[str, GroupName] = "auto"
    group_start: Fraction = 0.1
    view: ViewConfig = ViewConfig(occlusion_ratio=0.3)
    probe_every: PositiveInt | None = None

    @field_validator("objective")
    @classmethod
    def _objective_is_known(cls, objective: str) -> str:
        return registered(OBJECTIVES, objective)

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
