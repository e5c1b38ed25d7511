"""One of two ranks that is killed ends the other one too, in one line, and the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hssl.runs import Run
from hssl.store import Store

OPTIONS = ["--patch-size", "16", "--batch-size", "4", "--steps", "20"]
SET = ["network={features: [4, 8, 8, 8]}", "checkpoint_every=2", "workers=0", "accelerator=cpu", "devices=2"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_rank_that_is_killed_ends_the_training_which_continues(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store({"A": 6, "B": 6})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        pairs = [part for pair in SET for part in ("--set", pair)]
        command = [sys.executable, "-m", "hssl", "pretrain", str(store.path), "-o", str(tmp_path / name)]
        log = (tmp_path / f"{name}.log").open("ab")
        return subprocess.Popen([*command, *OPTIONS, *pairs], stdout=log, stderr=log, env=environment)

    assert start("whole").wait(600) == 0
    for killed in (1, 0):
        before = steps(tmp_path / "run")
        process = start("run")
        while steps(tmp_path / "run") <= before + 2:
            assert process.poll() is None
            time.sleep(0.02)
        (other,) = children(process.pid)
        os.kill((process.pid, other)[killed], signal.SIGKILL)
        began = time.monotonic()
        # Where Lightning sees the end of the other one before a connection breaks, it kills this one, too.
        assert process.wait(120) in (2, -signal.SIGKILL)
        while state(other) not in ("Z", ""):
            assert time.monotonic() - began < 120
            time.sleep(0.1)
    assert start("run").wait(600) == 0
    assert "Traceback" not in (tmp_path / "run.log").read_text()
    whole, run = (load_file(Run.open(tmp_path / name).path / "weights.safetensors") for name in ("whole", "run"))
    assert all((run[name] == weight).all() for name, weight in whole.items())


def steps(run: Path) -> int:
    """Steps of the last checkpoint."""
    return max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoint/step-*")), default=0)


def children(parent: int) -> list[int]:
    """Processes that another one has started."""
    found = [(int(path.name), stat(path)) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number, fields in found if fields[1:2] == [str(parent)]]


def state(process: int) -> str:
    """As ``ps`` has it, ``Z`` for one that has ended; empty where there is none."""
    return "".join(stat(Path("/proc") / str(process))[:1])


def stat(path: Path) -> list[str]:
    """State, parent and so on; empty where the process has ended."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
