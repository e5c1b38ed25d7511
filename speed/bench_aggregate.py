"""Raw cases to training data: ``hssl.aggregate`` beside nnU-Net's fingerprint, plan and preprocessing (2d), same cases.

Each runs in a fresh process, on the same files, with the clock started after its imports and stopped when its files
are written; on one core both are pinned to it. nnU-Net always starts worker processes, twice, and these import it
again: that is what its users wait for, but it fades with the number of cases, so that on one core there is also a row
in which its own functions are called case by case in one process. Memory is the peak of the proportional set size
(PSS), summed over the process and all it started, sampled; imports included. The two do not do quite the same:
nnU-Net resamples by cubic splines and compresses, ours resamples linearly with antialiasing, hashes every file and
does not compress.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import DATA, Row, publish, row

TASKS = {"Task03_Cardiac": 96}
"""Tasks, and how many cases of each: all, for nnU-Net draws 10^8 voxels of a task, however few cases it has."""
SAMPLE_SECONDS = 0.05
TIMEOUT = 600
OURS, NNUNET, SERIAL = "ours", "nnU-Net", "nnU-Net, no worker processes"
MIB = 2**20


def main() -> None:
    missing = [task for task in TASKS if not (DATA / task).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} absent in {DATA}")
        return
    cores = os.cpu_count() or 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hssl-bench-") as name:
        folder = Path(name)
        cases = sum(lay_out(task, number, folder) for number, task in enumerate(TASKS, start=1))
        print(f"{cases} cases of {', '.join(TASKS)}")
        jobs = [(OURS, 1), (NNUNET, 1), (SERIAL, 1), *([(OURS, cores), (NNUNET, cores)] if cores > 1 else [])]
        found = {}
        for kind, workers in jobs:
            try:
                found[kind, workers] = measured(kind, workers, folder)
            except subprocess.CalledProcessError as error:
                print(f"left out {kind}, {workers} worker(s): {error.output[-400:]}")
        for (kind, workers), (seconds, peak) in found.items():
            if kind == OURS or (OURS, workers) not in found:
                continue
            own_seconds, own_peak = found[OURS, workers]
            where = "1 core" if workers == 1 else f"{workers} cores"
            label = f"{kind}: fingerprint, plan, preprocess 2d"
            rate, peer = cases / own_seconds, cases / seconds
            rows.append(row(f"aggregate, {where}", rate, peer, label, "cases/s", ">= 5x", more=True))
            rows.append(row(f"aggregate memory, {where}", own_peak, peak, label, "MiB", "less", more=False))
    publish(rows)


def lay_out(task: str, number: int, folder: Path) -> int:
    """Links the first cases of a task into a Decathlon folder for us and a raw folder for nnU-Net."""
    described = json.loads((DATA / task / "dataset.json").read_text(encoding="utf-8"))
    listed = described["training"][: TASKS[task]]
    ours, theirs = folder / "msd" / task, folder / "raw" / f"Dataset{number:03d}_{task.partition('_')[2]}"
    for part in ("imagesTr", "labelsTr"):
        (ours / part).mkdir(parents=True)
        (theirs / part).mkdir(parents=True)
    for entry in listed:
        for kind, part, suffix in (("image", "imagesTr", "_0000"), ("label", "labelsTr", "")):
            source = (DATA / task / entry[kind]).resolve()
            (ours / part / source.name).symlink_to(source)
            (theirs / part / source.name.replace(".nii.gz", f"{suffix}.nii.gz")).symlink_to(source)
    content = {**described, "numTraining": len(listed), "training": listed}
    (ours / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {text: int(value) for value, text in described["labels"].items()},
        "numTraining": len(listed),
        "file_ending": ".nii.gz",
    }
    (theirs / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return len(listed)


def measured(kind: str, workers: int, folder: Path) -> tuple[float, float]:
    """Seconds that the child counted, and the peak of its memory and its children's in MiB."""
    output = folder / "output"
    output.mkdir()
    environment = {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(output / "preprocessed"),
        "nnUNet_results": str(output / "results"),
        "nnUNet_def_n_proc": str(workers),
        "OMP_NUM_THREADS": "1",  # As nnU-Net asks for; its processes and our threads are the parallelism.
    }
    command = [sys.executable, __file__, kind, str(workers), str(folder / "msd"), str(output)]
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        killer = threading.Timer(TIMEOUT, child.kill)
        killer.start()
        peak = [0]
        sampler = threading.Thread(target=_sample, args=(child, peak))
        sampler.start()
        text = child.stdout.read() if child.stdout else ""
        child.wait()
        killer.cancel()
        sampler.join()
    shutil.rmtree(output)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, text)
    seconds = float(text.rsplit("SECONDS", 1)[1])
    print(f"{kind}, {workers} worker(s): {seconds:.1f} s, {peak[0] / MIB:.0f} MiB")
    return seconds, peak[0] / MIB


def _sample(child: subprocess.Popen[str], peak: list[int]) -> None:
    while child.poll() is None:
        peak[0] = max(peak[0], sum(pss(process) for process in tree(child.pid)))
        time.sleep(SAMPLE_SECONDS)


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold spaces.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def pss(process: int) -> int:
    """Proportional set size in bytes; 0 once the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# In the child ------------------------------------------------------------------------------------------------


def work(kind: str, workers: int, sources: Path, output: Path) -> None:
    """Does one job and prints how long it took."""
    if workers == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds = ours(sources, output, workers) if kind == OURS else nnunet(workers, serial=kind == SERIAL)
    print("SECONDS", seconds)


def ours(sources: Path, output: Path, workers: int) -> float:
    """Everything ``hssl aggregate`` does."""
    from hssl.config import AggregateConfig
    from hssl.store import aggregate

    began = time.perf_counter()
    aggregate(sorted(sources.iterdir()), output / "store", config=AggregateConfig(workers=workers))
    return time.perf_counter() - began


def nnunet(workers: int, *, serial: bool) -> float:
    """What ``nnUNetv2_plan_and_preprocess -c 2d`` does, without its check of the data set, which is off by default."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    if serial:
        fingerprint_extractor.multiprocessing = default_preprocessor.multiprocessing = SameProcess  # type: ignore[attr-defined]
    datasets = list(range(1, len(TASKS) + 1))
    began = time.perf_counter()
    api.extract_fingerprints(datasets, num_processes=workers, verbose=False, show_progress_bar=False)
    plans = api.plan_experiments(datasets)
    api.preprocess(datasets, plans, configurations=("2d",), num_processes=(workers,), show_progress_bar=False)
    return time.perf_counter() - began


class SameProcess:
    """Stands in for ``multiprocessing``: a pool whose work is done when it is handed in."""

    @staticmethod
    def get_context(_: str) -> type[SameProcess]:
        return SameProcess

    class Pool:
        """As far as nnU-Net uses it."""

        def __init__(self, _: int) -> None:
            self._pool: list[Any] = []

        def __enter__(self) -> SameProcess.Pool:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def starmap_async(self, function: Any, jobs: Any) -> Done:
            return Done([function(*job) for job in jobs])


class Done:
    """A result that is there."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def ready(self) -> bool:
        return True

    def get(self) -> list[Any]:
        return self.values


def arguments(given: list[str]) -> Mapping[str, Any]:
    """Of :func:`work`."""
    kind, workers, sources, output = given
    return {"kind": kind, "workers": int(workers), "sources": Path(sources), "output": Path(output)}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(**arguments(sys.argv[1:]))
    else:
        main()
