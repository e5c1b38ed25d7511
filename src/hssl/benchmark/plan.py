"""What to compare: tasks x label fractions x arms x seeds, in one YAML file, and the runs that this takes.

An arm is where fine-tuning starts from, so the claims, the rivals and the ablation are lines of a plan::

    store: store
    tasks: [Task03_Cardiac, Task06_BrainTumour]   # all of the store if left out
    fractions: ["5%", "10%"]
    seeds: [0, 1, 2]
    pretrain:
      steps: 10000
      options: {weights: {group: 0.05, task: 0.05, image: 0.1, place: 1, region: 0.1, tissue: 1, pixel: 10}}
    finetune: {steps: 1000, validation: false}
    finetune_by_task: {Task06_BrainTumour: {view: {flip: [0.5, 0.5]}}}
    arms:
      scratch: {domains: none}
      single: {domains: single, pretrain: {steps: 5000}}
      joint: {domains: joint}
      adapted: {domains: joint, adapt: {steps: 300}}
      simclr: {domains: joint, pretrain: {objective: simclr}}
      no-image: {domains: joint, pretrain: {options: {weights: {image: 0}}}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from hssl.config import SCRATCH, FinetuneConfig, NetworkConfig, PretrainConfig, StageConfig
from hssl.errors import ConfigError, StoreError
from hssl.grouping import check_groups
from hssl.networks import UNet, build_network
from hssl.objectives import Domains, Objective, build_objective, build_rehearsed, objective_options
from hssl.store import CaseRecord, Store
from hssl.training.finetune import rehearsed_pretraining, validation_subjects
from hssl.training.loggers import check_loggers
from hssl.training.pretrain import check_batch_size, check_mixture, check_patch, groups_at_start

# Set by the grid, so never by hand.
_PRETRAIN_FIXED = {"tasks", "init"}
_ADAPT_FIXED = {"network", "objective"}
_FINETUNE_FIXED = {"task", "labels", "init", "seed"}


class Arm(StageConfig):
    """One way to start fine-tuning.

    Attributes:
        domains: What is pre-trained on: ``joint`` (all tasks of the store), ``single`` (the task at hand alone), a
            list of tasks, or ``none`` (from scratch).
        fractions: Those of the plan's fractions that this arm runs; None is all of them.
        pretrain: Options of pre-training that differ from the plan's.
        adapt: Options in which a second pre-training, that goes on from the first on the task at hand alone, differs
            from it; None is no second one. (Task-adaptive pre-training: Gururangan et al., ACL 2020.)
        finetune: Options of fine-tuning that differ from the plan's.
    """

    domains: Literal["joint", "single", "none"] | tuple[str, ...] = "joint"
    fractions: tuple[str | PositiveInt, ...] | None = Field(None, min_length=1)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    adapt: dict[str, Any] | None = None
    finetune: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _scratch_is_scratch(self) -> Self:
        if self.domains == "none" and (self.pretrain or self.adapt is not None):
            raise ValueError("an arm with 'domains: none' has no pre-training to set options of")
        return self

    @model_validator(mode="after")
    def _adapts_what_it_has(self) -> Self:
        if taken := sorted(_ADAPT_FIXED.intersection(self.adapt or {})):
            raise ValueError(f"'{taken[0]}' cannot change on the way: 'adapt' goes on with that of the arm")
        return self


class EvaluationPlan(StageConfig):
    """How fine-tuned networks are scored.

    Attributes:
        part: ``val`` while anything is still being chosen, ``test`` for a table to publish.
        space: ``source`` is the grid of the mask files, ``store`` the store's: quicker, for tuning.
        tolerance: Of surface Dice, in mm.
    """

    part: Literal["val", "test"] = "test"
    space: Literal["source", "store"] = "source"
    tolerance: NonNegativeFloat = 2.0


class BenchmarkPlan(StageConfig):
    """A comparison.

    Options of the plan and of an arm are joined level by level. The plan's options of the objective go to the arms
    with the plan's objective only, since those of another are not its own.

    Attributes:
        store: The aggregated data, from the working directory.
        tasks: Tasks to fine-tune; None is all of the store.
        fractions: Labelled subjects: shares (``5%``) or numbers.
        seeds: Each fixes the labelled subjects, the new head and the batches, the same for every arm.
        arms: The arms by name.
        pretrain: Options of pre-training that all arms share.
        finetune: Options of fine-tuning that all arms share; the network is that of pre-training.
        finetune_by_task: What differs from that on a task, for every arm; an arm's own options come over both.
        evaluation: How the networks are scored.
        keep_weights: Keep the weights of fine-tuned networks after they have been scored.
    """

    store: str
    tasks: tuple[str, ...] | None = None
    fractions: tuple[str | PositiveInt, ...] = Field(("5%",), min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)
    finetune_by_task: dict[str, dict[str, Any]] = Field(default_factory=dict)
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)
    keep_weights: bool = False

    @field_validator("fractions", mode="before")
    @classmethod
    def _shares_are_percentages(cls, values: Any) -> Any:
        for value in values if isinstance(values, list | tuple) else ():
            if isinstance(value, float):
                raise ValueError(f'write a share as "{100 * value:g}%", not {value:g}')
        return values

    @field_validator("tasks", "fractions", "seeds")
    @classmethod
    def _no_doubles(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError("names something twice")
        return values

    @model_validator(mode="after")
    def _arms_keep_to_the_fractions(self) -> Self:
        for name, arm in self.arms.items():
            if stray := [labels for labels in arm.fractions or () if labels not in self.fractions]:
                raise ValueError(f"arm '{name}' runs '{stray[0]}', which is not one of the plan's fractions")
        return self

    @model_validator(mode="after")
    def _fixed_by_the_grid(self) -> Self:
        arms = self.arms.values()
        pretraining, finetuning = [arm.pretrain for arm in arms], [arm.finetune for arm in arms]
        adapting = [arm.adapt or {} for arm in arms]
        for every, fixed in (
            ([self.pretrain, *pretraining, *adapting], _PRETRAIN_FIXED),
            ([self.finetune, *self.finetune_by_task.values(), *finetuning], _FINETUNE_FIXED),
        ):
            if taken := sorted(fixed.intersection(name for options in every for name in options)):
                raise ValueError(f"'{taken[0]}' is set by the plan's tasks, fractions, seeds and arms")
        return self


@dataclass(frozen=True)
class Job:
    """A run that has to be made once, whichever cells of the grid need it.

    Attributes:
        stage: Pre-training or fine-tuning.
        hash: SHA-256 over all that decides the result, first 16 digits; also the name of its folder.
        config: The stage's configuration.
        needs: Hash of the pre-training that must be there first and that it goes on from; None without one.
    """

    stage: Literal["pretrain", "finetune"]
    hash: str
    config: PretrainConfig | FinetuneConfig
    needs: str | None = None

    @property
    def folder(self) -> str:
        """Its run folder, relative to that of the benchmark."""
        return f"{'pretrain' if self.stage == 'pretrain' else 'runs'}/{self.hash}"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, and the fine-tuning that fills it.

    Attributes:
        arm: Its arm.
        task: Its task.
        labels: Labelled subjects as the plan has them, for example ``5%``.
        fraction: The same as a share, in (0, 1]: a percentage as the plan has it, whatever it comes to in whole
            subjects; a number of subjects as their part of the training subjects with masks.
        seed: Its seed.
        hash: Of the fine-tuning.
    """

    arm: str
    task: str
    labels: str
    fraction: float
    seed: int
    hash: str

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What makes a line of the ledger this cell's, and no other configuration's."""
        return (self.arm, self.task, self.labels, self.seed, self.hash)


@dataclass(frozen=True)
class Grid:
    """A plan, spelled out.

    Attributes:
        cells: All arms of one task, fraction and seed side by side, so that an interrupted grid is still paired.
        jobs: Every run once, in the order of the cells, each pre-training before the first that needs it.
    """

    cells: list[Cell]
    jobs: dict[str, Job]

    def before(self, cell: Cell) -> list[str]:
        """Hashes of the pre-trainings that a cell's fine-tuning stands on, the last one first."""
        found: list[str] = []
        needs = self.jobs[cell.hash].needs
        while needs is not None:
            found.append(needs)
            needs = self.jobs[needs].needs
        return found


def expand(plan: BenchmarkPlan, store: Store) -> Grid:
    """Spells a plan out, and so checks every option of every run before the first one starts.

    Raises:
        ConfigError: An option is not valid.
        StoreError: The store lacks a task, has not so many labelled subjects, or no masks to score it with.
    """
    tasks = plan.tasks or tuple(store.tasks)
    if stray := sorted({*plan.finetune_by_task} - {*tasks}):
        raise ConfigError(f"option 'finetune_by_task': '{stray[0]}' is not a task of the plan")
    for task in tasks:
        if not _scored(plan, store, task):
            raise StoreError(
                f"task '{task}' has no masks of {plan.evaluation.part} subjects",
                path=store.path,
                hint="name the plan's 'tasks' without it, or score another 'part'",
            )
    data = {"store": store.hash, "split": store.split_hash}
    cells: list[Cell] = []
    jobs: dict[str, Job] = {}
    for labels in plan.fractions:
        for seed in plan.seeds:
            for task in tasks:
                labelled = store.labelled(task, labels, seed)
                for name, arm in plan.arms.items():
                    if arm.fractions is not None and labels not in arm.fractions:
                        continue
                    try:
                        before = _pretrainings(plan, arm, task, store, data)
                        job = _finetuning(plan, arm, task, labelled, seed, before[-1] if before else None, data)
                        if (
                            validation_subjects(cast("FinetuneConfig", job.config), store)
                            and plan.evaluation.part == "val"
                        ):
                            raise ConfigError(
                                "scores validation subjects, whose masks fine-tuning uses",
                                hint="set 'validation: false' under 'finetune', or 'part: test' under 'evaluation'",
                            )
                    except ConfigError as error:
                        raise ConfigError(f"arm '{name}': {error.what}", hint=error.hint) from error
                    for each in (*before, job):
                        jobs.setdefault(each.hash, each)
                    cells.append(Cell(name, task, str(labels), _fraction(labels, task, store), seed, job.hash))
    return Grid(cells, jobs)


def check_sources(plan: BenchmarkPlan, store: Store, tasks: Iterable[str]) -> None:
    """Looks for the files that scoring on their own grid will read, of `tasks`; what they hold is not read.

    Raises:
        StoreError: One is not where it was.
    """
    if plan.evaluation.space == "store":
        return
    for case in (case for task in tasks for case in _scored(plan, store, task)):
        for path in (case.image_path, case.label_path):
            if path is None or not Path(path).exists():
                raise StoreError(
                    f"is gone, which scoring case '{case.id}' of '{case.task}' needs",
                    path=path or case.image_path,
                    hint="put the source back, or set 'space: store' under 'evaluation'",
                )


def _scored(plan: BenchmarkPlan, store: Store, task: str) -> list[CaseRecord]:
    subjects = getattr(store.split(task), plan.evaluation.part)
    return [case for case in store.cases(task, subjects) if case.has_label]


def _pretrainings(plan: BenchmarkPlan, arm: Arm, task: str, store: Store, data: dict[str, str]) -> list[Job]:
    """What an arm does before fine-tuning, each going on from the one before."""
    if arm.domains == "none":
        return []
    tasks = {"joint": tuple(store.tasks), "single": (task,)}.get(str(arm.domains), arm.domains)
    for name in tasks:
        store.split(name)  # says so where there is no such task
    options = _pretrain_options(plan, arm)
    first = _pretraining({**options, "tasks": tasks}, data)
    if arm.adapt is None:
        return [first]
    own = {"tasks": (task,), "init": first.folder}
    return [first, _pretraining({**_joined(options, arm.adapt), **own}, data, needs=first.hash)]


def _pretraining(options: dict[str, Any], data: dict[str, str], needs: str | None = None) -> Job:
    config = PretrainConfig.checked(options)
    check_batch_size(config.batch_size, config, "batch size")
    check_groups(config.tasks or (), config.groups)
    _check_stage(config, config.network)
    content = [config.decisive(), objective_options(config.objective, config.options), data]
    domains = Domains(config.tasks or (), groups_at_start(config, config.tasks or ()))
    check_mixture(_objective(config.objective, json.dumps(config.options), config.network, domains), config)
    return Job("pretrain", _hash(content), config, needs)


def _check_stage(config: PretrainConfig | FinetuneConfig, shape: NetworkConfig) -> None:
    if config.devices * config.nodes > 1:
        raise ConfigError(
            "options 'devices' and 'nodes': a run of a benchmark has one device",
            hint="leave them out; --workers makes several runs at a time",
        )
    check_loggers(config)
    check_patch(config.patch_size, _on_paper(shape))


@lru_cache
def _on_paper(shape: NetworkConfig) -> UNet:
    with torch.device("meta"):  # its shape will do
        return build_network(shape)


@lru_cache
def _objective(
    objective: str, options: str, shape: NetworkConfig, domains: Domains, rehearsed: bool = False
) -> Objective:
    """Makes the objective once, so that options (as JSON) that do not fit it are told before any run."""
    network = _on_paper(shape)
    if rehearsed:
        return build_rehearsed(objective, network, domains.tasks[0], json.loads(options))
    return build_objective(objective, network, domains, json.loads(options))


def _pretrain_options(plan: BenchmarkPlan, arm: Arm) -> dict[str, Any]:
    common = dict(plan.pretrain)
    default = PretrainConfig.model_fields["objective"].default
    if arm.pretrain.get("objective", common.get("objective", default)) != common.get("objective", default):
        common.pop("options", None)
    return _joined(common, arm.pretrain)


def _finetuning(
    plan: BenchmarkPlan,
    arm: Arm,
    task: str,
    labelled: list[str],
    seed: int,
    pretraining: Job | None,
    data: dict[str, str],
) -> Job:
    options = _joined(_joined(plan.finetune, plan.finetune_by_task.get(task, {})), arm.finetune)
    network = _pretrain_options(plan, arm).get("network")
    if network is not None:
        options.setdefault("network", network)
    if pretraining is None:
        # They concern loaded layers only: setting them must not make scratch another run.
        options.pop("init_rate", None)
        options.pop("frozen", None)
    # Subjects by name: where 5 % and 10 % are the same subject, they are the same run.
    fixed = {"task": task, "labels": tuple(sorted(labelled)), "seed": seed}
    init = pretraining.folder if pretraining is not None else SCRATCH
    config = FinetuneConfig.checked({**options, **fixed, "init": init})
    check_batch_size(config.batch_size, config, "batch size", least=1)
    content: list[Any] = [config.decisive(), plan.evaluation.model_dump(mode="json"), data]
    if config.rehearses and config.rehearsal_objective is not None:
        content.append(objective_options(config.rehearsal_objective, {}))
    before = cast("PretrainConfig", pretraining.config) if pretraining is not None else None
    shape = config.network if before is None else before.network
    if "network" in config.model_fields_set and config.network != shape:
        raise ConfigError("option 'network' of fine-tuning is not that of pre-training", hint="set it in 'pretrain'")
    _check_stage(config, shape)
    if asked := rehearsed_pretraining(config, before):
        _objective(asked.objective, json.dumps(asked.options), shape, Domains((task,), (0,)), rehearsed=True)
    return Job("finetune", _hash(content), config, needs=None if pretraining is None else pretraining.hash)


def _joined(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `common`, level by level."""
    result = dict(common)
    for name, value in own.items():
        below = result.get(name)
        result[name] = _joined(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _fraction(labels: str | int, task: str, store: Store) -> float:
    if isinstance(labels, str) and labels.strip().endswith("%"):
        return float(labels.strip()[:-1]) / 100
    return len(store.labelled(task, labels)) / len(store.labelled(task, "100%"))


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
