"""What README.md and the pages of results say is what the committed ledgers say: tables, and figures in the text."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hssl.benchmark import Experiment
from hssl.benchmark.run.ledger import Ledger
from hssl.benchmark.statistics import compare

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
PUBLISHED = sorted(EXPERIMENTS.glob("*.yaml"))
TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
SIGNED = re.compile(r"(?<![\w.])[+−]\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "tables.py"))


@pytest.fixture(scope="module")
def pages(tool: dict[str, Any]) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in tool["PAGES"]}


def rounded(signed: str) -> str:
    """A figure as it is in a text, with one digit behind the point."""
    value = float(signed.replace("−", "-"))
    return f"{value:+.1f}".replace("-", "−")


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_a_published_experiment_can_be_run(path: Path) -> None:
    assert Experiment.load(path).arms


def test_the_tables_come_from_the_ledgers(tool: dict[str, Any], pages: dict[str, str]) -> None:
    on_pages = [name for page in pages.values() for name, _ in TABLE.findall(page)]
    assert sorted(on_pages) == sorted(tool["TABLES"])
    for page in pages.values():
        assert tool["fill"](page) == page, "run: make tables"


def test_a_changed_table_is_put_right(tool: dict[str, Any]) -> None:
    page = "Before.\n\n<!-- table: seeds -->\n\n| old |\n\n<!-- end -->\n\nAfter.\n"
    made = tool["fill"](page)
    assert made.startswith("Before.\n\n<!-- table: seeds -->\n\n| mean of 9 tasks |")
    assert made.endswith("|\n\n<!-- end -->\n\nAfter.\n")
    assert "old" not in made


@pytest.mark.parametrize("name", ["README.md", "results.md"])
def test_differences_in_the_text_are_those_of_the_tables(pages: dict[str, str], name: str) -> None:
    """Each signed figure of the text is in a generated table, if need be rounded; hand-made ones are elsewhere."""
    tables = " ".join(table for page in pages.values() for _, table in TABLE.findall(page))
    known = {rounded(figure) for figure in SIGNED.findall(tables)}
    text = SIGNED.findall(TABLE.sub("", pages[name]))
    assert len(text) >= 3
    assert not {figure for figure in text if rounded(figure) not in known}


def test_means_in_the_readme_are_those_of_the_ledgers(pages: dict[str, str]) -> None:
    nine, ten = (Ledger(EXPERIMENTS / name / "ledger.jsonl").rows() for name in ("nine-tasks", "ten-percent"))
    by_task = {
        arm: fmean(100 * each.mean for each in compare(nine, arm, "scratch", "5%")) for arm in ("joint", "single")
    }
    assert {f"+{by_task['joint']:.1f}", f"+{by_task['single']:.1f}"} <= set(SIGNED.findall(pages["README.md"]))
    everything = fmean(100 * row["dice"] for row in ten if row["arm"] == "scratch")
    tasks = {row["task"] for row in nine}
    joint = fmean(
        fmean(100 * row["dice"] for row in nine if (row["task"], row["arm"]) == (task, "joint")) for task in tasks
    )
    assert f"{everything:.1f} %" in pages["README.md"]
    assert f"{joint:.1f} %" in pages["README.md"]


def test_what_is_called_significant_is() -> None:
    nine = Ledger(EXPERIMENTS / "nine-tasks" / "ledger.jsonl").rows()
    found = [each.task for each in compare(nine, "joint", "scratch", "5%") if (each.p_holm or 1) < 0.05]
    assert found == ["Task03_Cardiac"]
    assert min(each.p_holm or 1 for each in compare(nine, "joint", "single", "5%")) > 0.05
    jigsaw = Ledger(EXPERIMENTS / "jigsaw" / "ledger.jsonl").rows()
    assert min(each.p_holm or 1 for each in compare(jigsaw, "joint", "jigsaw", "5%")) > 0.05
    dice = {(row["arm"], row["task"]): row["dice"] for row in jigsaw if row["seed"] == 1}
    assert all(dice["joint", task] > dice["jigsaw", task] for arm, task in dice if arm == "joint")
    five = Ledger(EXPERIMENTS / "five-tasks" / "ledger.jsonl").rows()
    controls = compare(five, "joint", "scratch-pretext", "5%")
    assert (len(controls), min(each.mean for each in controls) > 0) == (5, True)
    assert min(each.p_holm or 1 for each in controls) > 0.05
