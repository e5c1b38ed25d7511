"""The claims of the paper's abstract (Zheng et al., MICCAI 2021, arXiv 2107.04886), checked against a ledger.

A report has them where the experiment says ``claims: abstract``. The abstract names directions and figures, not when a
claim counts as confirmed; those rules are ours and are written beside each verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from hssl.benchmark.report.roles import Roles
from hssl.benchmark.report.tables import Table, TableCell
from hssl.benchmark.run.ledger import Row
from hssl.benchmark.statistics import Difference, compare, ordered_shares
from hssl.text import budget_in_words, signed

ABSTRACT_GAINS = (0.69, 18.60)
"""Smallest and largest gain over scratch with 5 % of the labels that the abstract reports, in Dice points."""
MOST_TASKS = 8 / 9
CLOSE, CLOSE_TASKS = 0.95, 6 / 9
NOT_TESTED: Final = "not tested"


@dataclass(frozen=True)
class Claim:
    """A claim and what was found.

    Attributes:
        text: What the abstract says.
        rule: When it counts as holding here.
        verdict: What was found.
        number: The figures behind it.
    """

    text: str
    rule: str
    verdict: Literal["holds", "does not hold", "not tested"]
    number: str


def check_claims(rows: Sequence[Row], roles: Roles) -> list[Claim]:
    """Checks the claims against finished runs; what has not been run is not tested."""
    shares = ordered_shares(rows)
    beside = (_compared(rows, roles.joint, roles.single, label_budget) for label_budget in shares)
    five, ten, all_ = (_named(shares, share) for share in (5, 10, 100))
    return [
        _joint_beats_single(next(filter(None, beside), [])),  # with the smallest share that both have
        _both_beat_scratch(
            _compared(rows, roles.joint, roles.scratch, five), _compared(rows, roles.single, roles.scratch, five)
        ),
        _gains(_compared(rows, roles.joint, roles.scratch, five)),
        _ten_is_close(rows, roles, ten, all_),
    ]


def claim_table(claims: Sequence[Claim]) -> Table:
    """The claims of the abstract, for Markdown."""
    rows = [
        [TableCell(each.text), TableCell(each.verdict, best=True), TableCell(each.number), TableCell(each.rule)]
        for each in claims
    ]
    return Table("The claims of the abstract", ["claim", "verdict", "figures", "holds when"], rows)


def _joint_beats_single(differences: list[Difference]) -> Claim:
    text = "Joint multi-domain pre-training beats single-domain pre-training."
    rule = f"Higher mean Dice on at least eight tasks of nine{_scaled(MOST_TASKS, len(differences))}."
    if not differences:
        return Claim(text, rule, NOT_TESTED, "")
    gains = [100 * each.mean for each in differences]
    wins = sum(gain > 0 for gain in gains)
    number = f"{budget_in_words(differences[0].label_budget)}: higher on {wins} of {len(gains)} tasks, {_range(gains)}"
    return Claim(text, rule, _verdict(wins >= _share(MOST_TASKS, len(gains))), number)


def _both_beat_scratch(joint: list[Difference], single: list[Difference]) -> Claim:
    text = "Both beat training from scratch when 5 % of the labels are used."
    rule = "Higher mean Dice on every task, for both."
    shared = {each.task for each in joint} & {each.task for each in single}
    joint, single = ([each for each in of if each.task in shared] for of in (joint, single))
    if not shared:
        return Claim(text, rule, NOT_TESTED, "")
    both = {"joint": [100 * each.mean for each in joint], "single-domain": [100 * each.mean for each in single]}
    number = "; ".join(
        f"{name}: higher on {sum(gain > 0 for gain in gains)} of {len(gains)} tasks, {_range(gains)}"
        for name, gains in both.items()
    )
    return Claim(text, rule, _verdict(min(map(min, both.values())) > 0), number)


def _gains(joint: list[Difference]) -> Claim:
    low, high = ABSTRACT_GAINS
    text = f"The gain over scratch with 5 % of the labels is +{low:.2f} to +{high:.2f} Dice points."
    rule = f"Joint: every task above +{low:.2f}, the best above +{high:.2f}."
    if not joint:
        return Claim(text, rule, NOT_TESTED, "")
    gains = [100 * each.mean for each in joint]
    return Claim(text, rule, _verdict(min(gains) > low and max(gains) > high), _range(gains))


def _ten_is_close(rows: Sequence[Row], roles: Roles, ten: str | None, all_: str | None) -> Claim:
    text = "Joint pre-training with 10 % of the labels comes close to training with 100 %."
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        if row["dice"] is not None:
            found.setdefault((row["task"], row["label_budget"], row["arm"]), {})[row["seed"]] = row["dice"]
    shares = []
    for task in dict.fromkeys(row["task"] for row in rows):
        part = found.get((task, ten or "", roles.joint or ""), {})
        whole = found.get((task, all_ or "", roles.scratch or ""), {})
        both = part.keys() & whole.keys()  # a seed alone would compare other subjects
        if both and (reference := fmean(whole[seed] for seed in both)):
            shares.append(fmean(part[seed] for seed in both) / reference)
    some = f"at least six tasks of nine{_scaled(CLOSE_TASKS, len(shares))}"
    rule = f"At least 95 % of the Dice of scratch with all labels, on {some}."
    if not shares:
        return Claim(text, rule, NOT_TESTED, "")
    near = sum(share >= CLOSE for share in shares)
    number = (
        f"at least 95 % on {near} of {len(shares)} tasks; "
        f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %, mean {100 * fmean(shares):.1f} %"
    )
    return Claim(text, rule, _verdict(near >= _share(CLOSE_TASKS, len(shares))), number)


def _compared(
    rows: Sequence[Row], arm: str | None, reference: str | None, label_budget: str | None
) -> list[Difference]:
    return compare(rows, arm, reference, label_budget) if arm and reference and label_budget else []


def _named(shares: Sequence[str], percent: float) -> str | None:
    return next((each for each in shares if each.endswith("%") and float(each[:-1]) == percent), None)


def _share(part: float, tasks: int) -> int:
    return math.ceil(part * tasks - 1e-9)


def _scaled(part: float, tasks: int) -> str:
    return f" (of {tasks} here: {_share(part, tasks)})" if tasks not in (0, 9) else ""


def _range(gains: list[float]) -> str:
    return f"{signed(min(gains))} to {signed(max(gains))} points, mean {signed(fmean(gains))}"


def _verdict(holds: bool) -> Literal["holds", "does not hold"]:
    return "holds" if holds else "does not hold"
