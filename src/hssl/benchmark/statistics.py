"""What the lines of a ledger say together. Pure functions: rows in, numbers out; Dice stays in [0, 1].

Arms are paired: by seed, since a seed fixes labelled subjects, head and batches; and by case, since all arms are scored
on the same ones. The unit of every interval and test is the case, after the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import rankdata, wilcoxon

Row = Mapping[str, Any]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """An arm on one task with one share of the labels.

    Attributes:
        task: The task.
        labels: Labelled subjects as the plan has them, for example ``5%``.
        arm: The arm.
        ran: Seeds that have a value.
        mean: Over seeds; None where no run has a value.
        spread: Standard deviation over seeds (n - 1); None for fewer than two.
    """

    task: str
    labels: str
    arm: str
    ran: frozenset[int]
    mean: float | None
    spread: float | None

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.ran)


@dataclass(frozen=True)
class Difference:
    """An arm less a reference on one task, case by case.

    Attributes:
        task: The task.
        labels: Labelled subjects as the plan has them.
        arm: The arm.
        reference: What it is compared with.
        seeds: Seeds that both have; others do not count.
        cases: Cases that both have.
        mean: Mean difference over cases.
        low: Lower end of the 95 % bootstrap interval; None for fewer than two cases.
        high: Upper end.
        p: Two-sided Wilcoxon signed-rank test; None for fewer than two cases.
        p_holm: The same after Holm's correction over the tasks of this comparison.
    """

    task: str
    labels: str
    arm: str
    reference: str
    seeds: int
    cases: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None


def summarise(rows: Iterable[Row], metric: str = "dice") -> list[Summary]:
    """Mean and standard deviation over seeds of each task, share and arm, in the order of the rows."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        values = found.setdefault((row["task"], row["labels"], row["arm"]), {})
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


def compare(rows: Sequence[Row], arm: str, reference: str, labels: str, metric: str = "dice") -> list[Difference]:
    """`arm` less `reference` on each task that both have, with Holm's correction over these tasks.

    Args:
        rows: Lines of a ledger, one for each arm, task, share and seed.
        arm: The arm.
        reference: The other one.
        labels: The share of the labels.
        metric: ``dice``, ``hd95`` or ``nsd``.
    """
    differences = []
    for task in dict.fromkeys(row["task"] for row in rows):
        first, second = (
            {row["seed"]: case_values(row, metric) for row in rows if _at(row, task, labels, name)}
            for name in (arm, reference)
        )
        seeds = sorted(first.keys() & second.keys())
        paired: dict[str, list[float]] = {}
        for seed in seeds:
            for case in first[seed].keys() & second[seed].keys():
                paired.setdefault(case, []).append(first[seed][case] - second[seed][case])
        if paired:
            values = np.array([fmean(paired[case]) for case in sorted(paired)])
            low, high = bootstrap(values)
            differences.append(
                Difference(
                    task, labels, arm, reference, len(seeds), len(values), fmean(values), low, high, signed_rank(values)
                )
            )
    corrected = holm([difference.p for difference in differences])
    return [replace(each, p_holm=p) for each, p in zip(differences, corrected, strict=True)]


def bootstrap(values: np.ndarray[Any, Any], *, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean: 10,000 resamples of the cases, the same ones every time."""
    if len(values) < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def signed_rank(values: np.ndarray[Any, Any]) -> float | None:
    """The p of the two-sided Wilcoxon signed-rank test; 1 where nothing differs, None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(wilcoxon(values).pvalue) if np.any(values) else 1.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979); None stays None and does not count."""
    order = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def mean_ranks(rows: Iterable[Row], arms: Sequence[str], labels: str, metric: str = "dice") -> dict[str, float]:
    """Mean rank (1 is best, ties share) of each arm over the tasks that all have, seed for seed; empty without one.

    Args:
        rows: Lines of a ledger.
        arms: Arms to rank against each other.
        labels: The share of the labels.
        metric: ``dice``, ``nsd`` (more is better) or ``hd95`` (less is).
    """
    found: dict[str, dict[str, Summary]] = {}
    for each in summarise(rows, metric):
        if each.labels == labels and each.arm in arms and each.mean is not None:
            found.setdefault(each.task, {})[each.arm] = each
    sign = 1 if metric == "hd95" else -1
    paired = [of for of in found.values() if len(of) == len(arms) and same_seeds(of.values())]
    ranks = [rankdata([sign * (of[arm].mean or 0.0) for arm in arms]) for of in paired]
    return dict(zip(arms, np.mean(ranks, axis=0).tolist(), strict=True)) if ranks else {}


def _at(row: Row, task: str, labels: str, arm: str) -> bool:
    return bool((row["task"], row["labels"], row["arm"]) == (task, labels, arm))
