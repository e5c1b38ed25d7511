"""Makes the runs of an experiment, as many at a time as are wanted, and keeps the ledger.

BENCH/experiment.json     the experiment and its grid, as last run
BENCH/ledger.jsonl        a line for each cell of the grid whose fine-tuning is finished
BENCH/pretraining.jsonl   a line for each finished pre-training
BENCH/pretrain/HASH/      pre-training runs, shared by the fine-tunings that start from them
BENCH/runs/HASH/          fine-tuning runs, without weights once they have been scored
BENCH/orders/HASH.json    what a run was told
BENCH/logs/HASH.log       what a run printed
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hssl.benchmark.experiment import Cell, Experiment, Grid, Job, check_sources, expand
from hssl.benchmark.run.executors import ClusterExecutor, Executor, Handle, LocalExecutor
from hssl.benchmark.run.forecast import Forecast
from hssl.benchmark.run.ledger import LEDGER, PRETRAINING, Ledger, Row, row_key
from hssl.benchmark.run.records import FinetuneOutcome, Order, PretrainOutcome, Recorded
from hssl.benchmark.run.worker import AGAIN, OUTCOME
from hssl.benchmark.statistics import same_cells
from hssl.config import FinetuneConfig, read_mapping
from hssl.errors import TrainingError, first_line
from hssl.files import locked, read_json, write_text
from hssl.machine import ends_as_interrupted
from hssl.store import Store
from hssl.text import duration

PAUSES = (5.0, 30.0)
"""Seconds after which a run that could not be started is tried again."""
EXPERIMENT = "experiment.json"


def run_benchmark(
    experiment: Experiment | Path | str,
    output: Path | str,
    *,
    workers: int = 1,
    dry_run: bool = False,
    cluster: Path | str | None = None,
) -> list[Row]:
    """Makes the runs of an experiment that are not in the ledger yet.

    An interrupted benchmark continues where it stopped; a larger experiment makes only the new runs. A run that fails
    does not stop the others, and the same command tries it again.

    Args:
        experiment: The experiment, or its YAML file.
        output: Folder of the benchmark, new or to be continued.
        workers: Runs at the same time; on GPUs one each is usual.
        dry_run: Only list the runs and estimate their hours.
        cluster: YAML file with parameters of submitit, to run on a cluster instead of this machine.

    Returns:
        With `dry_run` the runs to make; otherwise one row for each arm, task and label budget.

    Raises:
        ConfigError: The experiment is not valid.
        StoreError: There is no store, or it lacks what the experiment needs, or its sources have moved.
        RunError: Another benchmark is running in `output`, or a file in it is damaged.
        TrainingError: Some runs have failed; all others are in the ledger.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.load(Path(experiment))
    store = Store.open(experiment.store)
    grid = expand(experiment, store)
    bench = Path(output).absolute()
    board = _Board(experiment, grid, store, bench)
    check_sources(experiment, store, board.tasks())
    if dry_run:
        return board.forecast(workers)
    executor = _executor(bench, workers, cluster)
    with locked(bench, "benchmark"), ends_as_interrupted():
        board = _Board(experiment, grid, store, bench)
        write_text(bench / EXPERIMENT, Recorded(experiment=experiment, cells=grid.cells).model_dump_json(indent=1))
        board.run(executor, workers)
    if board.failed:
        raise TrainingError(
            f"{len(board.failed)} of {len(grid.jobs)} runs have failed: {next(iter(board.failed.values()))}",
            path=bench / "logs",
            hint="the others are in the ledger; the same command tries these again",
        )
    return board.summary()


def _executor(bench: Path, workers: int, cluster: Path | str | None) -> Executor:
    """Makes the folders of a benchmark, and what its runs are started by."""
    bench.mkdir(parents=True, exist_ok=True)
    for name in ("orders", "logs", "pretrain", "runs"):
        (bench / name).mkdir(exist_ok=True)
    if cluster is None:
        return LocalExecutor(bench, workers)
    return ClusterExecutor(bench, read_mapping(cluster, "parameters"))


class _Board:
    """What is done, what is running and what is left."""

    def __init__(self, experiment: Experiment, grid: Grid, store: Store, bench: Path) -> None:
        self.experiment, self.grid, self.bench = experiment, grid, bench
        self.store = str(Path(experiment.store).absolute())
        self.ledger, self.pretraining = Ledger(bench / LEDGER), Ledger(bench / PRETRAINING)
        done = self.ledger.rows()
        self.rows = {row["config_hash"]: row for row in done}
        self.known = {row_key(row) for row in done}
        self.cells: dict[str, list[Cell]] = {}
        for cell in grid.cells:
            self.cells.setdefault(cell.hash, []).append(cell)
        self.failed: dict[str, str] = {}
        self.left = self._left()
        self.total = len(self.left)
        self.clock = Forecast(experiment, grid, store, done, self.pretraining.rows())

    def _left(self) -> dict[str, Job]:
        """Fine-tunings that are not in the ledger, and the pre-trainings that they still need."""
        wanted = {h for h in self.cells if h not in self.rows}

        def missing(hash_: str) -> bool:
            return not self._outcome(self.grid.jobs[hash_]).exists()

        unmade = [cell for cell in self.grid.cells if cell.hash in wanted and missing(cell.hash)]
        needed = {hash_ for cell in unmade for hash_ in takewhile(missing, self.grid.before(cell))}
        return {h: job for h, job in self.grid.jobs.items() if h in wanted or h in needed}

    def _outcome(self, job: Job) -> Path:
        return self.bench / job.folder / OUTCOME

    def tasks(self) -> list[str]:
        """Tasks of the fine-tunings that are still to be made."""
        unmade = [job.config for job in self.left.values() if not self._outcome(job).exists()]
        return list(dict.fromkeys(config.task for config in unmade if isinstance(config, FinetuneConfig)))

    # Running ------------------------------------------------------------------------------------------------------

    def run(self, executor: Executor, workers: int) -> None:
        """Makes all that is left; leaves no process behind."""
        running: dict[int, tuple[Job, Handle, float]] = {}
        console = rich.get_console()
        self._announce(executor, workers)
        columns = (TextColumn("benchmark"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._adopt()
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=self.total, completed=self.total - len(self.left))
                while self.left or running:
                    for slot in set(range(workers)) - running.keys():
                        busy = {job.hash for job, _, _ in running.values()}
                        job = self._next(busy)
                        if job is not None and (handle := self._start(executor, job, slot)) is not None:
                            running[slot] = (job, handle, time.monotonic())
                    for slot, (job, handle, began) in list(running.items()):
                        if (status := handle.poll()) is not None:
                            del running[slot]
                            self.left.pop(job.hash)
                            # What a job waited in a queue is not its own.
                            seconds = 0.0 if executor.queues else time.monotonic() - began
                            self._finish(job, status, seconds, workers)
                    progress.update(bar, completed=self.total - len(self.left))
                    if running:
                        time.sleep(0.2)
        finally:
            for _, handle, _ in running.values():
                handle.kill()

    def _adopt(self) -> None:
        """Enters runs that were finished when an earlier benchmark stopped, or elsewhere, or for another cell."""
        for hash_ in self.cells.keys() & self.rows.keys():
            self._enter_cells(self.grid.jobs[hash_], self.rows[hash_])
        for job in self.grid.jobs.values():
            if self._outcome(job).exists() and (job.stage == "pretrain" or job.hash in self.left):
                self._enter(job)
                self.left.pop(job.hash, None)

    def _next(self, busy: Collection[str]) -> Job | None:
        for job in list(self.left.values()):
            if job.needs in self.failed:
                self.failed[job.hash] = f"{self._named(job)} needs a pre-training that has failed"
                self.left.pop(job.hash)
            elif job.hash not in busy and job.needs not in self.left:
                return job
        return None

    def _start(self, executor: Executor, job: Job, slot: int) -> Handle | None:
        """Starts a run, trying again for a while; one that cannot be started has failed."""
        order = Order(
            store=self.store,
            folder=job.folder,
            config=job.config,
            scoring=self.experiment.scoring,
            keep_weights=self.experiment.keep_weights,
        )
        path = self.bench / "orders" / f"{job.hash}.json"
        write_text(path, order.model_dump_json(indent=1))
        for pause in (*PAUSES, None):
            try:
                return executor.start(path, self._log(job), slot)
            except (OSError, RuntimeError) as error:  # submitit's are the latter
                reason = first_line(error)
            if pause is not None:
                time.sleep(pause)
        self.left.pop(job.hash)
        self.failed[job.hash] = f"{self._named(job)}: could not be started: {reason}"
        self._tell(f"failed: {self.failed[job.hash]}")
        return None

    def _finish(self, job: Job, status: int, seconds: float, workers: int) -> None:
        if status == 0 and self._outcome(job).exists():
            outcome = self._enter(job)
            # Its own count: this process may have come when most was done already.
            seconds = max(seconds, outcome["seconds"])
            self.clock.add(job, seconds)
            result = f"Dice {outcome['dice']:.3f}" if outcome.get("dice") is not None else "done"
            text = f"{self._named(job)}: {result} in {duration(seconds)}; {self._left_text(workers)}"
        else:
            self.failed[job.hash] = f"{self._named(job)}: {_reason(status, _last_line(self._log(job)))}"
            text = f"failed: {self.failed[job.hash]}"
        self._tell(text)

    def _enter(self, job: Job) -> Row:
        """Adds a finished run to the ledger, for each cell that it fills."""
        model = PretrainOutcome if job.stage == "pretrain" else FinetuneOutcome
        outcome: Row = read_json(self._outcome(job), model, hint=AGAIN).model_dump(mode="json")
        if job.stage == "pretrain":
            if job.hash not in {row["config_hash"] for row in self.pretraining.rows()}:
                self.pretraining.append({"config_hash": job.hash, "init_hash": job.needs, **outcome})
            return outcome
        self._enter_cells(job, outcome)
        return outcome

    def _enter_cells(self, job: Job, outcome: Row) -> None:
        for cell in self.cells[job.hash]:
            if cell.key not in self.known:
                place = {
                    "arm": cell.arm,
                    "task": cell.task,
                    "fraction": cell.fraction,
                    "label_budget": cell.label_budget,
                }
                place |= {"seed": cell.seed, "config_hash": job.hash, "pretrain_hash": job.needs}
                self.ledger.append({**place, **{k: v for k, v in outcome.items() if k not in place}})
                self.known.add(cell.key)

    def _log(self, job: Job) -> Path:
        return self.bench / "logs" / f"{job.hash}.log"

    def _named(self, job: Job) -> str:
        if job.stage == "finetune":
            cell = self.cells[job.hash][0]
            return f"{cell.arm} {cell.task} {cell.label_budget} seed {cell.seed}"
        arms = dict.fromkeys(c.arm for c in self.grid.cells if job.hash in self.grid.before(c))
        tasks: tuple[str, ...] = getattr(job.config, "tasks", None) or ()
        return f"pre-training of {', '.join(arms)} on {', '.join(tasks) if len(tasks) == 1 else f'{len(tasks)} tasks'}"

    # Telling ------------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        count = f"[{self.total - len(self.left)}/{self.total}]"
        rich.get_console().print(f"{count} {text}", highlight=False, markup=False, soft_wrap=True)

    def _announce(self, executor: Executor, workers: int) -> None:
        """Says what the runs will take. On a cluster, and on GPUs, which the runs need, nothing is measured for it."""
        import torch

        if self.left and not executor.queues and not torch.cuda.is_available():
            self.clock.measure(self.left.values(), workers)
            self._tell(f"{len(self.left)} runs to make, {self._left_text(workers)}")

    def _left_text(self, workers: int) -> str:
        seconds = self.clock.together(self.left.values(), workers)
        return f"about {duration(seconds)} left" if self.left else "nothing left"

    def forecast(self, workers: int) -> list[Row]:
        """A row for each run to make, with its hours, and one for all of them."""
        self.clock.measure(self.left.values(), workers)
        rows: list[Row] = [
            {"run": self._named(job), "steps": job.config.steps, "hours": self.clock.seconds([job]) / 3600}
            for job in self.left.values()
        ]
        steps, hours = sum(row["steps"] for row in rows), self.clock.together(self.left.values(), workers) / 3600
        finished = sum(cell.hash in self.rows for cell in self.grid.cells)
        name = f"all {len(rows)} runs, {workers} at a time; {finished} of {len(self.grid.cells)} cells are done"
        return [*rows, {"run": name, "steps": steps, "hours": hours}]

    def summary(self) -> list[Row]:
        """Mean over seeds of each arm, task and fraction of the experiment."""
        keys = {cell.key for cell in self.grid.cells}
        found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for row in same_cells(row for row in self.ledger.rows() if row_key(row) in keys):
            found.setdefault((row["task"], row["label_budget"], row["arm"]), []).append(row)
        return [
            {
                "task": task,
                "label_budget": label_budget,
                "arm": arm,
                "seeds": len(rows),
                "Dice": _mean(row["dice"] for row in rows),
            }
            for (task, label_budget, arm), rows in found.items()
        ]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _reason(status: int, said: str) -> str:
    """Why a run ended: its own line if it knew, else how the process ended first."""
    if status == 2 and said:
        return said
    how = f"exit status {status}"
    if status < 0:
        how = f"killed by {signal.Signals(-status).name}"
        if -status == getattr(signal, "SIGKILL", None):
            how += ", as happens when a machine runs out of memory"
    return f"{how}; last message: {said}" if said else how


def _last_line(path: Path) -> str:
    with suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""
