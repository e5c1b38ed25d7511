from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hssl.benchmark import write_report
from hssl.benchmark.tables import Cell, Table, score_table
from hssl.errors import RunError

TASKS = ("A", "B", "C")
ARMS = {
    "scratch": {"domains": "none"},
    "single": {"domains": "single"},
    "joint": {},
    "adapted": {"adapt": {"steps": 5}},
    "rival": {"pretrain": {"objective": "other"}},
    "no-image": {"pretrain": {"options": {"weights": {"image": 0}}}},
}


def make_bench(path: Path) -> Path:
    """A ledger without runs or store: joint is 10 points above scratch on every task, single 5."""
    rng = np.random.default_rng(0)
    gains = {"scratch": 0.0, "single": 0.05, "joint": 0.1, "adapted": 0.12, "rival": 0.02, "no-image": 0.08}
    rows, cells = [], []
    for labels, fraction in (("5%", 0.05), ("100%", 1.0)):
        for seed in (0, 1):
            for number, task in enumerate(TASKS):
                base = rng.uniform(0.4, 0.6, 4)
                for arm in ARMS:
                    dice = base + gains[arm]
                    hash_ = f"{arm}{labels}{seed}{number}"
                    place = {"arm": arm, "task": task, "labels": labels, "fraction": fraction, "seed": seed}
                    cells.append({**place, "hash": hash_})
                    rows.append({**place, "config_hash": hash_, **make_outcome(arm, dice)})
    # A line of an earlier plan, under the same names: it must not show.
    rows.append({**rows[0], "config_hash": "old", "dice": 0.0})
    plan = {"store": str(path / "nowhere"), "arms": ARMS, "fractions": ["5%", "100%"], "seeds": [0, 1]}
    tree = [[0, 1, 0.2, 2], [2, 3, 0.9, 3]]
    groups = {"groups": {"A": 0, "B": 0, "C": 1}, "silhouettes": {"2": 0.6}, "tree": tree}
    pretraining = {"config_hash": "joint", "tasks": TASKS, "steps": 9, "losses": {"loss": 1.0}, "seconds": 60.0}
    path.mkdir()
    (path / "plan.json").write_text(json.dumps({"plan": plan, "cells": cells}))
    (path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "pretraining.jsonl").write_text(json.dumps(pretraining | {"groups": groups}) + "\n")
    return path


def make_outcome(arm: str, dice: np.ndarray[Any, Any]) -> dict[str, Any]:
    scores = [
        {
            "case": f"c{i}",
            "subject": f"s{i}",
            "label": 1,
            "name": "organ",
            "dice": float(d),
            "hd95": 3.0,
            "nsd": float(d),
        }
        for i, d in enumerate(dice)
    ]
    mean = float(dice.mean())
    return {
        "pretrain_hash": None if arm == "scratch" else arm,
        "dice": mean,
        "hd95": 3.0,
        "nsd": mean,
        "labelled": ["s9"],
        "store_hash": "a" * 64,
        "split_hash": "b" * 64,
        "versions": {"hssl": "0"},
        "git": "<script>",
        "machine": "one",
        "seconds": 1.0,
        "scores": scores,
    }


def test_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    page = write_report(make_bench(tmp_path / "bench")).read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script>" not in page
    assert page.count("data:image/svg+xml") >= 3  # gains, curves, tree
    assert page.count('class="badge holds"') == 2
    assert page.count('class="badge does-not-hold"') == 1  # no gain above 18.60
    assert page.count('class="badge not-tested"') == 1  # 10 % was not run
    assert "72 of 72 runs" in page
    assert "Left out: the store or the masks of the runs are not here." in page
    tables = (tmp_path / "bench" / "tables.md").read_text(encoding="utf-8")
    assert "higher on 3 of 3 tasks, +10.00 to +10.00 points" in tables
    assert "| task | scratch | single | joint | adapted |" in tables
    assert "| A | adapted − joint | **+2.00** |" in tables
    assert "| −8.00 | 0 of 3 | +2.00 | 3 of 3 |" in tables
    assert "| −2.00 | 0 of 3 | +8.00 | 3 of 3 |" in tables


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no benchmark"):
        write_report(tmp_path)
    bench = make_bench(tmp_path / "bench")
    (bench / "ledger.jsonl").write_text("")
    with pytest.raises(RunError, match="none of its runs"):
        write_report(bench)


def test_unfinished_and_tuning_are_said(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    content = json.loads((bench / "plan.json").read_text())
    content["plan"]["evaluation"] = {"part": "val"}
    (bench / "plan.json").write_text(json.dumps(content))
    (bench / "ledger.jsonl").write_text("".join((bench / "ledger.jsonl").read_text().splitlines(keepends=True)[:7]))
    page = write_report(bench).read_text(encoding="utf-8")
    assert "figures for tuning, not a result" in page
    assert "65 runs are still to be made" in page


def test_markdown() -> None:
    table = Table("Scores", ["task", "a|b"], [[Cell("x"), Cell("1.0", best=True)]], "Mean.")
    assert table.markdown() == "## Scores\n\n| task | a\\|b |\n| :-- | --: |\n| x | **1.0** |\n\nMean.\n"


def test_score_table_marks_the_best_and_sums_up() -> None:
    rows = [
        {"task": task, "labels": "5%", "arm": arm, "seed": seed, "dice": dice + seed / 10, "hd95": 1.0}
        for task, arm, dice in (("A", "x", 0.2), ("A", "y", 0.3), ("B", "x", 0.5), ("B", "y", 0.1))
        for seed in (0, 1)
    ]
    table = score_table(rows, ("x", "y", "absent"), "5%")
    assert table.header == ["task", "x", "y"]
    assert table.rows[0] == [Cell("A"), Cell("25.0 ± 7.1"), Cell("35.0 ± 7.1", best=True)]
    assert table.rows[2] == [Cell("mean of 2 tasks"), Cell("40.0", best=True), Cell("25.0")]
    assert table.rows[3] == [Cell("mean rank"), Cell("1.50", best=True), Cell("1.50", best=True)]
    # While a seed is missing the task's figures stand unmarked, and its means are left out of those over tasks.
    table = score_table([*rows[:-1], *({**row, "task": "C"} for row in rows[:4])], ("x", "y"), "5%")
    assert table.rows[1] == [Cell("B"), Cell("55.0 ± 7.1"), Cell("10.0")]
    assert table.rows[3] == [
        Cell("mean of 2 tasks that all have, seed for seed"),
        Cell("25.0"),
        Cell("35.0", best=True),
    ]
