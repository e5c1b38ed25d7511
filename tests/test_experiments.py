"""What ``experiments/`` publishes: each is an experiment of today's options, and its ledger belongs to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hssl.benchmark import Experiment
from hssl.benchmark.experiment import expand
from hssl.benchmark.run.ledger import Ledger
from hssl.store import Store

FOLDER = Path(__file__).parents[1] / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))
TASKS = (
    "Task01_Hippocampus",
    "Task02_LeftAtrium",
    "Task03_Cardiac",
    "Task04_Abdomen",
    "Task05_Lung",
    "Task06_BrainTumour",
    "Task07_Vertebrae",
    "Task08_BrainTissue",
    "Task09_CardiacSSFP",
)

each_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])


@each_experiment
def test_every_option_of_every_run_is_valid(path: Path, make_store: Callable[..., Store]) -> None:
    experiment = Experiment.load(path)
    own = experiment.tasks or TASKS  # all nine are in the store, unless it is one of phantoms
    store = make_store(dict.fromkeys(TASKS if {*own} <= {*TASKS} else own, 4), shape=(2, 28, 32))
    cells = {(cell.arm, cell.task, cell.label_budget, cell.seed) for cell in expand(experiment, store).cells}
    rows = Ledger(FOLDER / path.stem / "ledger.jsonl").rows()
    keys = [(row["arm"], row["task"], row["label_budget"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= cells
    assert {(row["part"], row["space"], row["tolerance"]) for row in rows} <= {
        (experiment.scoring.part, experiment.scoring.space, experiment.scoring.tolerance)
    }


@each_experiment
def test_a_ledger_has_the_lines_of_its_pretrainings(path: Path) -> None:
    rows = Ledger(FOLDER / path.stem / "ledger.jsonl").rows()
    made = {row["config_hash"]: row["init_hash"] for row in Ledger(FOLDER / path.stem / "pretraining.jsonl").rows()}
    needed = {row["pretrain_hash"] for row in rows} | set(made.values())
    assert needed - {None} == made.keys()


def test_nothing_lies_there_that_is_not_described() -> None:
    described = set(re.findall(r"\]\(([\w-]+)\.yaml\)", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert described == {path.stem for path in EXPERIMENTS}
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} <= described
