"""What every benchmark here shares: alternated timing, and rows that end up in a table and in ``results.json``.

A benchmark is a script ``bench_PART.py`` that measures and calls :func:`publish`. Ours and its peers run in one process
wherever they can, one after the other, again and again, so that a busy moment of the machine hits them alike; only the
ratio of one run means something. ``make bench`` runs all of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
DATA = Path(__file__).parents[2] / "shared" / "data"
"""The real challenges, where there are any."""
PACKAGES = (
    "hssl", "torch", "numpy", "lightning", "monai", "kornia", "albumentations", "torchio", "batchgeneratorsv2",
    "lightly", "blosc2", "nnunetv2", "nibabel", "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        part: What was measured.
        ours: Our figure.
        peer: The peer's figure; None where there is none to compare with.
        peer_name: The peer, with what was asked of it.
        unit: Of both, with "/s" where more is better.
        ratio: How many times better ours is: above 1 is better, whatever the unit.
        goal: What was asked for.
    """

    part: str
    ours: float
    peer: float | None
    peer_name: str
    unit: str
    ratio: float | None
    goal: str


def row(part: str, ours: float, peer: float | None, peer_name: str, unit: str, goal: str, *, more: bool) -> Row:
    """A row whose ratio is turned so that above 1 means ours is better.

    Args:
        part: What was measured.
        ours: Our figure.
        peer: The peer's.
        peer_name: The peer.
        unit: Of both.
        goal: What was asked for.
        more: Whether more is better (a rate), or less (seconds, bytes).
    """
    ratio = None if not peer or not ours else (ours / peer if more else peer / ours)
    return Row(part, ours, peer, peer_name, unit, ratio, goal)


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warm_up: int = 1,
    least_seconds: float = 0.05,
) -> dict[str, float]:
    """Median seconds of a call of each, measured in turns.

    Args:
        contestants: What to call, by name.
        rounds: Turns that each gets; the order is reversed from turn to turn.
        warm_up: Calls of each before the clock runs.
        least_seconds: A turn repeats the call until it has lasted as long as this.
    """
    repeats: dict[str, int] = {}
    for name, call in contestants.items():
        for _ in range(warm_up):
            call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, round(least_seconds / max(time.perf_counter() - began, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            began = time.perf_counter()
            for _ in range(repeats[name]):
                contestants[name]()
            seconds[name].append((time.perf_counter() - began) / repeats[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def pin_threads(count: int) -> None:
    """Gives torch, OpenMP and BLAS that many threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)


def publish(rows: list[Row]) -> None:
    """Prints a table, and replaces the rows of the same parts in ``results.json``; each names its machine by number."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "ours", "peer", "peer's name", "unit", "ratio", "goal")
    for each in rows:
        table.add_row(*_cells(each))
    Console(width=170).print(table)
    parts = {each.part for each in rows}
    here = machine()
    made = [(where, kept) for where, kept in _published() if kept.part not in parts] + [(here, each) for each in rows]
    machines: list[dict[str, Any]] = []
    for where, _ in made:
        if where not in machines:
            machines.append(where)
    made.sort(key=lambda each: machines.index(each[0]))
    content = {
        "machines": machines,
        "rows": [asdict(each) | {"machine": machines.index(where)} for where, each in made],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _published() -> list[tuple[dict[str, Any], Row]]:
    """Each row of ``results.json`` and the machine that made it."""
    if not RESULTS.exists():
        return []
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [(content["machines"][each.pop("machine")], Row(**each)) for each in content["rows"]]


def machine() -> dict[str, Any]:
    """Where and when, and the versions of all that took part."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cells(each: Row) -> tuple[str, ...]:
    figures = _short(each.ours), _short(each.peer), each.peer_name, each.unit, _short(each.ratio)
    return each.part, *figures, each.goal


def markdown() -> str:
    """The rows of ``results.json`` as the tables of docs/performance.md, one for each machine and day."""
    lines: list[str] = []
    for where, made in groupby(_published(), key=itemgetter(0)):
        took_part = [f"{name} {text}" for name, text in where["versions"].items() if text != "absent"]
        lines += ["", f"{where['machine']}; {where['date']}; {', '.join(took_part)}.", ""]
        lines += ["| part | ours | peer | peer's name | unit | ratio | goal |", "|---|--:|--:|---|---|--:|---|"]
        lines += [f"| {' | '.join(_cells(each))} |" for _, each in made]
    return "\n".join(lines).lstrip()


if __name__ == "__main__":
    print(markdown())
