"""The tables of the report, once, for the page and for Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from hssl.benchmark.run.ledger import Row
from hssl.benchmark.statistics import (
    ENOUGH,
    FILLED,
    Difference,
    Summary,
    compare,
    mean_ranks,
    same_seeds,
    summarise,
)
from hssl.text import budget_in_words, signed


class TableCell(NamedTuple):
    """A cell; `best` ones stand out."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        header: Names of the columns; the first column is text, the others are numbers.
        rows: Cells.
        note: How to read it.
        summary: How many rows at the end sum up the others.
    """

    title: str
    header: list[str]
    rows: list[list[TableCell]]
    note: str = ""
    summary: int = field(default=0)

    def markdown(self) -> str:
        """The table in Markdown, its title as a heading."""
        lines = [
            f"## {_escaped(self.title)}",
            "",
            _line(map(_escaped, self.header)),
            _line([":--", *["--:"] * (len(self.header) - 1)]),
        ]
        lines += [_line([_bold(c) for c in row]) for row in self.rows]
        return "\n".join([*lines, "", self.note, ""] if self.note else [*lines, ""])


METRICS = {"dice": ("Dice (%)", 100), "nsd": ("Surface Dice (%)", 100), "hd95": ("HD95 (mm)", 1)}


def score_table(rows: Sequence[Row], arms: Sequence[str], label_budget: str, metric: str = "dice") -> Table:
    """Mean and standard deviation over seeds of each arm and task, with means and ranks over tasks."""
    name, factor = METRICS[metric]
    means = {(each.task, each.arm): each for each in summarise(rows, metric) if each.label_budget == label_budget}
    present = [arm for arm in arms if any(key[1] == arm for key in means)]
    tasks = list(dict.fromkeys(task for task, _ in means))
    best: Callable[[Sequence[float]], float] = min if metric == "hd95" else max
    body, shared = [], []
    for task in tasks:
        values = [means.get((task, arm)) for arm in present]
        paired = same_seeds(each for each in values if each is not None and _has(each))
        known = _values(values) if paired else [None] * len(values)
        seeds = len(frozenset().union(*(each.ran for each in values if each is not None)))
        body.append([TableCell(task), *_marked([_spread(each, factor, seeds) for each in values], known, best)])
        if paired and all(_has(each) for each in values):
            shared.append(task)
    averages = [[means[task, arm].mean or 0.0 for task in shared] for arm in present]
    summary = 0
    if len(shared) > 1:
        overall = [fmean(each) for each in averages]
        ranks = mean_ranks(rows, present, label_budget, metric)
        over = f"mean of {len(shared)} tasks" + (
            " that all arms have with the same seeds" if len(shared) < len(tasks) else ""
        )
        body.append([TableCell(over), *_marked([f"{factor * each:.1f}" for each in overall], overall, best)])
        body.append(
            [TableCell("mean rank"), *_marked([f"{ranks[a]:.2f}" for a in present], [ranks[a] for a in present], min)]
        )
        summary = 2
    note = f"Mean over cases and labels; ± standard deviation over seeds.{_rightly_absent(rows)}"
    return Table(f"{name} with {budget_in_words(label_budget)}", ["task", *present], body, note, summary)


def difference_table(rows: Sequence[Row], pairs: Iterable[tuple[str, str]], label_budget: str) -> Table:
    """Paired differences with intervals and tests, a row for each pair of arms and task."""
    body = [
        [
            TableCell(each.task),
            TableCell(f"{each.arm} − {each.reference}"),
            TableCell(signed(100 * each.mean), best=each.above),
            TableCell(interval(each)),
            TableCell(_p(each.p_holm)),
            TableCell(str(each.cases)),
            TableCell(str(each.subjects)),
            TableCell(str(each.seeds)),
        ]
        for arm, reference in pairs
        for each in compare(rows, arm, reference, label_budget)
    ]
    note = (
        "Paired by case after the mean over seeds. Interval: percentile bootstrap over test subjects, 10,000 "
        "resamples; it does not include the choice of labelled subjects, and with few test subjects it is too narrow "
        "(with four it covers the mean in about 80 of 100 cases). p: Wilcoxon signed-rank over test subjects, Holm's "
        f"correction over tasks. Bold: the interval is above 0, with {ENOUGH} subjects or more.{_rightly_absent(rows)}"
    )
    header = ["task", "arms", "Dice points", "95 % interval", "p (Holm)", "cases", "subjects", "seeds"]
    return Table(f"Differences with {budget_in_words(label_budget)}", header, body, note)


def variant_table(
    rows: Sequence[Row], arms: Sequence[str], reference: str, scratch: str | None, label_budget: str
) -> Table:
    """Each arm beside `reference` and scratch, over the tasks and seeds that both have."""
    here = [row for row in rows if row["label_budget"] == label_budget]
    present = {row["arm"] for row in here}
    ranked = [arm for arm in dict.fromkeys((reference, *arms)) if arm in present]
    ranks = mean_ranks(here, ranked, label_budget)
    others = [reference, *([scratch] if scratch is not None and scratch != reference else [])]
    body = []
    for arm in ranked:
        shared = _shared(here, arm, reference)
        cells = [
            TableCell(arm),
            TableCell(f"{100 * _mean_over_tasks(here, arm, shared):.1f}" if shared else "–"),
            TableCell(f"{100 * _mean_over_tasks(here, reference, shared):.1f}" if shared else "–"),
            TableCell(_rank(ranks.get(arm))),
        ]
        for other in others:
            found = compare(here, arm, other, label_budget) if other != arm else []
            gains = [100 * each.mean for each in found]
            cells.append(TableCell(signed(fmean(gains)) if gains else "–"))
            cells.append(TableCell(f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else "–"))
        body.append(cells)
    header = [
        "arm",
        "Dice (%)",
        f"{reference}, same runs",
        "mean rank",
        *(text for other in others for text in (f"− {other}", "tasks above")),
    ]
    note = (
        f"Each arm over the tasks and seeds that it shares with {reference}, and the Dice of {reference} on these. "
        "Differences are paired, in Dice points. Mean rank: over the tasks that all arms of the table have with the "
        f"same seeds.{_rightly_absent(rows)}"
    )
    return Table(f"Arms with {budget_in_words(label_budget)}", header, body, note)


def _rightly_absent(rows: Sequence[Row]) -> str:
    if not any(FILLED in row for row in rows):
        return ""
    return " Where a case lacks a label, a mask without it counts as perfect if the mask of another run shows it."


def _shared(rows: Sequence[Row], arm: str, reference: str) -> set[tuple[str, int]]:
    """Tasks and seeds for which both arms have a Dice."""
    scored = [row for row in rows if row["dice"] is not None]
    own, other = ({(row["task"], row["seed"]) for row in scored if row["arm"] == name} for name in (arm, reference))
    return own & other


def _mean_over_tasks(rows: Sequence[Row], arm: str, places: set[tuple[str, int]]) -> float:
    chosen = [row for row in rows if row["arm"] == arm and (row["task"], row["seed"]) in places]
    return fmean(each.mean or 0.0 for each in summarise(chosen))


def pretraining_table(rows: Sequence[Row], arms: dict[str, str]) -> Table:
    """Pre-trainings: length, time and last losses."""
    body = [
        [
            TableCell(arms[row["config_hash"]]),
            TableCell(row["tasks"][0] if len(row["tasks"]) == 1 else f"{len(row['tasks'])} tasks"),
            TableCell(f"{row['steps']:,}"),
            TableCell(f"{row['seconds'] / 60:.0f}"),
            TableCell(", ".join(f"{name} {value:.3g}" for name, value in row["losses"].items() if "/" not in name)),
        ]
        for row in rows
        if row["config_hash"] in arms
    ]
    return Table("Pre-training", ["arm", "tasks", "steps", "minutes", "weighted losses at the end"], body)


def interval(difference: Difference, digits: int = 2) -> str:
    """The bootstrap interval in Dice points."""
    if difference.low is None or difference.high is None:
        return "–"
    return f"{signed(100 * difference.low, digits)} to {signed(100 * difference.high, digits)}"


def _values(summaries: Sequence[Summary | None]) -> list[float | None]:
    return [each.mean if each is not None else None for each in summaries]


def _has(summary: Summary | None) -> bool:
    return summary is not None and summary.mean is not None


def _spread(summary: Summary | None, factor: int, seeds: int) -> str:
    if summary is None or summary.mean is None:
        return "–"
    spread = f" ± {factor * summary.spread:.1f}" if summary.spread is not None else ""
    fewer = f" ({len(summary.ran)} of {seeds} seeds)" if len(summary.ran) < seeds else ""
    return f"{factor * summary.mean:.1f}{spread}{fewer}"


def _marked(
    texts: Sequence[str], values: Sequence[float | None], best: Callable[[Sequence[float]], float]
) -> list[TableCell]:
    present = [value for value in values if value is not None]
    target = best(present) if len(present) > 1 else None
    return [TableCell(text, value is not None and value == target) for text, value in zip(texts, values, strict=True)]


def _rank(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bold(cell: TableCell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.best and text else text


def _escaped(text: str) -> str:
    """Text without what Markdown and HTML would take for markup; an underscore inside of a word is none."""
    return html.escape(re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split())), quote=False)
