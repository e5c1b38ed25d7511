"""Where runs are made: processes of this machine, its GPUs, or a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hssl.benchmark.run.worker import work_at
from hssl.errors import ConfigError, first_line, install
from hssl.machine import cores

COMMAND = [sys.executable, "-m", "hssl.benchmark.run.worker"]
RULE = "\n----------------------\n"
"""What submitit puts before and after the trace of a failed job."""


class Handle(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def kill(self) -> None:
        """Ends it."""


class Executor(Protocol):
    """Starts runs in slots that are numbered from 0.

    Attributes:
        queues: Whether a run may wait before it begins.
    """

    queues: bool

    def start(self, order: Path, log: Path, slot: int) -> Handle:
        """Starts the run of an order file."""


class LocalExecutor:
    """Processes of this machine: each has its share of the cores, and one GPU where there are any.

    Args:
        bench: Working directory of the processes.
        workers: Processes at the same time.
    """

    queues = False

    def __init__(self, bench: Path, workers: int) -> None:
        self._bench = bench
        self._threads = threads_each(workers)
        self._gpus = _gpus()

    def start(self, order: Path, log: Path, slot: int) -> subprocess.Popen[bytes]:
        """Starts a process; what it prints goes to `log`, in place of what an earlier try said."""
        environment = os.environ | {
            # Read when torch is imported, so it has to be there before. Threads that spin while they wait take the
            # cores of the other workers.
            "OMP_NUM_THREADS": str(self._threads),
            "MKL_NUM_THREADS": str(self._threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HSSL_WORKER_PIPE": "1",
        }
        if relative := os.environ.get("PYTHONPATH"):
            # From here, not from the folder of the benchmark.
            environment["PYTHONPATH"] = os.pathsep.join(
                str(Path(part).absolute()) for part in relative.split(os.pathsep)
            )
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        with log.open("wb") as file:
            return subprocess.Popen(
                [*COMMAND, str(order)],
                cwd=self._bench,
                env=environment,
                stdin=subprocess.PIPE,  # closes when this process ends, and so ends the worker
                stdout=file,
                stderr=subprocess.STDOUT,
            )


class ClusterExecutor:
    """Jobs of a cluster, by submitit (extra ``cluster``); `BENCH` and the store are on a shared disk.

    Args:
        bench: Working directory of the jobs.
        parameters: As submitit's ``AutoExecutor.update_parameters`` takes them, for example ``timeout_min``,
            ``gpus_per_node`` and ``slurm_partition``; ``cluster`` names the engine, found by itself by default.

    Raises:
        ConfigError: submitit is not installed, or does not take the parameters.
    """

    queues = True

    def __init__(self, bench: Path, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("submitit is not installed", hint=install("cluster")) from error
        self._bench = bench
        try:
            self._executor = submitit.AutoExecutor(bench / "logs", cluster=parameters.get("cluster"))
            self._executor.update_parameters(**{k: v for k, v in parameters.items() if k != "cluster"})
        except (NameError, ValueError, AssertionError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"submitit refuses the parameters of the cluster: {first_line(error)}",
                hint="its names are those of submitit's AutoExecutor.update_parameters",
            ) from error

    def start(self, order: Path, log: Path, slot: int) -> Handle:
        """Submits a job; its output is in submitit's own files, beside `log`."""
        return _ClusterRun(self._executor.submit(work_at, self._bench, order), log)


class _ClusterRun:
    def __init__(self, job: Any, log: Path) -> None:
        self._job, self._log = job, log

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        error = self._job.exception()
        text = "" if error is None else str(error)
        # A failed job's message holds its trace between two rules; if it never came back, the first line says so.
        _, *trace = text.split(RULE)
        last = trace[0].strip().splitlines()[-1] if trace and trace[0].strip() else text.partition("\n")[0]
        self._log.write_text(f"{self._job.paths.stderr}\n{text}\n{last}\n", encoding="utf-8")
        return 0 if error is None else 1

    def kill(self) -> None:
        self._job.cancel()


def threads_each(workers: int) -> int:
    """Threads of each of so many processes, which share this machine's cores."""
    return max(1, cores() // workers)


def _gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = given.split(",") if given else [str(number) for number in range(count)]
    return names[:count]
