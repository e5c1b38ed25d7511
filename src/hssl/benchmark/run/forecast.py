"""What the runs of a benchmark will take: measured on this machine, then put right by the runs that finish."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hssl.benchmark.experiment import Experiment, Grid, Job
from hssl.benchmark.run.executors import threads_each
from hssl.benchmark.run.ledger import Row
from hssl.config import PretrainConfig
from hssl.store import Store

if TYPE_CHECKING:
    from hssl.training.finetune import Finetuning
    from hssl.training.pretrain import Pretraining

STARTING = 10.0
"""Seconds that the process of a run needs before its first step and after its last one."""


class Forecast:
    """Seconds of runs. What is measured is put right by the runs that finish.

    Args:
        experiment: The experiment.
        grid: Its runs.
        store: The aggregated data.
        ledgers: Runs that are finished. Their seconds count as long as nothing is measured, for they may come from
            another machine.
    """

    def __init__(self, experiment: Experiment, grid: Grid, store: Store, *ledgers: list[Row]) -> None:
        self.scoring, self.store = experiment.scoring, store
        self._expected: dict[str, float] = {}
        self._taken = {"pretrain": (0.0, 0.0), "finetune": (0.0, 0.0)}
        seconds = {row["config_hash"]: row["seconds"] for rows in ledgers for row in rows}
        for hash_, job in grid.jobs.items():
            if hash_ in seconds:
                self.add(job, seconds[hash_])

    def add(self, job: Job, seconds: float) -> None:
        """Learns from a finished run."""
        taken, expected = self._taken[job.stage]
        self._taken[job.stage] = (taken + seconds, expected + self._units(job))

    def seconds(self, jobs: Iterable[Job]) -> float:
        """What these runs will take, one after the other; 0 where nothing is known."""
        return sum(self._factor(job.stage) * self._units(job) for job in jobs)

    def together(self, jobs: Collection[Job], workers: int) -> float:
        """What these runs will take, so many at a time: at least as long as those that need one another.

        Args:
            jobs: Each after the one that it needs.
            workers: Runs at the same time.
        """
        ends: dict[str | None, float] = {}
        for job in jobs:
            ends[job.hash] = ends.get(job.needs, 0.0) + self.seconds([job])
        return max(self.seconds(jobs) / workers, *ends.values(), 0.0)

    def measure(self, jobs: Iterable[Job], workers: int) -> None:
        """Times a step, and the prediction of a few slices, of each kind of run.

        Args:
            jobs: The runs to come.
            workers: Runs at the same time; they share the cores, or the GPUs.
        """
        known: dict[Any, tuple[float, float]] = {}
        for job in jobs:
            if (kind := _kind(job)) not in known:
                known[kind] = _measure(job, self.store, workers)
            step, each = known[kind]
            slices = sum(case.shape[0] for case in self._scored(job))
            steps = job.config.steps if job.stage == "pretrain" or self.scoring.method == "finetune" else 0
            self._expected[job.hash] = STARTING + step * steps + each * slices
        self._taken = {"pretrain": (0.0, 0.0), "finetune": (0.0, 0.0)}

    def _scored(self, job: Job) -> list[Any]:
        if isinstance(job.config, PretrainConfig):
            return []
        part = None if self.scoring.method == "probe" else self.scoring.part  # a probe reads the training subjects too
        return list(self.store.cases(job.config.task, part=part, labelled=True))

    def _units(self, job: Job) -> float:
        """Seconds where they are measured, otherwise pixels that the network sees."""
        return self._expected.get(job.hash) or float(job.config.steps * _views(job) * job.config.patch_size**2)

    def _factor(self, stage: str) -> float:
        """What a unit takes, in seconds."""
        for name in (stage, *self._taken):  # the other stage is better than nothing
            taken, expected = self._taken[name]
            if expected and (name == stage or not self._expected):
                return taken / expected
        return 1.0 if self._expected else 0.0


def _kind(job: Job) -> tuple[Any, ...]:
    """What decides the time of a step, and of the prediction of a slice."""
    config = job.config
    shape = (config.network, config.patch_size, config.batch_size, config.precision)
    if isinstance(config, PretrainConfig):
        return (job.stage, *shape, config.objective, str(config.options))
    return (job.stage, *shape, config.head, str(dict(job.auxiliaries)))


def _views(job: Job) -> int:
    """Images that the network sees in a step: two views of a scan that is asked about, one of a labelled one."""
    config = job.config
    if isinstance(config, PretrainConfig):
        return 2 * config.batch_size
    return config.batch_size + 2 * sum(each.batch_size for each in job.auxiliaries.values())


def _measure(job: Job, store: Store, workers: int) -> tuple[float, float]:
    """Seconds of a step, and of the prediction of a slice."""
    import torch

    from hssl.training.cost import measure_step
    from hssl.training.finetune import Finetuning

    before = torch.get_num_threads()
    torch.set_num_threads(threads_each(workers))
    try:
        stage = _stage(job, store)
        with _others_at_work(0 if torch.cuda.is_available() else workers - 1):
            step, _ = measure_step(stage)
            each = stage.slice_seconds() if isinstance(stage, Finetuning) else 0.0
    finally:
        torch.set_num_threads(before)
    return step * _sharing(job, workers), each


@contextmanager
def _others_at_work(count: int) -> Iterator[None]:
    """Keeps other cores as busy as other runs would: they share caches, memory and often more."""
    import torch
    from torch.nn.functional import conv2d

    done = threading.Event()

    def work() -> None:
        images, kernels = torch.rand(8, 16, 64, 64), torch.rand(16, 16, 3, 3)
        while not done.is_set():
            conv2d(images, kernels)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _sharing(job: Job, workers: int) -> float:
    """How many workers share a GPU; on a CPU the threads tell."""
    import torch

    from hssl.training.loop import expected_device

    return max(1.0, workers / torch.cuda.device_count()) if expected_device(job.config).type == "cuda" else 1.0


def _stage(job: Job, store: Store) -> Finetuning | Pretraining:
    """The training of a run, with new weights in place of those that it will start from; nothing is written."""
    from hssl.networks import SegmentationNetwork, build_network
    from hssl.runs.run import Run, RunInfo
    from hssl.training.finetune import Finetuning
    from hssl.training.pretrain import Pretraining

    config = job.config
    info = RunInfo(stage=job.stage, network=config.network, subjects_seen={}, masks_seen={}, provenance={})
    run = Run(Path(job.folder), config, info)
    if isinstance(config, PretrainConfig):
        return Pretraining(config, store, run, tuple(config.tasks or store.tasks))
    network = SegmentationNetwork(build_network(config.network), store.tasks[config.task].classes, config.head)
    labelled = list(cast("tuple[str, ...]", config.label_budget))  # a benchmark names the subjects
    return Finetuning(config, store, run, network, labelled, loaded=False, auxiliaries=dict(job.auxiliaries))
