"""What README.md and docs/results.md say is what the committed ledgers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hssl.benchmark import BenchmarkPlan
from hssl.benchmark.claims import check_claims, find_roles
from hssl.benchmark.ledger import Ledger
from hssl.benchmark.statistics import compare, summarise
from hssl.benchmark.tables import METRICS, Table, claim_table, difference_table, score_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PLANS = sorted(RESULTS.glob("*.yaml"))
ARMS = ("scratch", "single", "joint")
PAIRS = [("joint", "scratch"), ("single", "scratch"), ("joint", "single")]


@pytest.fixture(scope="module")
def nine() -> list[dict[str, Any]]:
    return Ledger(RESULTS / "nine-tasks" / "ledger.jsonl").rows()


def body(table: Table) -> str:
    """A table in Markdown without its heading."""
    return table.markdown().partition("\n")[2].strip()


def numbers(line: str) -> list[str]:
    """The cells of a line of a table that are numbers, without their emphasis."""
    cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
    return [cell for cell in cells if re.fullmatch(r"[+−]?\d+\.\d", cell)]


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_a_published_plan_is_a_plan(path: Path) -> None:
    assert BenchmarkPlan.load(path).arms


def test_tables_of_nine_tasks_come_from_the_ledger(nine: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for metric in METRICS:
        assert body(score_table(nine, ARMS, "5%", metric)) in page
    assert body(difference_table(nine, PAIRS, "5%")) in page
    ten = RESULTS / "ten-percent" / "ledger.jsonl"
    roles = find_roles(BenchmarkPlan.load(RESULTS / "nine-tasks.yaml"))
    for claim in check_claims([*nine, *(Ledger(ten).rows())], roles):
        assert body(claim_table([claim])).splitlines()[-1] in page


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_first_table_of_a_page_comes_from_the_ledger(nine: list[dict[str, Any]], name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(r"\| [\w ]*\| scratch \|", line)) + 2
    length = next(number for number, line in enumerate(lines[start:]) if not line.startswith("|"))
    shown = sorted(numbers(line)[:3] for line in lines[start : start + length] if "mean" not in line)
    means = {(each.task, each.arm): each.mean for each in summarise(nine)}
    tasks = {task for task, _ in means}
    assert shown == sorted([f"{100 * (means[task, arm] or 0):.1f}" for arm in ARMS] for task in tasks)
    gains = [line for line in lines[start : start + length] if len(numbers(line)) == 4]
    if gains:
        found = sorted(f"{100 * each.mean:+.1f}".replace("-", "−") for each in compare(nine, "joint", "scratch", "5%"))
        assert sorted(numbers(line)[3] for line in gains if "mean" not in line) == found
