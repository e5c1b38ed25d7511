"""How long until something happens: ``hssl --help``, ``hssl --version``, and ``hssl pretrain`` to its first step.

All are fresh processes. The program's are timed beside the same interpreter that does nothing. Of pre-training, on a
small store of phantoms with the small network, 32 images in two views of 96x96, each part of the way is a row of its
own: imports (beside the bare import of what it cannot do without, torch and lightning), what is done before the loop
(the store is read, the network built, and two steps on a copy tell how long the run will take), and the loop's own
start with the first step (beside that step, as measured before the loop). Files are in the page cache.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Row, publish, row

TIMES, PRETRAIN_TIMES = 7, 3
PROGRAM = Path(sys.executable).parent / "hssl"
TASKS = ("Task02_HeartMR", "Task04_SpineMR")


def main() -> None:
    # Not above: the child's imports are to be those of the program.
    from hssl.phantoms import write_phantoms
    from hssl.store import aggregate

    rows: list[Row] = []
    commands = {
        "nothing": [sys.executable, "-c", "pass"],
        "--help": [str(PROGRAM), "--help"],
        "--version": [str(PROGRAM), "--version"],
    }
    seconds = fresh(commands, TIMES)
    for name in ("--help", "--version"):
        rows.append(
            row(f"hssl {name}", seconds[name], seconds["nothing"], "python -c pass", "s", "< 0.3 s", more=False)
        )
    with tempfile.TemporaryDirectory(prefix="hssl-bench-") as name:
        folder = Path(name)
        store = aggregate(write_phantoms(folder / "raw", subjects=6, tasks=TASKS), folder / "store").path
        found = [first_step(store, folder / f"run-{turn}") for turn in range(PRETRAIN_TIMES)]
    taken = {part: statistics.median(each[part] for each in found) for part in found[0]}
    floors = {
        "torch": [sys.executable, "-c", "import torch"],
        "torch, lightning": [sys.executable, "-c", "import torch, lightning"],
        "torch, lightning, monai": [sys.executable, "-c", "import torch, lightning, monai.losses.dice"],
    }
    floor = fresh(floors, PRETRAIN_TIMES)
    print(f"imports alone, s: {floor}; pretrain, s: {taken}")
    imports = "hssl pretrain: start of the program and imports"
    for name in ("torch, lightning", "torch, lightning, monai"):
        label = f'python -c "import {name}"'
        rows.append(row(imports, taken["imports"], floor[name], label, "s", "close to 1", more=False))
    part = "hssl pretrain: store, network, estimate (two steps on a copy)"
    rows.append(row(part, taken["before"], None, "-", "s", "-", more=False))
    part = "hssl pretrain: start of the loop and first step"
    rows.append(row(part, taken["loop"], taken["step"], "one step, by the estimate", "s", "-", more=False))
    part = "hssl pretrain: until the first step is done"
    total = taken["imports"] + taken["before"] + taken["loop"]
    label = 'python -c "import torch, lightning", and one step'
    rows.append(row(part, total, floor["torch, lightning"] + taken["step"], label, "s", "-", more=False))
    publish(rows)


def fresh(commands: dict[str, Sequence[str]], times: int) -> dict[str, float]:
    """Median wall seconds of each command, in turns, after one that fills the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def first_step(store: Path, output: Path) -> dict[str, float]:
    """Seconds of each part of a pre-training up to its first step."""
    command = [sys.executable, __file__, str(store), str(output)]
    began = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    marks: dict[str, float] = json.loads(done.stdout.rsplit("MARKS", 1)[1])
    return {
        "imports": marks["imported"] - began,
        "before": marks["fit"] - marks["imported"],
        "loop": marks["step"] - marks["fit"],
        "step": marks["estimate"],
    }


def child(store: str, output: str) -> None:
    """``hssl pretrain``, as the program does it, with notes of the time at a few places; ends after one step."""
    marks: dict[str, float] = {}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hssl.__main__
    cli = importlib.import_module("hssl.cli")
    loop = importlib.import_module("hssl.training.loop")
    cost = importlib.import_module("hssl.training.cost")
    pretrain = importlib.import_module("hssl.training.pretrain")
    marks["imported"] = time.time()
    measure, fit = cost._measure, pretrain.fit

    def measured(stage: Any) -> tuple[float, float]:
        found = measure(stage)
        marks["estimate"] = found[0]
        return found

    def fitted(stage: Any, trainer: Any) -> float:
        marks["fit"] = time.time()
        return fit(stage, trainer)

    def stepped(*_: object) -> None:
        marks["step"] = time.time()
        print("MARKS", json.dumps(marks), flush=True)
        os._exit(0)

    cost._measure, pretrain.fit = measured, fitted
    loop.TrainingCallback.on_train_batch_end = stepped
    sys.argv[1:] = ["pretrain", store, "--output", output, "--steps", "5", "--batch-size", "32", "--patch-size", "96"]
    cli.main()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        main()
