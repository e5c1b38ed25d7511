from __future__ import annotations

from collections.abc import Sequence

import pytest

from hssl.errors import StoreError
from hssl.store import make_split
from hssl.store.splits import labelled_subjects

SUBJECTS = [f"s{number:02d}" for number in range(40)]


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (5, 2, 3)), (40, (24, 6, 10))],
)
def test_sizes(n: int, expected: tuple[int, int, int]) -> None:
    split = make_split("T", SUBJECTS[:n])
    assert (len(split.train), len(split.val), len(split.test)) == expected


@pytest.mark.parametrize("n", range(1, 41))
def test_nobody_is_in_two_parts_and_nobody_is_left_out(n: int) -> None:
    for fractions in ((0.60, 0.15, 0.25), (0, 0.5, 0.5), (0, 0.3, 0.7), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        split = make_split("T", SUBJECTS[:n], seed=n, fractions=fractions)
        assert sorted(split.train + split.val + split.test) == SUBJECTS[:n]


def test_the_seed_and_the_task_decide_and_the_order_given_does_not() -> None:
    split = make_split("T", SUBJECTS, seed=1)
    assert split == make_split("T", SUBJECTS[::-1], seed=1)
    assert split != make_split("T", SUBJECTS, seed=2)
    assert split != make_split("U", SUBJECTS, seed=1)


def test_other_fractions() -> None:
    split = make_split("T", SUBJECTS, fractions=(0.5, 0, 0.5))
    assert (len(split.train), len(split.val), len(split.test)) == (20, 0, 20)
    assert make_split("T", SUBJECTS, fractions=(0, 0, 1)).test == SUBJECTS


def test_subjects_without_masks_train() -> None:
    split = make_split("T", SUBJECTS[:20], SUBJECTS[20:])
    assert set(SUBJECTS[20:]) < set(split.train)
    assert (len(split.val), len(split.test)) == (3, 5)
    assert make_split("T", [], SUBJECTS).train == SUBJECTS


def test_fractions_are_nested() -> None:
    chosen: list[str] = []
    for labels in (1, "5%", "10%", 6, "25%", "50%", "100%"):
        more = labelled_subjects("T", SUBJECTS, labels, seed=3)
        assert more[: len(chosen)] == chosen
        chosen = more
    assert sorted(chosen) == SUBJECTS


@pytest.mark.parametrize(("labels", "count"), [("5%", 2), ("0.1%", 1), ("7.5 %", 3), ("3", 3), (40, 40)])
def test_counts(labels: str | int, count: int) -> None:
    assert len(labelled_subjects("T", SUBJECTS, labels, seed=0)) == count


def test_labels_depend_on_the_seed() -> None:
    assert len({tuple(labelled_subjects("T", SUBJECTS, 3, seed)) for seed in range(5)}) == 5


def test_named_subjects() -> None:
    assert labelled_subjects("T", SUBJECTS, ["s05", "s01", "s05"], 0) == ["s05", "s01"]
    assert labelled_subjects("T", SUBJECTS, "s05, s01", 0) == ["s05", "s01"]


@pytest.mark.parametrize("labels", ["0%", "101%", "x%", 0, 41, "41", ["s99"], "s99", [], "nan%"])
def test_what_there_is_not_is_refused(labels: str | int | Sequence[str]) -> None:
    with pytest.raises(StoreError):
        labelled_subjects("T", SUBJECTS, labels, 0)


def test_a_task_without_masks_has_no_labelled_subjects() -> None:
    with pytest.raises(StoreError, match="no training subject with a mask"):
        labelled_subjects("T", [], "5%", 0)


@pytest.mark.parametrize(("budget", "same"), [("2@5", 2), ("50%@1", "50%"), ("a,b@3", ["a", "b"])])
def test_slices_of_a_budget_leave_the_subjects_as_they_are(budget: str, same: object) -> None:
    subjects = ["a", "b", "c", "d"]
    assert labelled_subjects("T", subjects, budget, 0) == labelled_subjects("T", subjects, same, 0)
