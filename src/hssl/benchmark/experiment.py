"""What to compare: tasks x label budgets x arms x seeds, in one YAML file, and the runs that this takes.

An arm is one way to start fine-tuning, so baselines and an ablation are lines of an experiment::

    store: store
    tasks: [Task03_Cardiac, Task06_BrainTumour]   # all of the store if left out
    label_budgets: ["5%", "10%"]
    seeds: [0, 1, 2]
    pretrain:
      steps: 10000
      options: {weights: {group: 0.05, task: 0.05, image: 0.1, position: 1, local: 0.1, cluster: 1, restoration: 10}}
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from hssl.config import SCRATCH, FinetuneConfig, NetworkConfig, PretrainConfig, StageConfig, merge, split_slices
from hssl.errors import ConfigError, StoreError
from hssl.networks import SegmentationNetwork, UNet, build_network
from hssl.objectives import Domains, Objective, build_objective, checked_options
from hssl.store import CaseRecord, Store
from hssl.training.auxiliary import AuxiliaryOptions, Setting, build_auxiliaries, resolve_auxiliaries
from hssl.training.checks import check_batch_size, check_groups, check_patch
from hssl.training.finetune import validation_subjects
from hssl.training.loggers import check_loggers
from hssl.training.pretrain import groups_at_start

# The grid sets these.
_PRETRAIN_FIXED = {"tasks", "init"}
_ADAPT_FIXED = {"network", "objective"}
_FINETUNE_FIXED = {"task", "label_budget", "labelled_slices", "init", "seed"}


def _printable(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("a name is a text of printable characters")
    return name


def _is_label_budget(text: str) -> bool:
    subjects, at, slices = text.strip().partition("@")
    if at and not (slices.isdecimal() and int(slices) > 0):
        return False
    number, percent, rest = subjects.partition("%")
    if not percent:
        return number.isdecimal() and int(number) > 0
    try:
        return not rest and 0 < float(number) <= 100
    except ValueError:
        return False


Name = Annotated[str, AfterValidator(_printable)]


class Arm(StageConfig):
    """One way to start fine-tuning.

    Attributes:
        domains: What is pre-trained on: ``joint`` (all tasks of the store), ``single`` (the task at hand alone), a
            list of tasks, or ``none`` (from scratch).
        label_budgets: Those of the experiment's label budgets that this arm runs; None is all of them.
        pretrain: Options of pre-training that differ from the experiment's.
        adapt: Options of a second pre-training, on the task at hand alone, that differ from the first, which it
            continues; None leaves it out. (Task-adaptive pre-training: Gururangan et al., ACL 2020.)
        finetune: Options of fine-tuning that differ from the experiment's.
    """

    domains: Literal["joint", "single", "none"] | tuple[str, ...] = "joint"
    label_budgets: tuple[str | PositiveInt, ...] | None = Field(None, min_length=1)
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
            raise ValueError(f"'{taken[0]}' cannot change: 'adapt' continues the pre-training of the arm")
        return self


class Scoring(StageConfig):
    """How networks are scored.

    Attributes:
        method: ``finetune`` fine-tunes and scores what it gives; ``probe`` reads out the frozen network
            (:func:`hssl.probing.probe`), in minutes, to choose by.
        samples: Of the labelled subjects, for a probe.
        part: ``val`` while anything is still being chosen, ``test`` for a table to publish.
        space: ``source`` is the grid of the mask files, ``store`` the store's: quicker, for tuning.
        tolerance: Of surface Dice, in mm.
    """

    method: Literal["finetune", "probe"] = "finetune"
    samples: PositiveInt = 10
    part: Literal["val", "test"] = "test"
    space: Literal["source", "store"] = "source"
    tolerance: NonNegativeFloat = 2.0

    @model_validator(mode="after")
    def _a_probe_is_to_choose_by(self) -> Self:
        if self.method == "probe" and (self.part, self.space) != ("val", "store"):
            raise ValueError("a probe scores validation subjects in the store: set 'part: val' and 'space: store'")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """What decides a result."""
        unused = {"method", "samples"} if self.method == "finetune" else {"tolerance"}
        return self.model_dump(mode="json", exclude=unused)


class Experiment(StageConfig):
    """A comparison.

    Options of the experiment and of an arm are merged level by level. The experiment's options of the objective go
    only to arms with the experiment's objective, since another objective has other options.

    Attributes:
        store: The aggregated data, from the working directory.
        tasks: Tasks to fine-tune; None is all of the store.
        label_budgets: Labelled subjects: shares (``5%``) or numbers.
        seeds: Each fixes the labelled subjects, the new head and the batches, the same for every arm.
        arms: The arms by name.
        pretrain: Options of pre-training that all arms share.
        finetune: Options of fine-tuning that all arms share; the network is that of pre-training.
        finetune_by_task: Options of fine-tuning on one task, for every arm; an arm's own options come first.
        scoring: How the networks are scored.
        keep_weights: Keep the weights of fine-tuned networks after they have been scored.
        claims: ``abstract`` checks the claims of the paper's abstract in the report.
    """

    store: str
    tasks: tuple[str, ...] | None = None
    label_budgets: tuple[str | PositiveInt, ...] = Field(("5%",), min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)
    finetune_by_task: dict[str, dict[str, Any]] = Field(default_factory=dict)
    scoring: Scoring = Field(default_factory=Scoring)
    keep_weights: bool = False
    claims: Literal["none", "abstract"] = "none"

    @field_validator("label_budgets", mode="before")
    @classmethod
    def _shares_are_percentages(cls, values: Any) -> Any:
        for value in values if isinstance(values, list | tuple) else ():
            if isinstance(value, float):
                raise ValueError(f'write a share as "{100 * value:g}%", not {value:g}')
            if isinstance(value, str) and not _is_label_budget(value):
                raise ValueError(f"'{value}' is neither a percentage above 0 and up to 100 nor a number of subjects")
        return values

    @field_validator("tasks", "label_budgets", "seeds")
    @classmethod
    def _no_doubles(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if twice := [value for value in values or () if (values or ()).count(value) > 1]:
            raise ValueError(f"names '{twice[0]}' twice")
        return values

    @model_validator(mode="after")
    def _arms_keep_to_the_label_budgets(self) -> Self:
        for name, arm in self.arms.items():
            if stray := [
                label_budget for label_budget in arm.label_budgets or () if label_budget not in self.label_budgets
            ]:
                raise ValueError(f"arm '{name}' runs '{stray[0]}', which is not one of the experiment's label budgets")
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
                raise ValueError(f"'{taken[0]}' is set by the experiment's tasks, label budgets, seeds and arms")
        return self


@dataclass(frozen=True)
class Job:
    """A run that has to be made once, whichever cells of the grid need it.

    Attributes:
        stage: Pre-training or fine-tuning.
        hash: SHA-256 over all that decides the result, first 16 digits; also the name of its folder.
        config: The stage's configuration.
        auxiliaries: Options of the auxiliaries of a fine-tuning, by name.
        needs: Hash of the pre-training that it continues, which comes first; None without one.
    """

    stage: Literal["pretrain", "finetune"]
    hash: str
    config: PretrainConfig | FinetuneConfig
    needs: str | None = None
    auxiliaries: Mapping[str, AuxiliaryOptions] = field(default_factory=dict)

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
        label_budget: Labelled subjects as the experiment has them, for example ``5%``.
        fraction: The same as a share, in (0, 1]: a percentage as the experiment has it, whatever it comes to in whole
            subjects; a number of subjects as their part of the training subjects with masks.
        seed: Its seed.
        hash: Of the fine-tuning.
    """

    arm: str
    task: str
    label_budget: str
    fraction: float
    seed: int
    hash: str

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What makes a line of the ledger this cell's, and no other configuration's."""
        return (self.arm, self.task, self.label_budget, self.seed, self.hash)


@dataclass(frozen=True)
class Grid:
    """All runs of an experiment.

    Attributes:
        cells: All arms of one task, label budget and seed one after the other, so that an interrupted grid is paired.
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


def expand(experiment: Experiment, store: Store) -> Grid:
    """Lists all runs of an experiment, and checks every option before the first one starts.

    Raises:
        ConfigError: An option is not valid.
        StoreError: The store lacks a task, labelled subjects, or masks to score a task with.
    """
    tasks = experiment.tasks or tuple(store.tasks)
    if stray := sorted({*experiment.finetune_by_task} - {*tasks}):
        raise ConfigError(
            f"option 'finetune_by_task': '{stray[0]}' is not a task of the experiment",
            hint=f"it has {', '.join(tasks)}",
        )
    for task in tasks:
        if not _scored(experiment, store, task):
            raise StoreError(
                f"task '{task}' has no masks of {experiment.scoring.part} subjects",
                path=store.path,
                hint="name the experiment's 'tasks' without it, or score another 'part'",
            )
    data = {"store": store.hash, "split": store.split_hash}
    cells: list[Cell] = []
    jobs: dict[str, Job] = {}
    for label_budget in experiment.label_budgets:
        for seed in experiment.seeds:
            for task in tasks:
                labelled = store.labelled(task, label_budget, seed)
                _, slices = split_slices(label_budget)
                for name, arm in experiment.arms.items():
                    if arm.label_budgets is not None and label_budget not in arm.label_budgets:
                        continue
                    try:
                        before = _pretrainings(experiment, arm, task, store, data)
                        needs = before[-1] if before else None
                        job = _finetuning(experiment, arm, task, labelled, slices, seed, needs, store, data)
                        _check_scoring(experiment.scoring, job, store)
                    except ConfigError as error:
                        raise ConfigError(f"arm '{name}': {error.what}", hint=error.hint) from error
                    for each in (*before, job):
                        jobs.setdefault(each.hash, each)
                    cells.append(
                        Cell(name, task, str(label_budget), _fraction(label_budget, task, store), seed, job.hash)
                    )
    return Grid(cells, jobs)


def check_sources(experiment: Experiment, store: Store, tasks: Iterable[str]) -> None:
    """Checks that the files that scoring will read exist; nothing is read.

    Raises:
        StoreError: A file does not exist.
    """
    if experiment.scoring.space == "store":
        return
    for case in (case for task in tasks for case in _scored(experiment, store, task)):
        for path in (case.image_path, case.label_path):
            if path is None or not Path(path).exists():
                raise StoreError(
                    f"does not exist, and scoring case '{case.id}' of '{case.task}' needs it",
                    path=path or case.image_path,
                    hint="put the source back, or set 'space: store' under 'scoring'",
                )


def _check_scoring(scoring: Scoring, job: Job, store: Store) -> None:
    if scoring.method == "probe" or scoring.part == "test":
        return
    if validation_subjects(cast("FinetuneConfig", job.config), store):
        raise ConfigError(
            "scores validation subjects, whose masks fine-tuning uses",
            hint="set 'validation: false' under 'finetune', or 'part: test' under 'scoring'",
        )


def _scored(experiment: Experiment, store: Store, task: str) -> list[CaseRecord]:
    return store.cases(task, part=experiment.scoring.part, labelled=True)


def _pretrainings(experiment: Experiment, arm: Arm, task: str, store: Store, data: dict[str, str]) -> list[Job]:
    """The pre-trainings of an arm; each continues the one before."""
    if arm.domains == "none":
        return []
    tasks = {"joint": tuple(store.tasks), "single": (task,)}.get(str(arm.domains), arm.domains)
    for name in tasks:
        store.split(name)  # raises where there is no such task
    options = _pretrain_options(experiment, arm)
    first = _pretraining({**options, "tasks": tasks}, data)
    if arm.adapt is None:
        return [first]
    own = {"tasks": (task,), "init": first.folder}
    return [first, _pretraining({**merge(options, arm.adapt), **own}, data, needs=first.hash)]


def _pretraining(options: dict[str, Any], data: dict[str, str], needs: str | None = None) -> Job:
    config = PretrainConfig.checked(options)
    check_batch_size(config.batch_size, config, "batch size")
    check_groups(config.tasks or (), config.groups)
    _check_stage(config, config.network)
    content = [
        config.fingerprint_fields(),
        checked_options(config.objective, config.options).model_dump(mode="json"),
        data,
    ]
    domains = Domains(config.tasks or (), groups_at_start(config, config.tasks or ()))
    objective = _objective(config.objective, json.dumps(config.options), config.network, domains)
    objective.check_domains(config.domains_per_batch)
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
def _objective(objective: str, options: str, shape: NetworkConfig, domains: Domains) -> Objective:
    """Makes the objective once, so that options (as JSON) that do not fit it are told before any run."""
    return build_objective(objective, _on_paper(shape), domains, json.loads(options))


def _pretrain_options(experiment: Experiment, arm: Arm) -> dict[str, Any]:
    common = dict(experiment.pretrain)
    default = PretrainConfig.model_fields["objective"].default
    if arm.pretrain.get("objective", common.get("objective", default)) != common.get("objective", default):
        common.pop("options", None)
    return merge(common, arm.pretrain)


def _finetuning(
    experiment: Experiment,
    arm: Arm,
    task: str,
    labelled: list[str],
    slices: int | None,
    seed: int,
    pretraining: Job | None,
    store: Store,
    data: dict[str, str],
) -> Job:
    options = merge(merge(experiment.finetune, experiment.finetune_by_task.get(task, {})), arm.finetune)
    network = _pretrain_options(experiment, arm).get("network")
    if network is not None:
        options.setdefault("network", network)
    if pretraining is None:
        # They concern loaded layers only: setting them must not make scratch another run.
        options.pop("init_lr_factor", None)
        options.pop("freeze_steps", None)
    # Subjects by name: where 5 % and 10 % are the same subject, they are the same run.
    fixed = {"task": task, "label_budget": tuple(sorted(labelled)), "labelled_slices": slices, "seed": seed}
    init = pretraining.folder if pretraining is not None else SCRATCH
    config = FinetuneConfig.checked({**options, **fixed, "init": init})
    check_batch_size(config.batch_size, config, "batch size", least=1)
    before = cast("PretrainConfig", pretraining.config) if pretraining is not None else None
    shape = config.network if before is None else before.network
    if "network" in config.model_fields_set and config.network != shape:
        raise ConfigError(
            "option 'network' of fine-tuning differs from that of pre-training", hint="set it in 'pretrain'"
        )
    _check_stage(config, shape)
    # What auxiliaries come to after this pre-training decides the result: one that has nothing to do does not count.
    auxiliaries = resolve_auxiliaries(config, before)
    with torch.device("meta"):
        network = SegmentationNetwork(_on_paper(shape), store.tasks[task].classes, config.head)
        build_auxiliaries(auxiliaries, Setting(config, before, network, store, labelled))
    spelled = {name: each.model_dump(mode="json") for name, each in auxiliaries.items()}
    fields = config.fingerprint_fields() | {"auxiliary": spelled}
    if experiment.scoring.method == "probe":  # which does not fine-tune, and draws subjects of its own
        fields = {name: fields[name] for name in ("task", "seed", "init", "network")} | {"subjects": len(labelled)}
    content = [fields, experiment.scoring.fingerprint_fields(), data]
    needs = None if pretraining is None else pretraining.hash
    return Job("finetune", _hash(content), config, needs=needs, auxiliaries=auxiliaries)


def _fraction(label_budget: str | int, task: str, store: Store) -> float:
    label_budget, _ = split_slices(label_budget)
    if isinstance(label_budget, str) and label_budget.strip().endswith("%"):
        return float(label_budget.strip()[:-1]) / 100
    return len(store.labelled(task, label_budget)) / len(store.labelled(task, "100%"))


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
