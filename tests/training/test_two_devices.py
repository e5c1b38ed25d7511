"""Training by two processes, as on two GPUs, but on the CPU."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from hssl.evaluation import evaluate
from hssl.runs import Run

SCRIPT = Path(__file__).with_name("two_devices.py")


def test_two_processes_leave_one_run(make_store, tmp_path):
    store = make_store({"A": 6, "B": 6, "C": 6})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(store.path), str(tmp_path)]
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(command, env=environment, check=True, timeout=600)
        joint, fine = (Run.open(tmp_path / name) for name in ("joint", "fine"))
        assert joint.info.complete
        assert fine.info.complete
    assert json.loads((joint.path / "groups.json").read_text())["groups"].keys() == {"A", "B", "C"}
    # One line a step and loss: only one of the two writes.
    for run in (joint, fine):
        with (run.path / "metrics.csv").open(newline="") as file:
            steps = [int(step) for step, name, _ in list(csv.reader(file))[1:] if name == "loss"]
        assert steps == [1, 2, 3, 4]
        assert not list(run.path.glob(".partial-*"))
    assert fine.info.result["best_step"] in (2, 4)
    assert 0 <= evaluate(fine.path, space="store").mean.dice <= 1
