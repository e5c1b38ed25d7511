"""A benchmark that is killed loses nothing, and a file of it that is damaged is named in one line."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hssl.benchmark import Experiment, run_benchmark, write_report
from hssl.benchmark.experiment import expand
from hssl.benchmark.report import figures
from hssl.benchmark.run.ledger import Ledger
from hssl.config import AggregateConfig
from hssl.errors import HsslError
from hssl.store import Store, aggregate

FILES = ("experiment.json", "ledger.jsonl", "pretraining.jsonl", "experiment.yaml")
ODD: list[Any] = [None, -1, 0, 1e308, float("nan"), float("inf"), "", "x", "\0", "a\nb", [], {}, [[]], True, 10**30]
ODD += ["100 %", "1e5%", "../..", "ü" * 3000, {"a": {}}]
DURATION = ("seconds", "training_seconds", "started")
"""What differs between two runs of the same."""


@pytest.fixture(scope="module")
def store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    sources = sorted(path for path in phantom_root.iterdir() if path.is_dir())[:3]
    return aggregate(sources, tmp_path_factory.mktemp("bench") / "store", config=AggregateConfig(workers=1))


def options(store: Store, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "store": str(store.path),
        "label_budgets": ["50%", 1],
        "seeds": [0, 1],
        "arms": {"scratch": {"domains": "none"}, "joint": {}, "adapted": {"adapt": {"steps": 1}}},
        "pretrain": {"steps": 2, "patch_size": 16, "batch_size": 4, "network": {"features": [4, 8, 8, 8]}},
        "finetune": {"steps": 2, "patch_size": 16, "batch_size": 2, "validation": False},
        "scoring": {"part": "test", "space": "store"},
        "claims": "abstract",
    }
    return values | changes


# Killed -----------------------------------------------------------------------------------------------------------


def start(experiment: Path, bench: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hssl", "benchmark", str(experiment), "-o", str(bench)]
    log = bench.with_suffix(".log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def results(bench: Path) -> list[dict[str, Any]]:
    rows = Ledger(bench / "ledger.jsonl").rows()
    return [{name: value for name, value in row.items() if name not in DURATION} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_benchmark_killed_after_its_first_rows_ends_as_one_that_was_not(
    number: signal.Signals, store: Store, tmp_path: Path
) -> None:
    arms = {"a": {"domains": "none"}, "b": {}, "c": {"domains": "none", "finetune": {"steps": 3}}}
    tasks = [next(iter(store.tasks))]
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(options(store, label_budgets=["50%"], seeds=[0], tasks=tasks, arms=arms)))
    whole, bench = tmp_path / "whole", tmp_path / "killed"
    assert start(path, whole).wait(timeout=900) == 0
    kills = 0
    for rows in (1, 2):
        process = start(path, bench)
        while process.poll() is None and len(results(bench)) < rows:
            time.sleep(0.05)
        if process.poll() is None:
            time.sleep(random.Random(rows).uniform(0, 1))
            os.kill(process.pid, number)
            kills += 1
        assert process.wait(timeout=60) in (-number, 128 + number)
        assert results(bench) == results(whole)[: len(results(bench))]
    assert kills == 2
    assert start(path, bench).wait(timeout=900) == 0
    assert results(bench) == results(whole)
    assert "Traceback" not in bench.with_suffix(".log").read_text()


# Damaged ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    store: Store,
    tmp_path_factory: pytest.TempPathFactory,
    make_row: Callable[..., dict[str, Any]],
    make_pretraining: Callable[..., dict[str, Any]],
) -> Path:
    """A finished benchmark without its run folders, and the experiment in it."""
    path = tmp_path_factory.mktemp("finished")
    grid = expand(Experiment.checked(options(store)), store)
    origin = {"store_hash": store.hash, "split_hash": store.split_hash}
    for cell in grid.cells:
        place = {name: getattr(cell, name) for name in ("arm", "task", "label_budget", "fraction", "seed")}
        hashes = {"config_hash": cell.hash, "pretrain_hash": grid.jobs[cell.hash].needs}
        Ledger(path / "ledger.jsonl").append(make_row(**place, **hashes, **origin))
    tree = [[0, 1, 0.1, 2], [2, 3, 0.5, 3]]
    groups = {"groups": dict(zip(store.tasks, (0, 0, 1), strict=True)), "silhouettes": {"2": 0.5}, "tree": tree}
    for hash_, job in grid.jobs.items():
        if job.stage == "pretrain":
            more = {"tasks": list(store.tasks), "groups": None if job.needs else groups}
            line = make_pretraining(config_hash=hash_, init_hash=job.needs, **more, **origin)
            Ledger(path / "pretraining.jsonl").append(line)
    (path / "experiment.yaml").write_text(yaml.safe_dump(options(store), sort_keys=False))
    run_benchmark(path / "experiment.yaml", path)
    return path


@pytest.fixture
def bench(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished benchmark; its report is made without drawing, which would take most of the time."""
    monkeypatch.setattr(figures, "_svg", lambda figure: "")
    monkeypatch.setattr(logging.getLogger("hssl"), "level", logging.ERROR)
    return shutil.copytree(finished, tmp_path / "bench")


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield (*place, name)
        yield from places(each, (*place, name))


def with_other_value(value: Any, rng: random.Random) -> Any:
    """A value without one of its fields, with another one in its place, or with another name."""
    value = copy.deepcopy(value)
    *before, last = rng.choice(list(places(value)))
    inner = value
    for name in before:
        inner = inner[name]
    how = rng.random()
    if how < 0.25:
        del inner[last]
    elif how < 0.35 and isinstance(inner, dict):
        inner[rng.choice(["x", "a\n", "\0", ""])] = inner.pop(last)
    else:
        inner[last] = rng.choice(ODD)
    return value


def with_other_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, how = rng.randrange(len(changed)), rng.random()
        if how < 0.5:
            changed[at] ^= 1 << rng.randrange(8)
        elif how < 0.7:
            del changed[at : at + rng.choice([1, 3, 50])]
        elif how < 0.8:
            changed = changed[:at] or bytearray(b" ")
        else:
            changed[at:at] = rng.choice([b"\n", b"\0", b"[[", b"{", b'"', b"1e999", b"*a", b"&a ", b"- ", b": "])
    return bytes(changed)


def mutated(name: str, content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return with_other_bytes(content, rng)
    if name.endswith(".yaml"):
        return yaml.safe_dump(with_other_value(yaml.safe_load(content), rng), sort_keys=False).encode()
    if name.endswith(".json"):
        return json.dumps(with_other_value(json.loads(content), rng)).encode()
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(with_other_value(json.loads(lines[number]), rng)).encode()
    return b"\n".join(lines) + b"\n"


def refusals(bench: Path) -> list[str]:
    """What the commands say of what is in the folder; nothing where they take it."""
    said = []
    for command in (lambda: run_benchmark(bench / "experiment.yaml", bench, dry_run=True), lambda: write_report(bench)):
        try:
            command()
        except HsslError as error:
            said.append(str(error))
    return said


def mutate(bench: Path, seeds: range) -> int:
    before = {name: (bench / name).read_bytes() for name in FILES}
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(FILES)
        (bench / name).write_bytes(mutated(name, before[name], rng))
        try:
            said = refusals(bench)
        except Exception as error:
            error.add_note(f"{name}, seed {seed}")
            raise
        assert not any("\n" in line for line in said), (name, seed)
        refused += bool(said)
        (bench / name).write_bytes(before[name])
    return refused


def test_a_damaged_file_is_one_line(bench: Path) -> None:
    assert refusals(bench) == []
    assert mutate(bench, range(8)) >= 4


@pytest.mark.slow
def test_many_damaged_files_are_one_line_each(bench: Path) -> None:
    assert mutate(bench, range(1000, 1400)) > 200


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("experiment.json", lambda text: text.replace('"arm":"joint"', '"arm":"other"', 1), "a cell has arm 'other'"),
        ("experiment.json", lambda text: text[:-9], "experiment.json: is damaged"),
        ("ledger.jsonl", lambda text: text.replace('"dice": 0.5', '"dice": 5', 1), "ledger.jsonl: line 1 is damaged"),
        ("pretraining.jsonl", lambda text: text.replace("[0, 1, 0.1, 2]", "[0, 0, 0.1, 2]"), "is not a tree of"),
    ],
)
def test_what_is_damaged_is_named(name: str, change: Callable[[str], str], message: str, bench: Path) -> None:
    before = (bench / name).read_text()
    (bench / name).write_text(change(before.replace('"arm": "', '"arm":"') if name == "experiment.json" else before))
    with pytest.raises(HsslError, match=message):
        write_report(bench)


def test_pretrainings_that_go_on_from_each_other_have_an_end(bench: Path) -> None:
    lines = [json.loads(line) for line in (bench / "pretraining.jsonl").read_text().splitlines()]
    for line in lines:
        line["init_hash"] = lines[0]["config_hash"]
    (bench / "pretraining.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(HsslError, match=r"pretraining.jsonl: pre-training \w+ goes on from itself"):
        write_report(bench)


def test_a_damaged_outcome_names_its_run(bench: Path, store: Store) -> None:
    cell = expand(Experiment.checked(options(store)), store).cells[0]
    lines = (bench / "ledger.jsonl").read_text().splitlines(keepends=True)
    (bench / "ledger.jsonl").write_text("".join(line for line in lines if cell.hash not in line))
    outcome = bench / "runs" / cell.hash / "outcome.json"
    outcome.parent.mkdir()
    outcome.write_text('{"dice": 0.5')
    with pytest.raises(HsslError, match=r"outcome.json: is damaged: .*remove the folder of this run"):
        run_benchmark(bench / "experiment.yaml", bench)
