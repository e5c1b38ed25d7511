"""What the JSON files of a benchmark hold: each is checked when it is read, so that a damaged one is named."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from scipy.cluster.hierarchy import is_valid_linkage

from hssl.benchmark.experiment import Cell, Experiment, Scoring
from hssl.config import FinetuneConfig, PretrainConfig, StageConfig

Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    # A field that is not known stays: a newer version may have written it.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Order(StageConfig):
    """What a worker has to do.

    Attributes:
        store: The aggregated data.
        folder: Run folder, relative to that of the benchmark.
        config: Of the stage.
        scoring: How to score a fine-tuned network.
        keep_weights: Whether to keep its weights.
    """

    store: str
    folder: str
    config: FinetuneConfig | PretrainConfig
    scoring: Scoring
    keep_weights: bool


class Score(_Record):
    """Scores of one label of one case.

    Attributes:
        case: Its id.
        subject: Its subject.
        label: Value in the mask.
        name: What the label shows.
        dice: In [0, 1]; None where neither the truth nor the mask shows the label, as for the other two.
        hd95: In mm.
        nsd: Surface Dice, in [0, 1].
    """

    case: str
    subject: str
    label: NonNegativeInt
    name: str
    dice: Share | None
    hd95: NonNegativeFloat | None
    nsd: Share | None


class Groups(_Record):
    """What ``groups.json`` of a pre-training holds.

    Attributes:
        groups: Group number of each task.
        silhouettes: Mean silhouette of each number of groups that was tried.
        tree: SciPy linkage matrix; None for groups that were set by hand.
    """

    groups: dict[str, NonNegativeInt]
    silhouettes: dict[int, float] | None
    tree: list[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]] | None

    @model_validator(mode="after")
    def _is_a_tree_of_these_tasks(self) -> Self:
        if self.tree is not None:
            if len(self.tree) != len(self.groups) - 1 or not is_valid_linkage(np.array(self.tree, np.float64)):
                raise ValueError("'tree' is not a tree of the tasks of 'groups'")
            if len(set(self.groups.values())) >= len(self.groups):
                raise ValueError("there are as many groups as tasks")
        return self


class Outcome(_Record):
    """What every finished run leaves.

    Attributes:
        init_weights: SHA-256 of the weights that it started from; None from scratch.
        store_hash: Of the data.
        split_hash: Of their split.
        versions: Of packages, by name.
        git: Revision of the code, where it is known.
        machine: Processor and cores.
        started: When.
        seconds: Processing time of all parts together.
    """

    init_weights: str | None = None
    store_hash: str
    split_hash: str
    versions: dict[str, str]
    git: str | None
    machine: str
    started: str
    seconds: NonNegativeFloat


class FinetuneOutcome(Outcome):
    """What a scored fine-tuning leaves; or a probe, whose cases are samples of subjects, and which has no steps.

    Attributes:
        dice: Mean over cases and labels, in [0, 1]; None where there is nothing to score, as for the other two.
        hd95: The same of HD95, in mm.
        nsd: The same of surface Dice.
        part: Whose masks it was scored with.
        space: The grid that it was scored on.
        tolerance: Of surface Dice, in mm.
        labelled: Subjects whose masks were used.
        steps: Of training.
        loss: The last one that was logged.
        training_seconds: Without scoring.
        scores: Of each case and label.
    """

    dice: Share | None
    hd95: NonNegativeFloat | None
    nsd: Share | None
    part: Literal["val", "test"]
    space: Literal["source", "store"]
    tolerance: NonNegativeFloat
    labelled: list[str]
    steps: NonNegativeInt
    loss: float | None
    training_seconds: NonNegativeFloat
    scores: list[Score]


class PretrainOutcome(Outcome):
    """What a pre-training leaves.

    Attributes:
        objective: Its objective.
        tasks: What it learned from.
        steps: Of training.
        losses: The last weighted losses, by name.
        groups: Groups of tasks, where the objective uses them.
    """

    objective: str
    tasks: list[str]
    steps: PositiveInt
    losses: dict[str, float]
    groups: Groups | None


class LedgerRow(FinetuneOutcome):
    """A line of ``ledger.jsonl``.

    Attributes:
        arm: As in :class:`~hssl.benchmark.experiment.Cell`, like the four that follow.
        task: Its task.
        fraction: Labelled subjects as a share.
        label_budget: Labelled subjects as the experiment has them.
        seed: Its seed.
        config_hash: Of the fine-tuning.
        pretrain_hash: Of the pre-training that it started from; None from scratch.
    """

    arm: str
    task: str
    fraction: Annotated[float, Field(gt=0, le=1)]
    label_budget: str
    seed: NonNegativeInt
    config_hash: str
    pretrain_hash: str | None


class PretrainingRow(PretrainOutcome):
    """A line of ``pretraining.jsonl``.

    Attributes:
        config_hash: Of the pre-training.
        init_hash: Of the pre-training that it went on from.
    """

    config_hash: str
    init_hash: str | None


class Recorded(BaseModel):
    """What ``experiment.json`` holds: the experiment and its grid, as last run.

    Attributes:
        experiment: The experiment.
        cells: Its grid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: Experiment
    cells: list[Cell]

    @model_validator(mode="after")
    def _cells_are_of_the_experiment(self) -> Self:
        experiment = self.experiment
        budgets = {str(label_budget) for label_budget in experiment.label_budgets}
        for cell in self.cells:
            for name, known in (("arm", experiment.arms), ("label_budget", budgets), ("seed", experiment.seeds)):
                if getattr(cell, name) not in known:
                    raise ValueError(f"a cell has {name} '{getattr(cell, name)}', which the experiment does not have")
        return self
