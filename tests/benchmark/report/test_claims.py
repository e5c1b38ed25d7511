from __future__ import annotations

from typing import Any

import pytest

from hssl.benchmark import Experiment
from hssl.benchmark.report.claims import check_claims
from hssl.benchmark.report.roles import Roles, find_roles

ROLES = Roles("scratch", "single", "joint", None, (), ())


def make_rows(values: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """Dice of one case for each (arm, labels), one value a task."""
    return [
        {
            "arm": arm,
            "task": f"T{number}",
            "label_budget": label_budget,
            "fraction": float(label_budget[:-1]) / 100,
            "seed": 0,
            "dice": dice,
            "scores": [{"case": "x", "subject": "x", "label": 1, "dice": dice}],
        }
        for (arm, label_budget), row in values.items()
        for number, dice in enumerate(row)
    ]


def verdicts(values: dict[tuple[str, str], list[float]]) -> list[str]:
    return [claim.verdict for claim in check_claims(make_rows(values), ROLES)]


def test_claims_that_hold() -> None:
    values = {
        ("scratch", "5%"): [0.4, 0.4, 0.4],
        ("single", "5%"): [0.5, 0.45, 0.42],
        ("joint", "5%"): [0.6, 0.5, 0.43],
        ("joint", "10%"): [0.8, 0.77, 0.2],
        ("scratch", "100%"): [0.8, 0.8, 0.8],
    }
    claims = check_claims(make_rows(values), ROLES)
    assert [claim.verdict for claim in claims] == ["holds"] * 4
    assert claims[0].number == "5 % of the labels: higher on 3 of 3 tasks, +1.00 to +10.00 points, mean +5.33"
    assert claims[2].number == "+3.00 to +20.00 points, mean +11.00"
    assert claims[0].rule == "Higher mean Dice on at least eight tasks of nine (of 3 here: 3)."
    assert claims[3].number == "at least 95 % on 2 of 3 tasks; 25.0 to 100.0 %, mean 73.8 %"


def test_ten_percent_is_held_against_the_same_seeds() -> None:
    """Another seed is other subjects: what only one of the two has run does not count."""
    rows = [
        {**make_rows({key: [dice]})[0], "seed": seed}
        for key, values in {("joint", "10%"): [0.6, 0.8, 0.82], ("scratch", "100%"): [0.7]}.items()
        for seed, dice in enumerate(values)
    ]
    assert check_claims(rows, ROLES)[3].number == "at least 95 % on 0 of 1 tasks; 85.7 to 85.7 %, mean 85.7 %"
    assert check_claims([row for row in rows if (row["arm"], row["seed"]) != ("joint", 0)], ROLES)[3].number == ""


def test_claims_that_do_not() -> None:
    values = {
        ("scratch", "5%"): [0.4, 0.4],
        ("single", "5%"): [0.5, 0.39],
        ("joint", "5%"): [0.6, 0.38],
        ("joint", "10%"): [0.8, 0.2],
        ("scratch", "100%"): [0.8, 0.8],
    }
    assert verdicts(values) == ["does not hold"] * 4


def test_claims_not_tested() -> None:
    assert [claim.verdict for claim in check_claims([], ROLES)] == ["not tested"] * 4
    assert verdicts({("joint", "20%"): [0.5], ("single", "20%"): [0.4]}) == ["holds", *["not tested"] * 3]


def test_roles_by_what_an_arm_does() -> None:
    experiment = Experiment.checked(
        {
            "store": "store",
            "arms": {
                "zero": {"domains": "none"},
                "simclr": {"pretrain": {"objective": "simclr"}},
                "then-own": {"adapt": {"steps": 5}},
                "all": {},
                "own": {"domains": "single"},
                "no-image": {"pretrain": {"options": {"weights": {"image": 0}}}},
            },
        }
    )
    assert find_roles(experiment) == Roles("zero", "own", "all", "then-own", ("simclr",), ("no-image",))
    assert find_roles(experiment).main == ("zero", "own", "all", "then-own")


@pytest.mark.parametrize(("tasks", "wins", "verdict"), [(9, 8, "holds"), (9, 7, "does not hold"), (4, 4, "holds")])
def test_most_tasks(tasks: int, wins: int, verdict: str) -> None:
    values = {("single", "5%"): [0.5] * tasks, ("joint", "5%"): [0.6] * wins + [0.4] * (tasks - wins)}
    assert verdicts(values)[0] == verdict
