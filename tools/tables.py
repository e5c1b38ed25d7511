"""Writes the tables of README.md, docs/results.md and docs/experiments.md, and the picture of gains, from the ledgers.

    python tools/tables.py          # or: make tables, after a ledger has grown
    python tools/tables.py --check  # only says what would change, and exits with 1 then

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``; those that no page names are not made. Figures in the
text are checked against the ledgers by tests/benchmark/test_published.py.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student_t

from hssl.benchmark import Experiment
from hssl.benchmark.report.claims import check_claims, claim_table
from hssl.benchmark.report.figures import MAIN_COLOURS, OTHER_COLOURS, gain_bars
from hssl.benchmark.report.roles import find_roles
from hssl.benchmark.report.tables import (
    Table,
    TableCell,
    interval,
)
from hssl.benchmark.run.ledger import Ledger, Row
from hssl.benchmark.statistics import Difference, compare, summarise
from hssl.text import signed

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "experiments.md")
PICTURE = ROOT / "docs" / "images" / "gains.svg"

FINETUNED = "fine-tuned"
"""Unit of the lines of experiments/suggestion.jsonl that were fine-tuned."""
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
    """Dice (%) of each arm on nine tasks, joint's difference from scratch, and what more labels give."""
    rows, dice, gain, tasks = nine_rows()
    more = {(row["task"], row["arm"]): 100 * row["dice"] for row in ledger("ten-percent")}

    def line(title: str, subjects: str, over: Sequence[str], known: str) -> list[TableCell]:
        scores = [f"{fmean(dice[task, arm] for task in over):.1f}" for arm in ARMS]
        best = max(scores, key=float)
        difference = signed(fmean(100 * gain[task, "joint"].mean for task in over), 1)
        ten, full = (f"{fmean(more[task, arm] for task in over):.1f}" for arm in ("joint", "scratch"))
        cells = (TableCell(score, score == best) for score in scores)
        return [TableCell(title), TableCell(subjects), *cells, *map(TableCell, (difference + known, ten, full))]

    lines = [
        line(f"{task[:6]} {PLAIN[task]}", labelled(rows, task), [task], f" ({interval(gain[task, 'joint'], 1)})")
        for task in tasks
    ]
    header = ["task", "labelled", *ARMS, "joint − scratch", "joint, 10 %", "scratch, 100 %"]
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


def surface_metrics() -> str:
    """Surface Dice (%) and HD95 (mm) of each arm on each of nine tasks."""
    means = {
        metric: {(each.task, each.arm): factor * (each.mean or 0.0) for each in summarise(ledger("nine-tasks"), metric)}
        for metric, factor in (("nsd", 100), ("hd95", 1))
    }

    def line(title: str, over: Sequence[str]) -> list[TableCell]:
        cells = []
        for metric, best in (("nsd", max), ("hd95", min)):
            scores = [round(fmean(means[metric][task, arm] for task in over), 1) for arm in ARMS]
            cells += [TableCell(f"{score:.1f}", score == best(scores)) for score in scores]
        return [TableCell(title), *cells]

    header = ["task", *(f"{name}, {arm}" for name in ("surface Dice", "HD95") for arm in ARMS)]
    return body(Table("", header, [*(line(task, [task]) for task in PLAIN), line("mean", list(PLAIN))]))


def differences(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Paired differences in Dice points with interval and p, a column for each pair of arms."""
    found = {pair: {each.task: each for each in compare(ledger(name), *pair, SHARE)} for pair in pairs}

    def cell(each: Difference) -> TableCell:
        known = "" if each.p_holm is None else f", {each.p_holm:.3f}"
        return TableCell(f"{signed(100 * each.mean)} ({interval(each)}){known}", each.above)

    lines = [
        [TableCell(task), TableCell(str(each.subjects)), *(cell(found[pair][task]) for pair in pairs)]
        for task, each in found[pairs[0]].items()
    ]
    return body(Table("", ["task", "subjects", *(f"{arm} − {other}" for arm, other in pairs)], lines))


def claims() -> str:
    """The claims of the abstract, of nine tasks with 5 % and with 10 % of the labels."""
    roles = find_roles(Experiment.load(EXPERIMENTS / "nine-tasks.yaml"))
    return body(claim_table(check_claims([*ledger("nine-tasks"), *ledger("ten-percent")], roles)))


def baseline_rows() -> tuple[list[Row], list[str]]:
    """The rows of arms without pretext losses in fine-tuning that have every task; joint, then the others by Dice."""
    experiment, rows = Experiment.load(EXPERIMENTS / "baselines.yaml"), ledger("baselines")
    whole = [arm for arm in experiment.arms if sum(row["arm"] == arm for row in rows) == len(experiment.tasks or ())]
    others = [arm for arm in whole if arm not in ("scratch", "joint") and not arm.endswith("-pretext")]
    others.sort(key=lambda arm: -fmean(row["dice"] for row in rows if row["arm"] == arm))
    return [row for row in rows if row["arm"] in ("scratch", "joint", *others)], ["joint", *others]


def baselines() -> str:
    """Dice (%) of each objective on each task, and mean differences, for some also with a second labelled subject."""
    rows, arms = baseline_rows()
    dice = {(row["arm"], row["task"]): 100 * row["dice"] for row in rows}
    second = {(row["arm"], row["task"]): 100 * row["dice"] for row in ledger("jigsaw") if row["seed"] == 1}
    tasks = list(Experiment.load(EXPERIMENTS / "baselines.yaml").tasks or ())

    def gain(scores: dict[tuple[str, str], float], arm: str, other: str) -> TableCell:
        if arm == other or (arm, tasks[0]) not in scores:
            return TableCell("–")
        return TableCell(signed(fmean(scores[arm, task] - scores[other, task] for task in tasks), 1))

    best = {task: max(dice[arm, task] for arm in ("scratch", *arms)) for task in tasks}
    lines = [
        [
            TableCell(arm),
            *(TableCell(f"{dice[arm, task]:.1f}", dice[arm, task] == best[task]) for task in tasks),
            TableCell(f"{fmean(dice[arm, task] for task in tasks):.1f}"),
            gain(dice, arm, "joint"),
            gain(dice, arm, "scratch"),
            gain(second, arm, "scratch"),
        ]
        for arm in ("scratch", *arms)
    ]
    header = ["arm", *(PLAIN[task] for task in tasks), "mean", "− joint", "− scratch", "− scratch, second subject"]
    return body(Table("", header, lines))


def baselines_pretext() -> str:
    """Objectives with and without their losses in fine-tuning: Dice (%), mean of the tasks that all arms have."""
    dice = {(row["arm"], row["task"]): 100 * row["dice"] for row in ledger("baselines")}
    names = ("joint", "global-local", "masked")
    tasks = [task for task in PLAIN if all((f"{name}-pretext", task) in dice for name in names)]
    lines = []
    for name in names:
        off, on = (fmean(dice[arm, task] for task in tasks) for arm in (name, f"{name}-pretext"))
        lines.append([TableCell(text) for text in (name, f"{off:.1f}", f"{on:.1f}", signed(on - off, 1))])
    return body(Table("", ["pre-training", "losses off", "losses on", "difference"], lines))


def ablation() -> str:
    """The arms that have every task: mean differences from scratch over the organs, for each labelled subject."""
    experiment = Experiment.load(EXPERIMENTS / "ablation.yaml")
    dice = {(row["arm"], row["task"], row["seed"]): 100 * row["dice"] for row in ledger("ablation")}
    organs = [task for task in experiment.tasks or () if task != LESION]

    def gain(arm: str, seed: int) -> TableCell:
        if any((arm, task, seed) not in dice for task in organs):
            return TableCell("–")
        return TableCell(signed(fmean(dice[arm, task, seed] - dice["scratch", task, seed] for task in organs), 1))

    lines = [
        [TableCell(arm), *(gain(arm, seed) for seed in experiment.seeds)] for arm in experiment.arms if arm != "scratch"
    ]
    return body(Table("", ["arm", "three organs − scratch", "second subject"], lines))


def controls() -> str:
    """What the pretext losses alone and twice the steps give, and what pre-training gives beside them."""
    rows = ledger("five-tasks")
    names = {"scratch-pretext": "scratch + losses", "scratch-long": "scratch, 2,000 steps"}
    pairs = [
        ("scratch-pretext", "scratch"),
        ("joint", "scratch-pretext"),
        ("scratch-long", "scratch"),
        ("joint", "scratch-long"),
    ]
    found = {pair: {each.task: each for each in compare(rows, *pair, SHARE)} for pair in pairs}

    def cell(pair: tuple[str, str], task: str) -> TableCell:
        each = found[pair].get(task)
        if each is None:
            return TableCell("–")
        return TableCell(f"{signed(100 * each.mean, 1)} ({interval(each, 1)})" + "*" * (each.seeds == 1))

    lines = [[TableCell(PLAIN[task]), *(cell(pair, task) for pair in pairs)] for task in found[pairs[0]]]
    header = [" − ".join(names.get(arm, arm) for arm in pair) for pair in pairs]
    return body(Table("", ["task", *header], lines))


def self_training() -> str:
    """Dice (%) on validation subjects of the tasks run so far, a figure for each seed; "–" was not run."""
    experiment = Experiment.load(EXPERIMENTS / "self-training.yaml")
    dice = {(row["arm"], row["task"], row["seed"]): 100 * row["dice"] for row in ledger("self-training")}
    arms = ("scratch", "self-training")
    lines, means = [], []
    for task in experiment.tasks or ():
        found = [[dice.get((arm, task, seed)) for arm in arms] for seed in experiment.seeds]
        pairs = [(scratch, own) for scratch, own in found if scratch is not None and own is not None]
        if not pairs:
            continue
        means.append([fmean(column) for column in zip(*pairs, strict=True)])
        columns = [
            ", ".join("–" if each is None else f"{each:.1f}" for each in column) for column in zip(*found, strict=True)
        ]
        lines.append([task, *columns, ", ".join(signed(own - scratch, 1) for scratch, own in pairs)])
    if len(means) > 1:
        middle = [f"{fmean(column):.1f}" for column in zip(*means, strict=True)]
        lines.append([f"mean of {len(means)} tasks", *middle, with_interval([own - scratch for scratch, own in means])])
    return body(Table("", ["task", *arms, "difference"], [[TableCell(each) for each in line] for line in lines]))


def demo_length() -> str:
    """Dice (%) of each task and arm of the plan that the demo's length comes from."""
    experiment = Experiment.load(EXPERIMENTS / "demo-length.yaml")
    dice = {(row["arm"], row["task"]): 100 * row["dice"] for row in ledger("demo-length")}
    lines = [[task, *(f"{dice[arm, task]:.1f}" for arm in experiment.arms)] for task in experiment.tasks or ()]
    return body(Table("", ["task", *experiment.arms], [[TableCell(each) for each in line] for line in lines]))


def suggested() -> dict[tuple[str, str, int, str], dict[int, float]]:
    """Dice (%) by seed of each task, unit, number and arm in experiments/suggestion.jsonl."""
    found: dict[tuple[str, str, int, str], dict[int, float]] = {}
    for line in (EXPERIMENTS / "suggestion.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["task"], row["unit"], row["number"], row["arm"]), {})[row["seed"]] = 100 * row["dice"]
    return found


def with_interval(differences: Sequence[float]) -> str:
    """The mean of differences and its 95 % t interval."""
    middle, reach = fmean(differences), stdev(differences) / len(differences) ** 0.5
    reach *= float(student_t.ppf(0.975, len(differences) - 1))
    return f"{signed(middle, 1)}; {signed(middle - reach, 1)} to {signed(middle + reach, 1)}"


def suggestion() -> str:
    """Mean Dice (%) over tasks of what each way to choose draws, and its difference from random."""
    dice = {key: by_seed for key, by_seed in suggested().items() if key[1] != FINETUNED}
    tasks, arms = (dict.fromkeys(key[place] for key in dice) for place in (0, 3))
    columns = [("subjects", 3), ("subjects", 5), ("slices", 3), ("slices", 5)]

    def cell(arm: str, unit: str, number: int) -> TableCell:
        if (next(iter(tasks)), unit, number, arm) not in dice:
            return TableCell("–")
        own, other = ([dice[task, unit, number, name] for task in tasks] for name in (arm, "random"))
        mean = f"{fmean(fmean(each.values()) for each in own):.1f}"
        if arm == "random":
            return TableCell(mean)
        differences = [fmean(a[seed] - b[seed] for a, b in zip(own, other, strict=True)) for seed in own[0]]
        return TableCell(f"{mean} ({with_interval(differences)})")

    header = [f"{number} subjects" if unit == "subjects" else f"{5 * number} slices" for unit, number in columns]
    lines = [[TableCell(arm), *(cell(arm, *column) for column in columns)] for arm in arms]
    return body(Table("", ["drawn by", *header], lines))


def suggestion_finetuned() -> str:
    """Dice (%) of fine-tuned networks for each repetition, and the mean difference from random."""
    dice = {key: by_seed for key, by_seed in suggested().items() if key[1] == FINETUNED}
    tasks = dict.fromkeys(key[0] for key in dice)
    lines = []
    for task in tasks:
        random = dice[task, FINETUNED, 3, "random"]
        for (name, _, number, arm), own in dice.items():
            if name == task:
                pairs = [own[seed] - random[seed] for seed in own if seed in random]
                more = with_interval(pairs) if len(pairs) > 1 and arm not in ("random", "first") else ""
                figures = ", ".join(f"{own[seed]:.1f}" for seed in sorted(own))
                title = "the first subject alone" if arm == "first" else arm
                lines.append([*map(TableCell, (task, title, str(number), figures, more))])
    return body(Table("", ["task", "drawn by", "subjects", "Dice", "− random"], lines))


TABLES: dict[str, Callable[[], str]] = {
    "gains": gains,
    "seeds": seeds,
    "claims": claims,
    "baselines": baselines,
    "controls": controls,
    "surface": surface_metrics,
    "differences": partial(differences, "nine-tasks", PAIRS),
    "baselines-pretext": baselines_pretext,
    "ablation": ablation,
    "adapted": partial(differences, "five-tasks", [("adapted", "joint")]),
    "self-training": self_training,
    "demo-length": demo_length,
    "suggestion": suggestion,
    "suggestion-fine-tuned": suggestion_finetuned,
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
