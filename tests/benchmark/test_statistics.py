from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hssl.benchmark import statistics
from hssl.benchmark.statistics import (
    FILLED,
    bootstrap,
    case_values,
    compare,
    holm,
    mean_ranks,
    same_cells,
    signed_rank,
    summarise,
)


def make_row(arm: str, task: str, seed: int, cases: dict[str, float | None], **more: Any) -> dict[str, Any]:
    present = [dice for dice in cases.values() if dice is not None]
    row = {
        "arm": arm,
        "task": task,
        "label_budget": "5%",
        "fraction": 0.05,
        "seed": seed,
        "dice": float(np.mean(present)),
        "scores": [
            {
                "case": case,
                "subject": case.rstrip("'"),
                "label": 1,
                "name": "organ",
                "dice": dice,
                "hd95": 1.0,
                "nsd": dice,
            }
            for case, dice in cases.items()
        ],
    }
    return row | more


ROWS = [
    make_row("scratch", "A", 0, {"x": 0.4, "y": 0.2, "z": None}),
    make_row("scratch", "A", 1, {"x": 0.6, "y": 0.4, "z": 0.5}),
    make_row("joint", "A", 0, {"x": 0.5, "y": 0.5, "z": 0.9}),
    make_row("joint", "A", 1, {"x": 0.7, "y": 0.5, "z": 0.6}),
    make_row("joint", "A", 2, {"x": 1.0, "y": 1.0, "z": 1.0}),  # no partner
    make_row("scratch", "B", 0, {"u": 0.5}),
    make_row("joint", "B", 0, {"u": 0.4}),
]


def test_mean_and_spread_over_seeds() -> None:
    first, second, third, _ = summarise(ROWS)
    assert (first.task, first.arm, first.ran) == ("A", "scratch", {0, 1})
    assert first.mean == pytest.approx((0.3 + 0.5) / 2)
    assert first.spread == pytest.approx(0.2 / 2**0.5)
    assert second.ran == {0, 1, 2}
    assert (third.ran, third.mean, third.spread) == ({0}, 0.5, None)


def test_labels_that_are_nowhere_do_not_count() -> None:
    row = make_row("a", "A", 0, {"x": 0.4, "y": None})
    row["scores"].append({**row["scores"][0], "label": 2, "dice": 0.8})
    assert case_values(row) == {"x": pytest.approx(0.6)}


def test_differences_pair_by_seed_and_case() -> None:
    first, second = compare(ROWS, "joint", "scratch", "5%")
    assert (first.task, first.seeds, first.cases) == ("A", 2, 3)
    # x: +0.1 and +0.1; y: +0.3 and +0.1; z: -0.1, for scratch rightly finds nothing with the first seed, and +0.1.
    assert first.mean == pytest.approx((0.1 + 0.2 + 0.0) / 3)
    assert first.low == pytest.approx(0.0)
    assert first.high == pytest.approx(0.2)
    assert first.p == pytest.approx(0.5)
    assert first.p_holm == first.p  # the only test
    assert (second.cases, second.low, second.p, second.p_holm) == (1, None, None, None)
    assert second.mean == pytest.approx(-0.1)
    assert compare(ROWS, "joint", "scratch", "10%") == []


def test_means_are_over_the_cells_of_the_differences() -> None:
    rows = [
        make_row("scratch", "A", 0, {"x": 0.2, "y": None, "z": None}),
        make_row("joint", "A", 0, {"x": 0.9, "y": 0.0, "z": None}),
    ]
    scratch, joint = summarise(same_cells(rows))
    assert (scratch.mean, joint.mean) == (pytest.approx(0.6), pytest.approx(0.45))
    (found,) = compare(rows, "joint", "scratch", "5%")
    assert (found.mean, found.cases) == (pytest.approx(-0.15), 2)
    assert compare(same_cells(rows), "joint", "scratch", "5%") == [found]
    filled, same = same_cells(rows)
    assert [score["hd95"] for score in filled["scores"]] == [1.0, 0.0, 1.0]
    assert filled[FILLED] == 1
    assert same is rows[1]


def test_the_subject_is_the_unit_and_the_case_is_the_mean() -> None:
    rows = [
        make_row("scratch", "A", 0, dict.fromkeys(("x", "x'", "y", "z"), 0.5)),
        make_row("joint", "A", 0, {"x": 0.6, "x'": 0.8, "y": 0.6, "z": 0.7}),
    ]
    (found,) = compare(rows, "joint", "scratch", "5%")
    assert (found.cases, found.subjects) == (4, 3)
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.1 + 0.2) / 4)
    assert found.p == pytest.approx(0.25)  # three differences of one sign: 2 * 0.5**3
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.2))  # y alone, x or z alone


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(1).normal(0.05, 0.1, 400)
    low, high = bootstrap(values[:, None].tolist())
    assert low is not None
    assert high is not None
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.001)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.001)
    assert bootstrap(values[:, None].tolist()) == (low, high)
    # Twice the same cases tell nothing more.
    assert bootstrap(np.stack((values, values), axis=1).tolist()) == pytest.approx((low, high))


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0.05, 0.1, (37, 1)).tolist()
    whole = bootstrap(values)
    monkeypatch.setattr(statistics, "AT_ONCE", 12_345)
    assert bootstrap(values) == whole


def test_an_interval_of_few_subjects_is_no_verdict() -> None:
    for subjects, above in ((5, False), (6, True)):
        cases = [f"s{number}" for number in range(subjects)]
        rows = [make_row(arm, "A", 0, dict.fromkeys(cases, dice)) for arm, dice in (("a", 0.5), ("b", 0.4))]
        (found,) = compare(rows, "a", "b", "5%")
        assert found.low == pytest.approx(0.1)
        assert found.above == above


def test_signed_rank() -> None:
    # Ranks of 1, 2, 3, 4, -5: the smaller sum is 5; of 32 sign patterns 10 have a sum of at most 5.
    assert signed_rank([1.0, 2, 3, 4, -5]) == pytest.approx(2 * 10 / 32)
    # Ties and zeros are counted out too: of the sign patterns of 1, 1, 2 two of eight are as extreme.
    assert signed_rank([0.0, 1, 1, 2]) == pytest.approx(2 / 8)
    assert signed_rank([0.0] * 4) == 1.0
    assert signed_rank([1.0]) is None


def test_holm() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_mean_ranks_over_tasks_that_all_have() -> None:
    rows = [
        make_row(arm, task, 0, {"x": dice})
        for task, values in {"A": (0.1, 0.2, 0.3), "B": (0.5, 0.5, 0.1)}.items()
        for arm, dice in zip("abc", values, strict=True)
    ]
    rows.append(make_row("a", "C", 0, {"x": 1.0}))
    assert mean_ranks(rows, "abc", "5%") == {"a": (3 + 1.5) / 2, "b": (2 + 1.5) / 2, "c": (1 + 3) / 2}
    assert mean_ranks(rows, "ad", "5%") == {}
    # A seed that only one arm has says who is labelled, not which arm is better.
    rows.append(make_row("a", "B", 1, {"x": 0.0}))
    assert mean_ranks(rows, "abc", "5%") == {"a": 3, "b": 2, "c": 1}
    # As many seeds are not enough: they must be the same.
    rows = [make_row("a", "A", 0, {"x": 0.1}), make_row("b", "A", 1, {"x": 0.2})]
    assert mean_ranks(rows, "ab", "5%") == {}
