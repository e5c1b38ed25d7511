"""What README.md and docs/results.md say is what the committed ledgers say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hssl.benchmark import BenchmarkPlan
from hssl.benchmark.claims import check_claims, find_roles, signed
from hssl.benchmark.ledger import Ledger
from hssl.benchmark.statistics import compare, summarise
from hssl.benchmark.tables import METRICS, Table, claim_table, difference_table, score_table, variant_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PLANS = sorted(RESULTS.glob("*.yaml"))
ARMS = ("scratch", "single", "joint")
NAMES = {
    "heart (ACDC)": "Task03_Cardiac",
    "left atrium": "Task02_LeftAtrium",
    "abdomen": "Task04_Abdomen",
    "heart (bSSFP)": "Task09_CardiacSSFP",
    "brain tissue": "Task08_BrainTissue",
    "vertebrae": "Task07_Vertebrae",
    "hippocampus": "Task01_Hippocampus",
    "brain tumour": "Task06_BrainTumour",
    "lung and infection": "Task05_Lung",
}
PAIRS = [("joint", "scratch"), ("single", "scratch"), ("joint", "single")]


@pytest.fixture(scope="module")
def nine() -> list[dict[str, Any]]:
    return Ledger(RESULTS / "nine-tasks" / "ledger.jsonl").rows()


def shared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the tasks and seeds that all three arms have run."""
    run = {(row["arm"], row["task"], row["seed"]) for row in rows}
    return [row for row in rows if all((arm, row["task"], row["seed"]) in run for arm in ARMS)]


def body(table: Table) -> str:
    """A table in Markdown without its heading."""
    return table.markdown().partition("\n")[2].strip()


def label(line: str) -> str:
    """The task that a line of a table is of."""
    text = line.strip("|").split("|")[0].strip()
    return NAMES.get(text, text.split(" (")[0])


def numbers(line: str) -> list[str]:
    """The cells of a line of a table that are numbers, without their emphasis."""
    cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
    return [cell for cell in cells if re.fullmatch(r"[+−]?\d+\.\d", cell)]


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_a_published_plan_is_a_plan(path: Path) -> None:
    assert BenchmarkPlan.load(path).arms


def test_tables_of_nine_tasks_come_from_the_ledger(nine: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    own = ("scratch", "joint")
    assert body(score_table([row for row in nine if row["arm"] in own], own, "5%")) in page
    for metric in METRICS:
        assert body(score_table(shared(nine), ARMS, "5%", metric)) in page
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
    shown = {label(line): numbers(line) for line in lines[start : start + length]}
    means = {(each.task, each.arm): 100 * (each.mean or 0) for each in summarise(nine)}
    gains = {(each.task, arm): 100 * each.mean for arm in ARMS[1:] for each in compare(nine, arm, "scratch", "5%")}
    tasks = {task for task, _ in gains}
    for task, cells in shown.items():
        over = sorted(tasks) if task == "mean" else [task]
        expected = [f"{fmean(means[each, arm] for each in over):.1f}" for arm in ("scratch", "joint")]
        expected += [signed(fmean(gains[each, arm] for each in over), 1) for arm in ("joint", "single")]
        assert cells == expected, task
    assert shown.keys() - {"mean"} == tasks


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
    hd95 = {arm: fmean(each.mean or 0 for each in summarise(shared(nine), "hd95") if each.arm == arm) for arm in ARMS}
    assert f"HD95 falls from {hd95['scratch']:.1f} mm to {hd95['joint']:.1f} (joint) and {hd95['single']:.1f}" in page
    (heart,) = (each for each in compare(nine, "joint", "scratch", "5%") if each.task == "Task03_Cardiac")
    assert f"only the gain on Task03 is significant (p {heart.p_holm:.3f})" in page
    (lost,) = (each for each in compare(nine, "joint", "single", "5%") if each.task == "Task03_Cardiac")
    assert f"significantly lower ({signed(100 * lost.mean)}, p {lost.p_holm:.3f})" in page


def test_ten_percent_against_all_comes_from_the_ledger() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = {(row["arm"], row["task"]): row for row in Ledger(RESULTS / "ten-percent" / "ledger.jsonl").rows()}
    tasks = sorted(task for arm, task in rows if arm == "joint")
    shares = []
    for task in tasks:
        ten, all_ = rows["joint", task], rows["scratch", task]
        shares.append(100 * ten["dice"] / all_["dice"])
        share = f"**{shares[-1]:.1f}**" if shares[-1] >= 95 else f"{shares[-1]:.1f}"
        subjects = f"{len(ten['labelled'])} of {len(all_['labelled'])}"
        assert f"| {task} | {subjects} | {100 * ten['dice']:.1f} | {100 * all_['dice']:.1f} | {share} |" in page
    means = [fmean(100 * rows[arm, task]["dice"] for task in tasks) for arm in ("joint", "scratch")]
    assert f"| mean of {len(tasks)} | | {means[0]:.1f} | {means[1]:.1f} | {fmean(shares):.1f} |" in page


def test_rivals_come_from_the_ledger() -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results.md", "README.md"))
    plan = BenchmarkPlan.load(RESULTS / "rivals.yaml")
    rows = Ledger(RESULTS / "rivals" / "ledger.jsonl").rows()
    complete = {arm for arm in plan.arms if sum(row["arm"] == arm for row in rows) == 4}
    start = page.index("## Beside other objectives")
    section = page[start : page.index("\n## ", start + 1)]
    (shown,) = re.findall(r"\| task \| scratch \| (joint \|.*) \|\n", section)
    arms = [name.strip() for name in shown.split("|")]
    assert {"scratch", *arms} == {arm for arm in complete if not arm.endswith("-rehearsing")}
    main = [row for row in rows if row["arm"] in ("scratch", *arms)]
    assert body(score_table(main, ("scratch", *arms), "5%")) in section
    assert body(variant_table(main, arms, "joint", "scratch", "5%")) in section
    assert body(difference_table(main, [("joint", other) for other in ("scratch", *arms[1:])], "5%")) in section
    others = ("joint", "global-local", "masked")
    rehearsing = [arm for name in others for arm in (name, f"{name}-rehearsing")]
    assert body(score_table([row for row in rows if row["arm"] in rehearsing], rehearsing, "5%")) in section
    gains = {arm: fmean(100 * each.mean for each in compare(main, arm, "scratch", "5%")) for arm in arms}
    told = [f"{arm} {signed(gains[arm], 1)}" for arm in sorted(arms[1:], key=lambda arm: -gains[arm])]
    text = f"{signed(gains['joint'], 1)} points over scratch, {', '.join(told)}"
    assert text in readme
    assert text in page


def test_the_ablation_comes_from_the_ledger() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    plan = BenchmarkPlan.load(RESULTS / "ablation.yaml")
    rows = Ledger(RESULTS / "ablation" / "ledger.jsonl").rows()
    start = page.index("## The levels, one by one")
    section = page[start : page.index("\n## ", start + 1)]
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)]
    gains: dict[tuple[int, str], float] = {}
    for seed, (heading, _, *lines) in zip(plan.seeds, tables, strict=True):
        tasks = re.findall(r"Task\w+", heading)
        assert sorted(tasks) == sorted(plan.tasks or ())
        dice = {(row["arm"], row["task"]): 100 * row["dice"] for row in rows if row["seed"] == seed}
        arms = [line.split("|")[1].strip() for line in lines]
        assert arms == [arm for arm in plan.arms if all((arm, task) in dice for task in tasks)]
        for arm, line in zip(arms, lines, strict=True):
            organs, all_four = (fmean(dice[arm, t] - dice["scratch", t] for t in part) for part in (tasks[:3], tasks))
            *scores, last = (f"{dice[arm, task]:.1f}" for task in tasks)
            differences = [] if arm == "scratch" else [signed(organs, 1), signed(all_four, 1)]
            assert numbers(line) == [*scores, *differences[:1], last, *differences[1:]]
            gains[seed, arm] = organs
    # The text's findings: what leaving out one level leaves, and what one alone gives.
    first = {arm: gain for (seed, arm), gain in gains.items() if seed == 0}
    for start, text in (("no-", "leaving out one level leaves {} to {}"), ("only-", "Alone, levels give {} to {}**")):
        found = [gain for arm, gain in first.items() if arm.startswith(start) and arm != "no-group-no-task"]
        assert len(found) == 7
        assert text.format(signed(min(found), 1), signed(max(found), 1)) in section
    for arm, gain in first.items():
        if level := arm.removeprefix("only-") if arm.startswith("only-") else "":
            assert f"{level} {signed(gain, 1)}" in section
    second = [signed(gains[1, arm], 1) for arm in ("joint", "only-tissue", "only-task")]
    assert "the tissue level and the task level alone give {}, {} and {}".format(*second) in section
