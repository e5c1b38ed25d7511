"""What the lines of a ledger say together. Pure functions: rows in, numbers out; Dice stays in [0, 1].

Arms are paired: by seed, since a seed fixes labelled subjects, head and batches; and by case, since all arms are scored
on the same ones. The unit of every interval and test is the subject, after the mean over seeds: two scans of one person
are not independent.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy.stats import rankdata, wilcoxon

from hssl.benchmark.run.ledger import Row

RESAMPLES = 10_000
AT_ONCE = 1_000_000
"""Subjects drawn at a time, all resamples together, to keep memory small."""
ENOUGH = 6
"""Subjects below which an interval is too narrow for a verdict."""
FLAWLESS = {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
FILLED = "filled"
"""Where a row of :func:`same_cells` has the number of its scores that count as flawless."""


@dataclass(frozen=True)
class Summary:
    """An arm on one task with one share of the labels.

    Attributes:
        task: The task.
        label_budget: Labelled subjects as the experiment has them, for example ``5%``.
        arm: The arm.
        ran: Seeds that have a value.
        mean: Over seeds; None where no run has a value.
        spread: Standard deviation over seeds (n - 1); None for fewer than two.
    """

    task: str
    label_budget: str
    arm: str
    ran: frozenset[int]
    mean: float | None
    spread: float | None


@dataclass(frozen=True)
class Difference:
    """An arm less a reference on one task, case by case.

    Attributes:
        task: The task.
        label_budget: Labelled subjects as the experiment has them.
        arm: The arm.
        reference: What it is compared with.
        seeds: Seeds that both have; others do not count.
        cases: Cases that both have.
        subjects: Number of their subjects.
        mean: Mean difference over cases.
        low: Lower end of the 95 % bootstrap interval; None for fewer than two subjects.
        high: Upper end.
        p: Two-sided Wilcoxon signed-rank test of the subjects' means; None for fewer than two subjects.
        p_holm: The same after Holm's correction over the tasks of this comparison.
    """

    task: str
    label_budget: str
    arm: str
    reference: str
    seeds: int
    cases: int
    subjects: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def above(self) -> bool:
        """Whether the interval lies above 0, over subjects enough to say so."""
        return self.low is not None and self.low > 0 and self.subjects >= ENOUGH


def ordered_shares(rows: Iterable[Row]) -> list[str]:
    """Label budgets, the smallest first: by the mean share over tasks, which differs where a budget is a number."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["label_budget"], {})[row["task"]] = float(row["fraction"])
    return sorted(found, key=lambda label_budget: fmean(found[label_budget].values()))


def same_cells(rows: Iterable[Row]) -> list[Row]:
    """The rows with means over the same labels of the same cases, so that they are those of the differences.

    A label that is nowhere in a case has no score where the mask shows none either. Beside a mask that shows some, that
    is a flawless score; where no mask of `rows` does, the label does not count.
    """
    rows = list(rows)
    scored = {
        (row["task"], score["case"], score["label"])
        for row in rows
        for score in row["scores"]
        if score["dice"] is not None
    }
    return [_filled(row, scored) for row in rows]


def _filled(row: Row, scored: Container[tuple[str, str, int]]) -> Row:
    lacks = [
        score["dice"] is None and (row["task"], score["case"], score["label"]) in scored for score in row["scores"]
    ]
    if not any(lacks):
        return row
    scores = [{**score, **FLAWLESS} if lack else score for score, lack in zip(row["scores"], lacks, strict=True)]
    means = {metric: fmean(case_values({"scores": scores}, metric).values()) for metric in FLAWLESS}
    return {**row, **means, "scores": scores, FILLED: sum(lacks)}


def summarise(rows: Iterable[Row], metric: str = "dice") -> list[Summary]:
    """Mean and standard deviation over seeds of each task, share and arm, in the order of the rows."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        values = found.setdefault((row["task"], row["label_budget"], row["arm"]), {})
        if row[metric] is not None:
            values[row["seed"]] = row[metric]
    return [
        Summary(
            *key,
            frozenset(values),
            fmean(values.values()) if values else None,
            stdev(values.values()) if len(values) > 1 else None,
        )
        for key, values in found.items()
    ]


def same_seeds(summaries: Iterable[Summary]) -> bool:
    """Whether these ran with the same seeds; else who was labelled differs, and their means are not comparable."""
    return len({each.ran for each in summaries}) == 1


def case_values(row: Row, metric: str = "dice") -> dict[str, float]:
    """Mean over the labels of each case; labels that are nowhere in a case, and cases without any, are left out."""
    found: dict[str, list[float]] = {}
    for score in row["scores"]:
        if score[metric] is not None:
            found.setdefault(score["case"], []).append(score[metric])
    return {case: fmean(values) for case, values in found.items()}


def compare(rows: Sequence[Row], arm: str, reference: str, label_budget: str, metric: str = "dice") -> list[Difference]:
    """`arm` less `reference` on each task that both have, with Holm's correction over these tasks.

    Args:
        rows: Lines of a ledger, one for each arm, task, share and seed; of the two arms the cells are made the same.
        arm: The arm.
        reference: The other one.
        label_budget: The share of the labels.
        metric: ``dice``, ``hd95`` or ``nsd``.
    """
    differences = []
    rows = same_cells(row for row in rows if row["label_budget"] == label_budget and row["arm"] in (arm, reference))
    for task in dict.fromkeys(row["task"] for row in rows):
        first, second = (
            {row["seed"]: row for row in rows if (row["task"], row["arm"]) == (task, name)} for name in (arm, reference)
        )
        seeds = sorted(first.keys() & second.keys())
        paired: dict[tuple[str, str], list[float]] = {}
        for seed in seeds:
            for case, value in _case_differences(first[seed], second[seed], metric).items():
                paired.setdefault(case, []).append(value)
        if paired:
            subjects: dict[str, list[float]] = {}
            for (subject, _), values in sorted(paired.items()):
                subjects.setdefault(subject, []).append(fmean(values))
            groups = list(subjects.values())
            low, high = bootstrap(groups)
            differences.append(
                Difference(
                    task,
                    label_budget,
                    arm,
                    reference,
                    len(seeds),
                    len(paired),
                    len(groups),
                    fmean(value for group in groups for value in group),
                    low,
                    high,
                    signed_rank([fmean(group) for group in groups]),
                )
            )
    corrected = holm([difference.p for difference in differences])
    return [replace(each, p_holm=p) for each, p in zip(differences, corrected, strict=True)]


def bootstrap(groups: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean over all values, by 10,000 resamples of whole groups.

    Args:
        groups: Values of the cases of each subject.
        seed: Of the resamples: the same ones every time.
    """
    if len(groups) < 2:
        return None, None
    sums, counts = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for part in np.array_split(means, -(-RESAMPLES * len(groups) // AT_ONCE)):
        drawn = generator.integers(len(groups), size=(len(part), len(groups)))
        part[:] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def signed_rank(values: Sequence[float]) -> float | None:
    """The p of the two-sided Wilcoxon signed-rank test; 1 where nothing differs, None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(wilcoxon(values).pvalue) if any(values) else 1.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979); None stays None and does not count."""
    order = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def mean_ranks(rows: Iterable[Row], arms: Sequence[str], label_budget: str, metric: str = "dice") -> dict[str, float]:
    """Mean rank (1 is best, ties share) of each arm over the tasks that all have, seed for seed; empty without one.

    Args:
        rows: Lines of a ledger.
        arms: Arms to rank against each other.
        label_budget: The share of the labels.
        metric: ``dice``, ``nsd`` (more is better) or ``hd95`` (less is).
    """
    found: dict[str, dict[str, Summary]] = {}
    for each in summarise(rows, metric):
        if each.label_budget == label_budget and each.arm in arms and each.mean is not None:
            found.setdefault(each.task, {})[each.arm] = each
    sign = 1 if metric == "hd95" else -1
    paired = [of for of in found.values() if len(of) == len(arms) and same_seeds(of.values())]
    ranks = [rankdata([sign * (of[arm].mean or 0.0) for arm in arms]) for of in paired]
    return dict(zip(arms, np.mean(ranks, axis=0).tolist(), strict=True)) if ranks else {}


def _case_differences(row: Row, reference: Row, metric: str) -> dict[tuple[str, str], float]:
    """By subject and case: the mean over labels that have a score."""
    own, other = (
        {(score["subject"], score["case"], score["label"]): score[metric] for score in each["scores"]}
        for each in (row, reference)
    )
    found: dict[tuple[str, str], list[float]] = {}
    for key in own.keys() & other.keys():
        if own[key] is not None and other[key] is not None:
            found.setdefault(key[:2], []).append(own[key] - other[key])
    return {case: fmean(values) for case, values in found.items()}
