from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hssl.benchmark.run import executors, worker
from hssl.benchmark.run.executors import ClusterExecutor, LocalExecutor
from hssl.benchmark.run.worker import work_at
from hssl.errors import ConfigError


def test_workers_share_the_cores_and_take_turns_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(executors.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(executors, "_gpus", lambda: ["4", "6"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("src", str(tmp_path))))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(options))
    executor = LocalExecutor(tmp_path, workers=3)
    for slot in range(3):
        executor.start(tmp_path / "order.json", tmp_path / "run.log", slot)
    environments = [options["env"] for options in started]
    assert [each["OMP_NUM_THREADS"] for each in environments] == ["2"] * 3
    assert {each["OMP_WAIT_POLICY"] for each in environments} == {"PASSIVE"}
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["4", "6", "4"]
    assert started[0]["cwd"] == tmp_path
    # hssl read from a checkout is found from there as well.
    assert started[0]["env"]["PYTHONPATH"] == os.pathsep.join((str(Path("src").absolute()), str(tmp_path)))


def test_a_worker_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_gpus", list)
    program = "from hssl.benchmark.run import worker; import time; worker.work = lambda order: time.sleep(600); "
    program += "worker.read_json = lambda path, model, hint: None; worker.sys.argv = ['', __file__]; worker.main()"
    script = tmp_path / "program.py"
    script.write_text(program)
    monkeypatch.setattr(executors, "COMMAND", [sys.executable])
    process = LocalExecutor(tmp_path, workers=1).start(script, tmp_path / "run.log", 0)
    try:
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()  # as when this process ends
        assert process.wait(timeout=300) == 1, (tmp_path / "run.log").read_text()
    finally:
        process.kill()


def test_a_worker_has_loader_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_gpus", list)
    script = tmp_path / "program.py"
    script.write_text(
        "import time\n"
        "from torch.utils.data import DataLoader\n"
        "from hssl.benchmark.run import worker\n"
        "def load(order):\n"
        "    time.sleep(0.5)  # until the end of the parent is waited for\n"
        "    assert list(DataLoader([1, 2, 3], num_workers=1, batch_size=None)) == [1, 2, 3]\n"
        "worker.work = load\n"
        "worker.read_json = lambda path, model, hint: None\n"
        "worker.sys.argv = ['', __file__]\n"
        "worker.sys.exit(worker.main())\n"
    )
    monkeypatch.setattr(executors, "COMMAND", [sys.executable])
    process = LocalExecutor(tmp_path, workers=1).start(script, tmp_path / "run.log", 0)
    try:
        assert process.wait(timeout=120) == 0, (tmp_path / "run.log").read_text()
    finally:
        process.kill()


def test_cluster_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "----------------------"
    told = f"failed during processing with trace:\n{rule}\nTraceback\nRuntimeError: no\n\n{rule}\nYou can check logs"
    errors = [RuntimeError(told), RuntimeError("has not produced any output (state: TIMEOUT)\nNo output stream"), None]
    finished = SimpleNamespace(
        done=lambda: True, exception=lambda: errors.pop(0), paths=SimpleNamespace(stderr="job.err")
    )
    made: dict[str, Any] = {}

    class AutoExecutor:
        def __init__(self, folder: Path, cluster: str | None) -> None:
            made.update(folder=folder, cluster=cluster)

        def update_parameters(self, **parameters: Any) -> None:
            made.update(parameters)

        def submit(self, *call: Any) -> Any:
            made["call"] = call
            return finished

    fake: Any = ModuleType("submitit")
    fake.AutoExecutor = AutoExecutor
    monkeypatch.setitem(sys.modules, "submitit", fake)
    executor = ClusterExecutor(tmp_path, {"cluster": "slurm", "timeout_min": 60})
    handle = executor.start(tmp_path / "order.json", tmp_path / "run.log", 0)
    assert made["timeout_min"] == 60
    assert made["cluster"] == "slurm"
    assert made["call"] == (work_at, tmp_path, tmp_path / "order.json")
    last = []
    for status in (1, 1, 0):
        assert handle.poll() == status
        last.append((tmp_path / "run.log").read_text().strip().splitlines()[-1])
    assert last == ["RuntimeError: no", "has not produced any output (state: TIMEOUT)", "job.err"]


def test_a_job_in_this_process_leaves_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[Path] = []
    (tmp_path / "order.json").write_text("{}")
    monkeypatch.setattr(worker, "work", lambda order: worked.append(Path.cwd()))
    monkeypatch.setattr(worker, "read_json", lambda path, model, hint: None)
    before = Path.cwd()
    work_at(tmp_path, tmp_path / "order.json")
    assert (worked, Path.cwd()) == ([tmp_path], before)


def test_cluster_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[cluster\]'"):
        ClusterExecutor(tmp_path, {})


@pytest.mark.parametrize("error", [NameError("Unknown argument(s): timeout_mins\nmore"), AssertionError()])
def test_parameters_that_a_cluster_does_not_take(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AutoExecutor:
        def __init__(self, folder: Path, cluster: str | None = None) -> None:
            pass

        def update_parameters(self, **_: Any) -> None:
            raise error

    fake: Any = ModuleType("submitit")
    fake.AutoExecutor = AutoExecutor
    monkeypatch.setitem(sys.modules, "submitit", fake)
    with pytest.raises(ConfigError, match=r"submitit refuses .*: (Unknown .*timeout_mins|AssertionError) \(its names"):
        ClusterExecutor(tmp_path, {"timeout_mins": 5})
