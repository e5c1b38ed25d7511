"""Writes the tables of README.md, docs/results.md and docs/experiments.md, and the picture of gains, from the ledgers.

    python tools/tables.py          # or: make tables, after a ledger has grown
    python tools/tables.py --check  # only says what would change, and exits with 1 then

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``; those that no page names are not made. Figures in the
text are checked against the ledgers by tests/benchmark/test_published.py.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from hssl.benchmark import Experiment
from hssl.benchmark.report.claims import check_claims, claim_table
from hssl.benchmark.report.figures import MAIN_COLOURS, OTHER_COLOURS, gain_bars
from hssl.benchmark.report.roles import find_roles
from hssl.benchmark.report.tables import (
    METRICS,
    Table,
    TableCell,
    difference_table,
    interval,
    score_table,
    variant_table,
)
from hssl.benchmark.run.ledger import Ledger, Row
from hssl.benchmark.statistics import Difference, compare, summarise
from hssl.text import signed

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "experiments.md")
PICTURE = ROOT / "docs" / "images" / "gains.svg"

SHARE = "5%"
ARMS = ("scratch", "single", "joint")
PAIRS = (("joint", "scratch"), ("single", "scratch"), ("joint", "single"))
PLAIN = {
    "Task01_Hippocampus": "hippocampus",
    "Task02_LeftAtrium": "left atrium",
    "Task03_Cardiac": "heart (ACDC)",
    "Task04_Abdomen": "abdomen",
    "Task05_Lung": "lung and infection",
    "Task06_BrainTumour": "brain tumour",
    "Task07_Vertebrae": "vertebrae",
    "Task08_BrainTissue": "brain tissue",
    "Task09_CardiacSSFP": "heart (bSSFP)",
}
"""The tasks in words."""
LESION = "Task06_BrainTumour"
"""Of the four tasks of baselines and ablation the one without organs."""


@cache
def ledger(name: str) -> list[Row]:
    """The rows of experiments/NAME/ledger.jsonl."""
    return Ledger(EXPERIMENTS / name / "ledger.jsonl").rows()


def body(table: Table) -> str:
    """A table in Markdown without its heading."""
    return table.markdown().partition("\n")[2].strip()


def nine_rows() -> tuple[list[Row], dict[tuple[str, str], float], dict[tuple[str, str], Difference], list[str]]:
    """The ledger of nine tasks, mean Dice (%) and difference from scratch of each task and arm, and the tasks, the
    largest gain of joint first.
    """
    rows = ledger("nine-tasks")
    dice = {(each.task, each.arm): 100 * (each.mean or 0.0) for each in summarise(rows)}
    gain = {(each.task, arm): each for arm in ARMS[1:] for each in compare(rows, arm, "scratch", SHARE)}
    return rows, dice, gain, sorted(PLAIN, key=lambda task: -gain[task, "joint"].mean)


def labelled(rows: Sequence[Row], task: str) -> str:
    """Labelled subjects of those that could be, such as ``1 of 29``."""
    some = next(row for row in rows if row["task"] == task)
    full = next(row for row in ledger("ten-percent") if (row["task"], row["arm"]) == (task, "scratch"))
    return f"{len(some['labelled'])} of {len(full['labelled'])}"


def gains() -> str:
    """Dice (%) of each arm on nine tasks, differences from scratch, and what all labels give."""
    rows, dice, gain, tasks = nine_rows()
    full = {row["task"]: 100 * row["dice"] for row in ledger("ten-percent") if row["arm"] == "scratch"}

    def line(title: str, subjects: str, over: Sequence[str], known: str) -> list[TableCell]:
        scores = [f"{fmean(dice[task, arm] for task in over):.1f}" for arm in ARMS]
        best = max(scores, key=float)
        more = [signed(fmean(100 * gain[task, arm].mean for task in over), 1) for arm in ARMS[1:]]
        all_labels = f"{fmean(full[task] for task in over):.1f}"
        cells = (TableCell(score, score == best) for score in scores)
        return [TableCell(title), TableCell(subjects), *cells, *map(TableCell, (more[0], more[1] + known, all_labels))]

    lines = [
        line(f"{task[:6]} {PLAIN[task]}", labelled(rows, task), [task], f" ({interval(gain[task, 'joint'], 1)})")
        for task in tasks
    ]
    header = ["task", "labelled", *ARMS, "single − scratch", "joint − scratch", "all labels"]
    return body(Table("", header, [*lines, line("mean", "", tasks, "")]))


def seeds() -> str:
    """Mean gain over the nine tasks of each seed, and on how many it is above 0."""
    dice = {(row["arm"], row["task"], row["seed"]): 100 * row["dice"] for row in ledger("nine-tasks")}
    lines = []
    for seed in sorted({seed for _, _, seed in dice}):
        cells = [TableCell(f"seed {seed}")]
        for arm in ("joint", "single"):
            found = [dice[arm, task, seed] - dice["scratch", task, seed] for task in PLAIN]
            cells.append(TableCell(f"{signed(fmean(found), 1)} ({sum(gain > 0 for gain in found)} of {len(found)})"))
        lines.append(cells)
    return body(Table("", ["mean of 9 tasks", "joint − scratch", "single − scratch"], lines))


def nine_tasks(metric: str) -> str:
    """Each arm on each of nine tasks."""
    return body(score_table(ledger("nine-tasks"), ARMS, SHARE, metric))


def claims() -> str:
    """The claims of the abstract, of nine tasks with 5 % and with 10 % of the labels."""
    roles = find_roles(Experiment.load(EXPERIMENTS / "nine-tasks.yaml"))
    return body(claim_table(check_claims([*ledger("nine-tasks"), *ledger("ten-percent")], roles)))


def ten_percent() -> str:
    """Joint with 10 % of the labels beside scratch with all of them."""
    rows = {(row["arm"], row["task"]): row for row in ledger("ten-percent")}
    tasks = sorted(task for arm, task in rows if arm == "joint")
    lines, shares = [], []
    for task in tasks:
        few, full = rows["joint", task], rows["scratch", task]
        shares.append(100 * few["dice"] / full["dice"])
        subjects = f"{len(few['labelled'])} of {len(full['labelled'])}"
        scores = (f"{100 * each['dice']:.1f}" for each in (few, full))
        lines.append(
            [
                TableCell(task),
                TableCell(subjects),
                *map(TableCell, scores),
                TableCell(f"{shares[-1]:.1f}", shares[-1] >= 95),
            ]
        )
    means = (f"{fmean(100 * rows[arm, task]['dice'] for task in tasks):.1f}" for arm in ("joint", "scratch"))
    lines.append(
        [TableCell(f"mean of {len(tasks)}"), TableCell(""), *map(TableCell, means), TableCell(f"{fmean(shares):.1f}")]
    )
    header = ["task", "labelled subjects, 10 % of", "joint, 10 %", "scratch, 100 %", "share (%)"]
    return body(Table("", header, lines))


def baseline_rows() -> tuple[list[Row], list[str]]:
    """The rows of arms without pretext losses in fine-tuning that have every task; joint, then the others by Dice."""
    experiment, rows = Experiment.load(EXPERIMENTS / "baselines.yaml"), ledger("baselines")
    whole = [arm for arm in experiment.arms if sum(row["arm"] == arm for row in rows) == len(experiment.tasks or ())]
    others = [arm for arm in whole if arm not in ("scratch", "joint") and not arm.endswith("-pretext")]
    others.sort(key=lambda arm: -fmean(row["dice"] for row in rows if row["arm"] == arm))
    return [row for row in rows if row["arm"] in ("scratch", "joint", *others)], ["joint", *others]


def baselines() -> str:
    """Dice of each baseline on each task."""
    rows, arms = baseline_rows()
    return body(score_table(rows, ("scratch", *arms), SHARE))


def baselines_ranks() -> str:
    """Each baseline beside joint and scratch, over all tasks."""
    rows, arms = baseline_rows()
    return body(variant_table(rows, arms, "joint", "scratch", SHARE))


def baselines_pretext() -> str:
    """Baselines with and without the pretext losses in fine-tuning, side by side."""
    arms = [arm for name in ("joint", "global-local", "masked") for arm in (name, f"{name}-pretext")]
    return body(score_table([row for row in ledger("baselines") if row["arm"] in arms], arms, SHARE))


def second_subject() -> str:
    """Jigsaw beside HSSL with each of two labelled subjects: Dice (%), and the mean difference from scratch."""
    experiment = Experiment.load(EXPERIMENTS / "jigsaw.yaml")
    dice = {(row["arm"], row["task"], row["seed"]): 100 * row["dice"] for row in ledger("jigsaw")}
    arms, tasks = list(experiment.arms), list(experiment.tasks or ())

    def gain(arm: str, seed: int) -> float:
        return fmean(dice[arm, task, seed] - dice["scratch", task, seed] for task in tasks)

    lines = [
        [
            TableCell(task),
            *(TableCell(", ".join(f"{dice[arm, task, seed]:.1f}" for seed in experiment.seeds)) for arm in arms),
        ]
        for task in tasks
    ]
    means = (", ".join(signed(gain(arm, seed), 1) for seed in experiment.seeds) for arm in arms if arm != "scratch")
    lines.append([TableCell("mean − scratch"), TableCell(""), *map(TableCell, means)])
    return body(Table("", ["task", *arms], lines))


def ablation(seed: int) -> str:
    """The arms that have every task, with mean differences from scratch over organs and over all."""
    experiment = Experiment.load(EXPERIMENTS / "ablation.yaml")
    dice = {(row["arm"], row["task"]): 100 * row["dice"] for row in ledger("ablation") if row["seed"] == seed}
    tasks = list(experiment.tasks or ())
    organs = [task for task in tasks if task != LESION]

    def score(arm: str, task: str) -> TableCell:
        return TableCell(f"{dice[arm, task]:.1f}")

    def gain(arm: str, over: Sequence[str]) -> TableCell:
        differences = [dice[arm, task] - dice["scratch", task] for task in over]
        return TableCell("" if arm == "scratch" else signed(fmean(differences), 1))

    lines = [
        [
            TableCell(arm),
            *(score(arm, task) for task in organs),
            gain(arm, organs),
            score(arm, LESION),
            gain(arm, tasks),
        ]
        for arm in experiment.arms
        if all((arm, task) in dice for task in tasks)
    ]
    return body(Table("", ["arm", *organs, "three organs − scratch", LESION, "all four − scratch"], lines))


def controls() -> str:
    """What the pretext losses alone and twice the steps give, and what pre-training gives beside them."""
    rows = ledger("five-tasks")
    names = {"scratch-pretext": "scratch with pretext losses", "scratch-long": "scratch, 2,000 steps"}
    pairs = [
        ("scratch-pretext", "scratch"),
        ("joint", "scratch-pretext"),
        ("single", "scratch-pretext"),
        ("scratch-long", "scratch"),
        ("joint", "scratch-long"),
    ]
    found = {pair: {each.task: each for each in compare(rows, *pair, SHARE)} for pair in pairs}

    def cell(pair: tuple[str, str], task: str) -> TableCell:
        each = found[pair].get(task)
        if each is None:
            return TableCell("–")
        return TableCell(f"{signed(100 * each.mean, 1)} ({interval(each, 1)})" + ", one seed" * (each.seeds == 1))

    lines = [[TableCell(task), *(cell(pair, task) for pair in pairs)] for task in found[pairs[0]]]
    header = [" − ".join(names.get(arm, arm) for arm in pair) for pair in pairs]
    return body(Table("", ["task", *header], lines))


def validation(name: str, arms: Sequence[str], reference: str | None = None) -> str:
    """Dice (%) of an experiment on validation subjects, a figure for each seed; "–" was not run.

    Args:
        name: The experiment.
        arms: A column for each.
        reference: Adds the difference of the last arm from this one.
    """
    experiment = Experiment.load(EXPERIMENTS / f"{name}.yaml")
    dice = {(row["arm"], row["task"], row["seed"]): 100 * row["dice"] for row in ledger(name)}

    def seeds_of(arm: str, task: str, minus: str | None = None) -> TableCell:
        texts = []
        for seed in experiment.seeds:
            value, other = dice.get((arm, task, seed)), dice.get((minus or arm, task, seed))
            if value is None or other is None:
                texts.append("–")
            else:
                texts.append(f"{value:.1f}" if minus is None else signed(value - other, 1))
        return TableCell(", ".join(texts))

    lines = []
    for task in experiment.tasks or ():
        line = [TableCell(task), *(seeds_of(arm, task) for arm in arms)]
        lines.append([*line, seeds_of(arms[-1], task, reference)] if reference is not None else line)
    more = [f"{arms[-1]} − {reference}"] if reference is not None else []
    return body(Table("", ["task", *arms, *more], lines))


TABLES: dict[str, Callable[[], str]] = {
    "gains": gains,
    "seeds": seeds,
    "claims": claims,
    **{metric: partial(nine_tasks, metric) for metric in METRICS},
    "differences": lambda: body(difference_table(ledger("nine-tasks"), PAIRS, SHARE)),
    "ten-percent": ten_percent,
    "baselines": baselines,
    "baselines-ranks": baselines_ranks,
    "baselines-pretext": baselines_pretext,
    "jigsaw": second_subject,
    "ablation": partial(ablation, 0),
    "ablation-second": partial(ablation, 1),
    "controls": controls,
    "adapted": lambda: body(difference_table(ledger("five-tasks"), [("adapted", "joint")], SHARE)),
    "pretext": partial(validation, "pretext", ("scratch", "joint"), "scratch"),
    "self-training": partial(validation, "self-training", ("scratch", "self-training"), "scratch"),
    "length": partial(validation, "length", ("scratch-1000", "scratch-2000", "scratch-4000")),
}
"""What fills each place."""


def fill(page: str) -> str:
    """`page` with its tables made anew.

    Raises:
        ValueError: It names a table that there is not.
    """

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"no table '{match[1]}'; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def picture() -> bytes:
    """The bars of differences on nine tasks, as SVG."""
    rows, _, _, tasks = nine_rows()
    groups = {
        f"{arm} − {reference}": sorted(compare(rows, arm, reference, SHARE), key=lambda each: tasks.index(each.task))
        for arm, reference in PAIRS
    }
    colours = dict(zip(groups, (MAIN_COLOURS[2], MAIN_COLOURS[1], OTHER_COLOURS[0]), strict=True))
    return base64.b64decode(
        gain_bars(groups, colours, "difference in Dice points, 5 % of the labels").partition("base64,")[2]
    )


def main() -> int:
    """Writes what has changed, or with ``--check`` only says so."""
    check, changed = "--check" in sys.argv[1:], False
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        try:
            after = fill(before)
        except ValueError as error:
            sys.exit(f"{path.relative_to(ROOT)}: {error}")
        if after != before:
            changed = True
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    if not check:
        PICTURE.write_bytes(picture())
    return int(check and changed)


if __name__ == "__main__":
    sys.exit(main())
