from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import hssl.benchmark.experiment
from hssl.benchmark import Experiment, run_benchmark, write_report
from hssl.benchmark.experiment import check_sources, expand
from hssl.benchmark.run.ledger import Ledger
from hssl.benchmark.run.runner import _Board, _reason
from hssl.config import FinetuneConfig, PretrainConfig, TrainingConfig
from hssl.errors import ConfigError, RunError, StoreError, TrainingError
from hssl.files import locked
from hssl.objectives import objective_class
from hssl.probing import probe
from hssl.runs import Run
from hssl.store import Store

MakeExperiment = Callable[..., Experiment]
MakeRecord = Callable[..., dict[str, Any]]


def test_grid_is_paired_and_shares_runs(make_experiment: MakeExperiment, store: Store) -> None:
    tasks = list(store.tasks)
    arms = {"scratch": {"domains": "none"}, "single": {"domains": "single"}, "joint": {"domains": "joint"}}
    grid = expand(make_experiment(tasks=tasks, seeds=[0, 1], arms=arms), store)
    assert [(cell.seed, cell.task, cell.arm) for cell in grid.cells] == [
        (seed, task, arm) for seed in (0, 1) for task in tasks for arm in arms
    ]
    pretrained = [job for job in grid.jobs.values() if job.stage == "pretrain"]
    assert [job.config.tasks for job in pretrained] == [(tasks[0],), tuple(tasks), (tasks[1],)]  # type: ignore[union-attr]
    assert len(grid.jobs) == 3 + 2 * 2 * 3
    # A pre-training comes before the first that needs it.
    order = list(grid.jobs)
    assert all(job.needs is None or order.index(job.needs) < order.index(job.hash) for job in grid.jobs.values())


def test_same_subjects_are_the_same_run(make_experiment: MakeExperiment, store: Store) -> None:
    grid = expand(make_experiment(label_budgets=["5%", 1], arms={"scratch": {"domains": "none"}}), store)
    assert len(grid.cells) == 2
    assert len(grid.jobs) == 1
    assert [cell.label_budget for cell in grid.cells] == ["5%", "1"]


def test_slices_of_the_same_subjects_are_another_run(make_experiment: MakeExperiment, store: Store) -> None:
    experiment = make_experiment(label_budgets=[1, "1@2", "50%@2"], arms={"scratch": {"domains": "none"}})
    one, some, same = expand(experiment, store).cells
    assert one.hash != some.hash == same.hash
    assert [cell.fraction for cell in (one, some, same)] == [0.5, 0.5, 0.5]


def test_an_arm_may_keep_to_some_label_budgets(make_experiment: MakeExperiment, store: Store) -> None:
    arms = {
        "scratch": {"domains": "none", "label_budgets": ["100%"]},
        "joint": {"label_budgets": ["50%"]},
        "single": {},
    }
    cells = expand(make_experiment(label_budgets=["50%", "100%"], arms=arms), store).cells
    assert [(cell.label_budget, cell.arm) for cell in cells] == [
        ("50%", "joint"),
        ("50%", "single"),
        ("100%", "scratch"),
        ("100%", "single"),
    ]


def test_experiments_that_the_docs_show_are_valid(make_experiment: MakeExperiment, store: Store) -> None:
    shown = [Path(__file__).parents[3].joinpath("docs/how-to/benchmark.md").read_text().split("```")[1]]
    shown.append(textwrap.dedent((hssl.benchmark.experiment.__doc__ or "").partition("::")[2]))
    for text in shown:
        values = yaml.safe_load(text.removeprefix("yaml"))
        tasks = list(store.tasks)
        values |= {"store": str(store.path), "tasks": tasks, "label_budgets": ["50%"]}
        if "finetune_by_task" in values:
            values["finetune_by_task"] = {tasks[0]: next(iter(values["finetune_by_task"].values()))}
        grid = expand(Experiment.checked(values), store)
        assert {cell.arm for cell in grid.cells} >= {"scratch", "single", "joint", "adapted", "simclr"}


def test_an_arm_may_adapt_to_the_task(make_experiment: MakeExperiment, store: Store) -> None:
    tasks = list(store.tasks)
    experiment = make_experiment(
        tasks=tasks, arms={"joint": {}, "adapted": {"adapt": {"steps": 1, "learning_rate": 0.001}}}
    )
    grid = expand(experiment, store)
    joint, *adapted = [(h, job) for h, job in grid.jobs.items() if job.stage == "pretrain"]
    assert [(job.needs, job.config.init) for _, job in adapted] == [(joint[0], f"pretrain/{joint[0]}")] * len(tasks)
    assert [job.config.tasks for _, job in adapted] == [(task,) for task in tasks]  # type: ignore[union-attr]
    assert {(job.config.steps, job.config.learning_rate) for _, job in adapted} == {(1, 0.001)}
    assert joint[1].config.steps != 1
    before = {(cell.arm, cell.task): grid.before(cell) for cell in grid.cells}
    assert before["joint", tasks[0]] == [joint[0]]
    assert [before["adapted", task] for task in tasks] == [[h, joint[0]] for h, _ in adapted]


def test_options_of_the_objective_of_an_auxiliary_make_another_run(
    make_experiment: MakeExperiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(
        arms={"scratch": {"domains": "none", "finetune": {"auxiliary": {"pretext": {"objective": "simclr"}}}}}
    )
    before = expand(experiment, store).cells[0].hash

    kind = objective_class("simclr")

    class Colder(kind.Options):  # type: ignore[name-defined,misc]
        temperature: float = 0.01

    monkeypatch.setattr(kind, "Options", Colder)
    assert expand(experiment, store).cells[0].hash != before


def test_the_objective_of_an_auxiliary_need_not_be_that_of_pretraining(
    make_experiment: MakeExperiment, store: Store
) -> None:
    arm = {
        "pretrain": {"options": {"weights": {"task": 1}}},
        "finetune": {"auxiliary": {"pretext": {"objective": "simclr"}}},
    }
    assert len(expand(make_experiment(arms={"joint": arm}), store).cells) == 1


def test_options_join_level_by_level(make_experiment: MakeExperiment, store: Store) -> None:
    weights = {"restoration": 1.0, "image": 0.5}
    common = {"steps": 2, "patch_size": 16, "network": {"features": [4, 8, 8, 8]}, "options": {"weights": weights}}
    arms = {
        "scratch": {"domains": "none"},
        "joint": {"finetune": {"init_lr_factor": 0.5}},
        "no-image": {"pretrain": {"options": {"weights": {"image": 0}}}},
    }
    grid = expand(make_experiment(pretrain=common, arms=arms), store)
    options = [job.config.options for job in grid.jobs.values() if job.stage == "pretrain"]  # type: ignore[union-attr]
    assert options == [{"weights": weights}, {"weights": {"restoration": 1.0, "image": 0}}]
    tuned = {cell.arm: grid.jobs[cell.hash].config for cell in grid.cells}
    assert tuned["joint"].init_lr_factor == 0.5  # type: ignore[union-attr]
    assert tuned["scratch"].network.features == (4, 8, 8, 8)  # type: ignore[union-attr]


def test_a_task_has_options_of_its_own_for_every_arm(make_experiment: MakeExperiment, store: Store) -> None:
    tasks = list(store.tasks)[:2]
    mirrored = {tasks[1]: {"view": {"flip": [0.5, 0.5]}}}
    plain, changed = (
        expand(make_experiment(tasks=tasks, finetune={"view": {"rotate": 5}}, finetune_by_task=options), store)
        for options in ({}, mirrored)
    )
    for before, after in zip(plain.cells, changed.cells, strict=True):
        view = changed.jobs[after.hash].config.view
        assert view.flip == ((0.5, 0.5) if after.task == tasks[1] else (0.0, 0.0))
        assert view.rotate == 5
        assert (before.hash == after.hash) == (after.task == tasks[0])
    upright = {"scratch": {"domains": "none", "finetune": {"view": {"flip": [0, 0]}}}}
    own = expand(make_experiment(tasks=tasks, finetune_by_task=mirrored, arms=upright), store)
    assert all(own.jobs[cell.hash].config.view.flip == (0, 0) for cell in own.cells)
    with pytest.raises(ConfigError, match="'Nowhere' is not a task of the experiment"):
        expand(make_experiment(finetune_by_task={"Nowhere": {"steps": 1}}), store)


def test_scratch_does_not_depend_on_options_of_loaded_layers(make_experiment: MakeExperiment, store: Store) -> None:
    first, second = (
        {cell.arm: cell.hash for cell in expand(make_experiment(finetune={"init_lr_factor": rate}), store).cells}
        for rate in (1.0, 0.3)
    )
    assert first["scratch"] == second["scratch"]
    assert first["joint"] != second["joint"]


def test_loggers_make_no_other_run(
    make_experiment: MakeExperiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hssl.benchmark.experiment.check_loggers", lambda config: None
    )  # whether they are installed or not
    watched = {name: {**getattr(make_experiment(), name), "loggers": ["mlflow"]} for name in ("pretrain", "finetune")}
    first, second = expand(make_experiment(), store), expand(make_experiment(**watched), store)
    assert list(first.jobs) == list(second.jobs)
    assert {job.config.loggers for job in second.jobs.values()} == {("mlflow",)}


OTHER: dict[str, Any] = {
    "steps": 3,
    "patch_size": 24,
    "window_size": 40,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "warmup": 1,
    "gradient_clip": 0.5,
    "precision": "bf16",
    "accelerator": "gpu",
    "network": {"features": [4, 8, 8, 4]},
    "batch_size": 6,
    "view": {"scale": [0.5, 0.6]},
    "domains_per_batch": 1,
    "task_sampling_exponent": 0.1,
    "groups": "none",
    "group_start": 0.4,
    "objective": "masked",
    "options": {"temperature": 0.4},
    "foreground": 0.1,
    "head": "last",
    "head_lr_factor": 2,
    "init_lr_factor": 0.5,
    "freeze_steps": 1,
    "ema_decay": 0.5,
    "auxiliary": {"pretext": {"weight": 0.5}},
    "validation": True,
    "validate_every": 1,
}
"""Another value of each option that decides what a run computes."""
SAME: dict[str, Any] = {"loggers": [], "workers": 1, "log_every": 1, "checkpoint_every": 1, "probe_every": 1}
"""Another value of each option that does not."""


@pytest.mark.parametrize(("stage", "config"), [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)])
def test_a_hash_depends_on_what_decides_the_result_and_on_nothing_else(
    stage: str, config: type[TrainingConfig], make_experiment: MakeExperiment, store: Store
) -> None:
    def hash_with(**changes: Any) -> str:
        options = {name: dict(getattr(make_experiment(), name)) for name in ("pretrain", "finetune")}
        options["pretrain"]["objective"] = "simclr"
        options[stage] |= changes
        options["pretrain"] |= {name: value for name, value in changes.items() if name == "network"}
        grid = expand(make_experiment(**options, arms={"joint": {}}), store)
        return next(job.hash for job in grid.jobs.values() if job.stage == stage)

    by_the_grid = {"tasks", "init", "task", "label_budget", "labelled_slices", "seed", "devices", "nodes"}
    names = config.model_fields.keys() - by_the_grid
    assert names <= OTHER.keys() | SAME.keys()  # a new option belongs to one of the two
    before = hash_with()
    assert {name for name in names if hash_with(**{name: (OTHER | SAME)[name]}) == before} == names & SAME.keys()


def test_names_and_order_of_arms_make_no_other_run(make_experiment: MakeExperiment, store: Store) -> None:
    first = expand(make_experiment(), store)
    arms = {"all": {}, "nothing": {"domains": "none"}}
    second = expand(make_experiment(arms=arms, keep_weights=True), store)
    assert {cell.hash for cell in first.cells} == {cell.hash for cell in second.cells}


def test_an_auxiliary_with_nothing_to_do_makes_no_other_run(make_experiment: MakeExperiment, store: Store) -> None:
    def hashes(**auxiliary: Any) -> dict[str, str]:
        finetune = {**make_experiment().finetune, "auxiliary": auxiliary}
        return {cell.arm: cell.hash for cell in expand(make_experiment(finetune=finetune), store).cells}

    on, off, weightless = hashes(pretext=True), hashes(pretext=False), hashes(pretext={"weight": 0})
    assert on["scratch"] == off["scratch"] == weightless["scratch"]
    assert off["joint"] == weightless["joint"] != on["joint"]
    # Its defaults, spelled out or not, are the same run.
    assert hashes(pretext={"weight": 0.3, "objective": "hierarchical"})["joint"] == on["joint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"domains": "none", "pretrain": {"steps": 3}}}}, "no pre-training"),
        ({"arms": {"a": {"domains": "none", "adapt": {}}}}, "no pre-training"),
        ({"arms": {"a": {"adapt": {"tasks": ["A"]}}}}, "'tasks' is set by the experiment"),
        ({"arms": {"a": {"adapt": {"network": "base"}}}}, "'network' cannot change: 'adapt' continues"),
        ({"arms": {"a": {"adapt": {"objective": "simclr"}}}}, "'objective' cannot change"),
        ({"finetune": {"seed": 3}}, "'seed' is set by the experiment"),
        ({"finetune_by_task": {"Task01": {"label_budget": 1}}}, "'label_budget' is set by the experiment"),
        ({"seeds": [1, 1]}, "twice"),
        ({"arms": {}}, "arms"),
        (
            {"arms": {"a": {"label_budgets": ["7%"]}}},
            "'a' runs '7%', which is not one of the experiment's label budgets",
        ),
    ],
)
def test_mistakes_in_an_experiment(make_experiment: MakeExperiment, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_experiment(**changes)


def test_mistakes_that_show_in_the_store(
    make_experiment: MakeExperiment, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ModuleSpec("any", None, origin="here")
    monkeypatch.setattr("hssl.training.loggers.find_spec", lambda name: None if name == "wandb" else found)
    with pytest.raises(ConfigError, match="arm 'joint': option 'objective': no objective 'nonesuch'"):
        run_benchmark(make_experiment(arms={"joint": {"pretrain": {"objective": "nonesuch"}}}), tmp_path / "bench")
    asked = {"scratch": {"domains": "none", "finetune": {"auxiliary": {"pretext": {"objective": "nonesuch"}}}}}
    with pytest.raises(ConfigError, match=r"arm 'scratch': auxiliary 'pretext': .*no objective 'nonesuch'"):
        run_benchmark(make_experiment(arms=asked), tmp_path / "bench")
    for weights, groups, message in (
        ({"image": 0}, "auto", "no level"),
        ({"group": 1}, "none", "no level"),
        ({"task": 1}, "auto", "auxiliary 'pretext' cannot use 'hierarchical' on one task: .*no level"),
    ):
        arms = {"joint": {"pretrain": {"groups": groups, "options": {"weights": weights}}}}
        with pytest.raises(ConfigError, match=f"arm 'joint': .*{message}"):
            run_benchmark(make_experiment(arms=arms), tmp_path / "bench")
    for stage, options, message in (
        ("pretrain", {"patch_size": 17}, "patch size 17 is not a multiple of 8"),
        ("pretrain", {"batch_size": 1}, "batch size 1"),
        ("finetune", {"patch_size": 20}, "patch size 20 is not a multiple of 8"),
        ("finetune", {"auxiliary": {"pretext": {"batch_size": 1}}}, "auxiliary 'pretext': batch size 1 is too small"),
        ("finetune", {"network": "base"}, "differs from that of pre-training"),
        ("finetune", {"loggers": ["wandb"]}, "logger 'wandb' needs a package"),
        ("pretrain", {"devices": 2}, "a run of a benchmark has one device"),
        ("finetune", {"nodes": 2}, "a run of a benchmark has one device"),
    ):
        with pytest.raises(ConfigError, match=f"arm 'joint': .*{message}"):
            run_benchmark(make_experiment(arms={"joint": {stage: options}}), tmp_path / "bench")
    seen = {"arms": {"joint": {"finetune": {"validation": True}}}, "scoring": {"part": "val"}}
    with pytest.raises(ConfigError, match="arm 'joint': scores validation subjects, whose masks fine-tuning uses"):
        run_benchmark(make_experiment(**seen), tmp_path / "bench")
    with pytest.raises(StoreError, match="no task"):
        run_benchmark(make_experiment(arms={"joint": {"domains": ["nowhere"]}}), tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def changed(store: Store, **update: Any) -> Store:
    """The store with other records of its test cases."""
    test = {(task, subject) for task in store.tasks for subject in store.split(task).test}
    cases = [c.model_copy(update=update) if (c.task, c.subject) in test else c for c in store.cases()]
    return Store(store.path, store.index.model_copy(update={"cases": cases}), store.splits)


def test_a_task_without_masks_to_score_is_told_first(make_experiment: MakeExperiment, store: Store) -> None:
    with pytest.raises(StoreError, match=r"has no masks of test subjects \(name the experiment's 'tasks' without it"):
        expand(make_experiment(), changed(store, stored_label_sha256=None))


def test_sources_that_are_gone_are_told_first(
    make_experiment: MakeExperiment,
    make_row: MakeRecord,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = changed(store, label_path=str(tmp_path / "gone.nii.gz"))
    monkeypatch.setattr(Store, "open", lambda path: moved)
    experiment = make_experiment(scoring={"space": "source"}, arms={"scratch": {"domains": "none"}})
    with pytest.raises(StoreError, match=r"gone.nii.gz: does not exist, and scoring case .*put the source back"):
        run_benchmark(experiment, tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
    check_sources(make_experiment(), moved, moved.tasks)
    # What is in the ledger needs them no more.
    (cell,) = expand(experiment, moved).cells
    (tmp_path / "bench").mkdir()
    row = make_row(
        arm=cell.arm, task=cell.task, label_budget=cell.label_budget, seed=cell.seed, config_hash=cell.hash, scores=[]
    )
    Ledger(tmp_path / "bench" / "ledger.jsonl").append(row)
    (found,) = run_benchmark(experiment, tmp_path / "bench")
    assert found["Dice"] == 0.5


def test_a_run_that_cannot_be_started_has_failed(
    make_experiment: MakeExperiment,
    make_outcome: MakeRecord,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_experiment(
        arms={name: {"domains": "none", "finetune": {"steps": n}} for n, name in enumerate("abc", 1)}
    )
    grid = expand(experiment, store)
    for folder in ("orders", "logs"):
        (tmp_path / folder).mkdir()
    started: list[str] = []

    class Queue:
        queues = True

        def start(self, order: Path, log: Path, slot: int) -> Any:
            started.append(order.stem)
            job = grid.jobs[order.stem]
            if job.config.steps == 2 or len(started) == 1:
                raise RuntimeError("sbatch: error: queue is full\nmore")
            outcome = tmp_path / job.folder / "outcome.json"
            outcome.parent.mkdir(parents=True)
            outcome.write_text(json.dumps(make_outcome(seconds=0.01, scores=[])))
            polls = iter((None, 0))  # done at the second look, 0.2 s later
            return SimpleNamespace(poll=lambda: next(polls), kill=lambda: None)

    monkeypatch.setattr("hssl.benchmark.run.runner.PAUSES", (0.0, 0.0))
    board = _Board(experiment, grid, store, tmp_path)
    board.run(Queue(), 1)
    assert [row["arm"] for row in Ledger(tmp_path / "ledger.jsonl").rows()] == ["a", "c"]
    assert list(board.failed.values()) == [
        f"b {next(iter(store.tasks))} 50% seed 0: could not be started: sbatch: error: queue is full"
    ]
    assert [started.count(cell.hash) for cell in grid.cells] == [2, 3, 1]
    # What a job says itself, not the time in the queue.
    assert board.clock.seconds([grid.jobs[grid.cells[0].hash]]) < 0.02


def test_only_one_benchmark_in_a_folder(tmp_path: Path) -> None:
    again = locked(tmp_path, "benchmark")
    with locked(tmp_path, "benchmark"), pytest.raises(RunError, match="another benchmark"), again:
        pass


def test_grid_runs_continues_and_grows(make_experiment: MakeExperiment, store: Store, tmp_path: Path) -> None:
    """One long test, since every run is a process that has to import torch."""
    bench = tmp_path / "bench"
    forecast = run_benchmark(make_experiment(), bench, dry_run=True)
    assert not bench.exists()
    assert [row["run"].split()[0] for row in forecast] == ["scratch", "pre-training", "joint", "all"]
    assert all(row["hours"] > 0 for row in forecast)
    assert forecast[-1]["hours"] == pytest.approx(sum(row["hours"] for row in forecast[:-1]))

    summary = run_benchmark(make_experiment(), bench, workers=2)
    assert [(row["arm"], row["seeds"]) for row in summary] == [("scratch", 1), ("joint", 1)]
    rows = Ledger(bench / "ledger.jsonl").rows()
    assert [row["arm"] for row in rows] == ["scratch", "joint"]
    row = rows[1]
    assert row["fraction"] == 0.5
    assert 0 <= row["dice"] <= 1
    assert {score["case"] for score in row["scores"]} == {case.id for case in store.cases(row["task"], part="test")}
    assert row["config_hash"] != row["pretrain_hash"]
    assert str(tmp_path) not in (bench / "ledger.jsonl").read_text()
    assert [line["config_hash"] for line in Ledger(bench / "pretraining.jsonl").rows()] == [row["pretrain_hash"]]
    folder = bench / "runs" / row["config_hash"]
    assert not (folder / "weights.safetensors").exists()
    assert (folder / "overlays.npz").exists()
    assert (bench / "pretrain" / row["pretrain_hash"] / "weights.safetensors").exists()

    # With store, masks and weights at hand the report has pictures.
    page = write_report(bench).read_text()
    assert "eft out" not in page
    assert page.count('src="data:image/png') == 2  # map of features, one task

    # Interrupted before the last line was written: entered again without a new run.
    before = (folder / "run.json").stat().st_mtime_ns
    lines = (bench / "ledger.jsonl").read_text().splitlines(keepends=True)
    (bench / "ledger.jsonl").write_text(lines[0])
    run_benchmark(make_experiment(), bench)
    assert Ledger(bench / "ledger.jsonl").rows() == rows
    assert (folder / "run.json").stat().st_mtime_ns == before

    # Grown by a seed, and one arm changed: old lines stay, and the changed arm is another run.
    grown = make_experiment(seeds=[0, 1], arms={"scratch": {"domains": "none", "finetune": {"steps": 3}}})
    run_benchmark(grown, bench)
    now = Ledger(bench / "ledger.jsonl").rows()
    assert now[:2] == rows
    assert [(line["arm"], line["seed"], line["steps"]) for line in now[2:]] == [("scratch", 0, 3), ("scratch", 1, 3)]
    assert {line["config_hash"] for line in now[2:]}.isdisjoint({rows[0]["config_hash"]})


def test_a_run_in_the_ledger_fills_other_cells_too(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """Where 5 % and one subject are the same one, or an arm has another name: from the ledger alone."""
    bench = tmp_path / "bench"
    first = {"scratch": {"domains": "none"}}
    run_benchmark(make_experiment(label_budgets=["5%"], arms=first), bench)
    (made,) = Ledger(bench / "ledger.jsonl").rows()
    shutil.rmtree(bench / "runs")
    grown = make_experiment(label_budgets=["5%", 1], arms={**first, "again": {"domains": "none"}})
    *_, total = run_benchmark(grown, bench, dry_run=True)
    assert total["run"] == "all 0 runs, 1 at a time; 4 of 4 cells are done"
    run_benchmark(grown, bench)
    assert not any((bench / "runs").iterdir())
    rows = Ledger(bench / "ledger.jsonl").rows()
    assert sorted((row["arm"], row["label_budget"]) for row in rows) == [
        ("again", "1"),
        ("again", "5%"),
        ("scratch", "1"),
        ("scratch", "5%"),
    ]
    place = ("arm", "label_budget", "fraction")
    without = [{name: value for name, value in row.items() if name not in place} for row in [made, *rows]]
    assert all(row == without[0] for row in without)


def test_a_second_pretraining_goes_on_from_the_first(
    make_experiment: MakeExperiment, store: Store, tmp_path: Path
) -> None:
    bench, other = tmp_path / "bench", tmp_path / "other"
    experiment = make_experiment(arms={"adapted": {"adapt": {"steps": 1}}})
    named = [row["run"] for row in run_benchmark(experiment, bench, dry_run=True)]
    task = next(iter(store.tasks))
    assert named[:2] == ["pre-training of adapted on 2 tasks", f"pre-training of adapted on {task}"]
    run_benchmark(experiment, bench)
    first, second = Ledger(bench / "pretraining.jsonl").rows()
    (row,) = Ledger(bench / "ledger.jsonl").rows()
    assert (first["init_hash"], second["init_hash"]) == (None, first["config_hash"])
    assert row["pretrain_hash"] == second["config_hash"]
    page = write_report(bench).read_text()
    assert page.count('src="data:image/png') == 2  # the map of features shows the joint pre-training
    table = (bench / "tables.md").read_text().partition("Pre-training")[2]
    assert [line.split(" | ")[1:3] for line in table.splitlines() if line.startswith("| adapted")] == [
        ["2 tasks", str(first["steps"])],
        [task, "1"],
    ]

    # With the second at hand, the first is needed no more.
    (other / "pretrain").mkdir(parents=True)
    shutil.copytree(bench / "pretrain" / second["config_hash"], other / "pretrain" / second["config_hash"])
    assert [row["run"] for row in run_benchmark(experiment, other, dry_run=True)][:-1] == [f"adapted {task} 50% seed 0"]
    # What is found finished is entered, pre-trainings too.
    for folder in (f"pretrain/{first['config_hash']}", f"runs/{row['config_hash']}"):
        shutil.copytree(bench / folder, other / folder)
    run_benchmark(experiment, other)
    for name in ("pretraining.jsonl", "ledger.jsonl"):
        assert Ledger(other / name).rows() == Ledger(bench / name).rows()


def test_a_run_that_ended_without_a_word_of_its_own() -> None:
    assert _reason(2, "patch size 17 is not a multiple of 8") == "patch size 17 is not a multiple of 8"
    assert _reason(1, "KeyError: 'x'") == "exit status 1; last message: KeyError: 'x'"
    assert (
        _reason(-9, "step 3/9")
        == "killed by SIGKILL, as happens when a machine runs out of memory; last message: step 3/9"
    )
    assert _reason(-11, "") == "killed by SIGSEGV"


def test_a_failure_is_told_and_stops_nobody_else(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    wild = {"learning_rate": 1e30, "warmup": 0, "gradient_clip": 1e30}
    arms = {"bad": {"domains": "joint", "pretrain": wild}, "scratch": {"domains": "none"}}
    with pytest.raises(TrainingError, match=r"2 of 3 runs have failed: pre-training of bad on 2 tasks: .*not finite"):
        run_benchmark(make_experiment(arms=arms), bench)
    assert [row["arm"] for row in Ledger(bench / "ledger.jsonl").rows()] == ["scratch"]
    assert json.loads((bench / "experiment.json").read_text())["cells"][0]["arm"] == "bad"


def test_a_probe_in_place_of_fine_tuning(make_experiment: MakeExperiment, store: Store, tmp_path: Path) -> None:
    """Each sample of labelled subjects counts as a case, and the figures are those of the command."""
    scoring = {"method": "probe", "samples": 2, "part": "val", "space": "store"}
    experiment = make_experiment(scoring=scoring, label_budgets=[1])
    summary = run_benchmark(experiment, tmp_path)
    rows = {row["arm"]: row for row in Ledger(tmp_path / "ledger.jsonl").rows()}
    assert [row["arm"] for row in summary] == list(rows) == ["scratch", "joint"]
    pretrained = next((tmp_path / "pretrain").iterdir())
    alone = probe(pretrained, store, tasks=experiment.tasks, repeats=2)
    assert rows["joint"]["dice"] == pytest.approx(alone.scores[-1].linear)
    assert rows["joint"]["init_weights"] == Run.open(pretrained).info.weights_sha256
    assert rows["joint"]["dice"] != rows["scratch"]["dice"]
    (task,) = alone.drawn
    subjects = [", ".join(sample) for sample in alone.drawn[task]]
    assert [score["subject"] for score in rows["joint"]["scores"]][:2] == subjects
    assert {subject for row in rows.values() for subject in row["labelled"]} <= {*store.split(task).train}
    assert write_report(tmp_path).exists()
    # Options of fine-tuning do not matter, so what is done counts.
    longer = {"steps": 9, "patch_size": 16, "batch_size": 2}
    other = make_experiment(scoring=scoring, label_budgets=[1], finetune=longer)
    assert {cell.hash for cell in expand(other, store).cells} == {row["config_hash"] for row in rows.values()}


def test_a_probe_reads_no_test_subject(make_experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match="part: val"):
        make_experiment(scoring={"method": "probe", "part": "test", "space": "store"})
