from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hssl.benchmark.experiment import Experiment, Job, expand
from hssl.benchmark.run import forecast
from hssl.benchmark.run.forecast import STARTING, Forecast
from hssl.store import Store

MakeExperiment = Callable[..., Experiment]
ARMS: dict[str, Any] = {"scratch": {"domains": "none"}, "adapted": {"adapt": {"steps": 1}}}


def test_what_is_left_is_no_shorter_than_what_needs_one_another(make_experiment: MakeExperiment, store: Store) -> None:
    experiment = make_experiment(arms=ARMS)
    grid = expand(experiment, store)
    clock = Forecast(experiment, grid, store)
    for job in grid.jobs.values():
        clock.add(job, 60.0 * clock._units(job))
    scratch, *chain = sorted(grid.jobs.values(), key=lambda job: job.needs is not None or job.stage == "pretrain")
    assert len(chain) == 3
    jobs = list(grid.jobs.values())
    assert clock.together(jobs, 1) == pytest.approx(clock.seconds(jobs))
    assert clock.together(jobs, 8) == pytest.approx(clock.seconds(chain))
    assert clock.together([scratch], 8) == pytest.approx(clock.seconds([scratch]))
    assert clock.together([], 8) == 0


def test_what_is_measured_is_put_right_by_what_finishes(
    make_experiment: MakeExperiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Job] = []

    def measure(job: Job, store: Store, workers: int) -> tuple[float, float]:
        measured.append(job)
        return 30.0, 2.0

    monkeypatch.setattr(forecast, "_measure", measure)
    experiment = make_experiment(seeds=[0, 1], arms=ARMS)
    grid = expand(experiment, store)
    elsewhere = [{"config_hash": hash_, "seconds": 1e6} for hash_ in grid.jobs]  # by a much slower machine
    clock = Forecast(experiment, grid, store, elsewhere)
    assert clock.seconds(grid.jobs.values()) == pytest.approx(1e6 * len(grid.jobs))
    clock.measure(grid.jobs.values(), 1)
    # Seeds and the tasks of a pre-training do not matter: pre-training, from scratch, and with the pretext auxiliary.
    assert sorted(job.stage for job in measured) == ["finetune", "finetune", "pretrain"]
    first, second = (job for job in grid.jobs.values() if job.stage == "finetune" and job.needs is None)
    slices = sum(case.shape[0] for case in store.cases(first.config.task, part="test", labelled=True))  # type: ignore[union-attr]
    assert slices > 0
    expected = STARTING + 30.0 * first.config.steps + 2.0 * slices
    assert clock.seconds([first]) == clock.seconds([second]) == pytest.approx(expected)
    before = [job for job in grid.jobs.values() if job.stage == "pretrain"]
    unchanged = clock.seconds(before)
    clock.add(first, 3 * expected)
    assert clock.seconds([second]) == pytest.approx(3 * expected)
    assert clock.seconds(before) == unchanged


def test_each_stage_is_measured_without_a_trace(make_experiment: MakeExperiment, store: Store) -> None:
    grid = expand(make_experiment(arms=ARMS), store)
    for job in grid.jobs.values():
        step, each = forecast._measure(job, store, 1)
        assert step > 0
        assert (each > 0) == (job.stage == "finetune")
        assert not (store.path / job.folder).exists()


def test_runs_that_share_a_gpu_take_longer(
    make_experiment: MakeExperiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = expand(make_experiment(arms={"scratch": {"domains": "none"}}), store).jobs.values()
    assert forecast._sharing(job, 8) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [forecast._sharing(job, workers) for workers in (1, 2, 8)] == [1, 1, 4]
