"""What README.md and docs/results.md say is what the committed ledgers say."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hssl.benchmark import Experiment
from hssl.benchmark.run.ledger import Ledger
from hssl.benchmark.statistics import compare, summarise
from hssl.text import signed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PLANS = sorted(RESULTS.glob("*.yaml"))
ARMS = ("scratch", "single", "joint")


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "tables.py"))


@pytest.fixture(scope="module")
def nine() -> list[dict[str, Any]]:
    return Ledger(RESULTS / "nine-tasks" / "ledger.jsonl").rows()


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_a_published_plan_is_a_plan(path: Path) -> None:
    assert Experiment.load(path).arms


def test_the_tables_come_from_the_ledgers(tool: dict[str, Any]) -> None:
    fill: Callable[[str], str] = tool["fill"]
    marker = re.compile(r"<!-- table: ([\w-]+) -->")
    pages = [path.read_text(encoding="utf-8") for path in tool["PAGES"]]
    assert sorted(name for page in pages for name in marker.findall(page)) == sorted(tool["tables"]())
    for page in pages:
        assert fill(page) == page, "run: make tables"


def test_a_changed_table_is_put_right(tool: dict[str, Any]) -> None:
    page = "Before.\n\n<!-- table: ten-percent -->\n\n| old |\n\n<!-- end -->\n\nAfter.\n"
    made = tool["fill"](page)
    assert made.startswith("Before.\n\n<!-- table: ten-percent -->\n\n| task |")
    assert made.endswith("|\n\n<!-- end -->\n\nAfter.\n")
    assert "old" not in made


def test_figures_in_the_text_come_from_the_ledger(nine: list[dict[str, Any]]) -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results.md", "README.md"))
    mean = {arm: fmean(100 * each.mean for each in compare(nine, arm, "scratch", "5%")) for arm in ("single", "joint")}
    assert f"{mean['single']:.1f} points on the task alone and {mean['joint']:.1f} on nine tasks together" in readme
    lung = {
        (arm, name): fmean(
            fmean(100 * score["dice"] for score in row["scores"] if score["name"] == name)
            for row in nine
            if (row["task"], row["arm"]) == ("Task05_Lung", arm)
        )
        for arm in ARMS
        for name in ("infection", "lung")
    }
    part = "the infection goes from {:.1f} to {:.1f}, the lung from {:.1f} to {:.1f}"
    order = [("scratch", "infection"), ("joint", "infection"), ("scratch", "lung"), ("joint", "lung")]
    assert part.format(*(lung[each] for each in order)) in page
    hd95 = {arm: fmean(each.mean or 0 for each in summarise(nine, "hd95") if each.arm == arm) for arm in ARMS}
    assert f"HD95 falls from {hd95['scratch']:.1f} mm to {hd95['joint']:.1f} (joint) and {hd95['single']:.1f}" in page
    (heart,) = (each for each in compare(nine, "joint", "scratch", "5%") if each.task == "Task03_Cardiac")
    assert f"only the gain on Task03 is significant (p {heart.p_holm:.3f})" in page
    assert min(each.p_holm or 1 for each in compare(nine, "joint", "single", "5%")) > 0.05
    assert "no difference is significant" in page
    assert f"adds {mean['joint']:.1f} Dice points on average" in page
    assert f"adds {mean['joint']:.1f} Dice points on average" in readme
    means = {arm: fmean(each.mean or 0 for each in summarise(nine, "nsd") if each.arm == arm) for arm in ARMS}
    rise = "Surface Dice rises from {:.1f} % to {:.1f} % (joint) and {:.1f} % (single-domain)"
    assert rise.format(*(100 * means[arm] for arm in ("scratch", "joint", "single"))) in page
    less = fmean(100 * each.mean for each in compare(nine, "joint", "single", "5%"))
    assert f"higher on five tasks of nine, but {-less:.1f} points lower on average" in page
    full = [row["dice"] for row in Ledger(RESULTS / "ten-percent" / "ledger.jsonl").rows() if row["arm"] == "scratch"]
    assert f"the nine tasks have {100 * fmean(full):.1f} on average" in readme


def test_rivals_in_the_text_come_from_the_ledger(tool: dict[str, Any]) -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results.md", "README.md"))
    rows, (joint, *others) = tool["baselines"]()
    assert joint == "joint"
    gains = {arm: fmean(100 * each.mean for each in compare(rows, arm, "scratch", "5%")) for arm in (joint, *others)}
    told = [f"{arm} {signed(gains[arm], 1)}" for arm in sorted(others, key=lambda arm: -gains[arm])]
    text = f"{signed(gains[joint], 1)} points over scratch, {', '.join(told)}"
    assert text in readme
    assert text in page


def test_two_subjects_of_jigsaw_in_the_text_come_from_the_ledger() -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results.md", "README.md"))
    rows = Ledger(RESULTS / "jigsaw" / "ledger.jsonl").rows()
    dice = {(row["arm"], row["task"], row["seed"]): row["dice"] for row in rows}
    tasks = {task for _, task, _ in dice}
    assert all(dice["joint", task, 1] > dice["jigsaw", task, 1] for task in tasks)
    assert "With a second labelled subject HSSL is ahead of jigsaw on each task" in readme
    differences = compare(rows, "joint", "jigsaw", "5%")
    assert all(each.mean > 0 for each in differences)
    assert min(each.p_holm or 1 for each in differences) > 0.05
    over = [signed(fmean(100 * each.mean for each in compare(rows, arm, "scratch", "5%")), 1) for arm in ARMS[2:]]
    over += [signed(fmean(100 * each.mean for each in compare(rows, "jigsaw", "scratch", "5%")), 1)]
    assert "over both subjects by {} against {}, again on each".format(*over) in page


def test_the_ablation_in_the_text_comes_from_the_ledger() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    start = page.index("## The levels, one by one")
    section = page[start : page.index("\n## ", start + 1)]
    experiment = Experiment.load(RESULTS / "ablation.yaml")
    organs = [task for task in experiment.tasks or () if task != "Task06_BrainTumour"]
    dice: dict[tuple[int, str], dict[str, float]] = {}
    for row in Ledger(RESULTS / "ablation" / "ledger.jsonl").rows():
        dice.setdefault((row["seed"], row["arm"]), {})[row["task"]] = 100 * row["dice"]
    gains = {
        (seed, arm): fmean(found[task] - dice[seed, "scratch"][task] for task in organs)
        for (seed, arm), found in dice.items()
        if len(found) == len(experiment.tasks or ())
    }
    # What leaving out one level leaves, and what one alone gives.
    first = {arm: gain for (seed, arm), gain in gains.items() if seed == 0}
    for prefix, text in (("no-", "leaving out one level leaves {} to {}"), ("only-", "Alone, levels give {} to {}**")):
        several = [gain for arm, gain in first.items() if arm.startswith(prefix) and arm != "no-group-no-task"]
        assert len(several) == 7
        assert text.format(signed(min(several), 1), signed(max(several), 1)) in section
    for arm, gain in first.items():
        if level := arm.removeprefix("only-") if arm.startswith("only-") else "":
            assert f"{level} {signed(gain, 1)}" in section
    second = [signed(gains[1, arm], 1) for arm in ("joint", "only-tissue", "only-task")]
    assert "the tissue level and the task level alone give {}, {} and {}".format(*second) in section
