"""The split into training, validation and test: by subject, made once, stored with the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from pydantic import BaseModel, ConfigDict

from hssl.config import GivenSplit, parse_label_budget, split_slices
from hssl.errors import StoreError


class Split(BaseModel):
    """The subjects of one task, each in exactly one part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: list[str]
    val: list[str]
    test: list[str]


class Splits(BaseModel):
    """What ``splits.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    fractions: tuple[float, float, float]
    tasks: dict[str, Split]


def make_split(
    task: str,
    with_masks: Sequence[str],
    without_masks: Sequence[str] = (),
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.60, 0.15, 0.25),
) -> Split:
    """Splits the subjects of a task at random; the same arguments give the same split.

    Subjects without any mask cannot validate or test anything, so they all train. Of three or more subjects
    with masks each part whose fraction is not 0 gets at least one; two are one for training and one for test;
    a single one is for training.

    Args:
        task: What the draw belongs to, besides the seed: the name of the task's folder.
        with_masks: Subjects with at least one mask.
        without_masks: The others.
        seed: Seed of the draw.
        fractions: Shares of training, validation and test.
    """
    subjects = _shuffled(sorted(with_masks), task, seed)
    n = len(subjects)
    val, test = (max(1, _rounded(share * n)) if share > 0 else 0 for share in fractions[1:])
    if n < 3:
        val, test = 0, min(test, n - 1) if n else 0
    most = n - 1 if fractions[0] > 0 else n
    while n and val + test > most:  # rounding up has left no subject to train, or takes more than there are
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    train = n - val - test
    return Split(
        train=sorted([*subjects[:train], *without_masks]),
        val=sorted(subjects[train : train + val]),
        test=sorted(subjects[train + val :]),
    )


def check_given(task: str, given: GivenSplit, with_masks: Collection[str], without_masks: Collection[str] = ()) -> None:
    """Checks the split that a user names.

    Args:
        task: Name of the task, for messages.
        given: Subjects for validation and test.
        with_masks: Subjects with at least one mask.
        without_masks: The others.

    Raises:
        StoreError: A subject for validation or test is missing or has no mask, or none with a mask is left to train.
    """
    named = {*given.val, *given.test}
    if missing := sorted(named.difference(with_masks)):
        lacks = "has no mask" if missing[0] in without_masks else "is not there"
        raise StoreError(
            f"splits: subject '{missing[0]}' of task '{task}' {lacks}",
            hint=f"subjects with masks: {', '.join(sorted(with_masks)[:5])}{' ...' if len(with_masks) > 5 else ''}",
        )
    if with_masks and named == {*with_masks}:
        raise StoreError(
            f"splits: task '{task}' has no subject with a mask left to train",
            hint="leave at least one subject with a mask out of val and test",
        )


def given_split(
    task: str,
    given: GivenSplit,
    merged: Mapping[str, str],
    with_masks: Collection[str],
    without_masks: Collection[str] = (),
) -> Split:
    """The split that a user names, after subjects that show the same images have become one.

    Args:
        task: Name of the task, for messages.
        given: Subjects for validation and test, by the names that the files have.
        merged: Subject that each of these names stands for now.
        with_masks: Subjects with at least one mask, by the names of now.
        without_masks: The others.

    Raises:
        StoreError: As `check_given`, or two names that are one subject were put into different parts.
    """
    parts = dict.fromkeys(merged, "train") | dict.fromkeys(given.val, "val") | dict.fromkeys(given.test, "test")
    for name, subject in merged.items():
        if parts[name] != parts[subject]:
            raise StoreError(
                f"splits: '{name}' and '{subject}' of task '{task}' show the same image, and are in different parts",
                hint="put them into the same one",
            )
    val, test = (tuple(sorted({merged.get(name, name) for name in part})) for part in (given.val, given.test))
    check_given(task, GivenSplit(val=val, test=test), with_masks, without_masks)
    return Split(train=sorted({*with_masks, *without_masks}.difference(val, test)), val=list(val), test=list(test))


def labelled_subjects(
    task: str,
    candidates: Sequence[str],
    labels: str | int | Sequence[str],
    seed: int,
    *,
    path: Path | None = None,
) -> list[str]:
    """Chooses the training subjects whose masks may be used; a smaller choice lies inside every larger one.

    Args:
        task: Name of the task; each has its own draw.
        candidates: Training subjects with masks.
        labels: A percentage (``"5%"``, at least one subject), a number of subjects (``3`` or ``"3"``), or
            their ids (a list, or one text with commas).
        seed: Seed of the order in which subjects are taken.
        path: The store, for messages.

    Raises:
        StoreError: More are requested than there are, or one is no training subject with a mask.
    """
    if not candidates:
        raise StoreError(
            f"task '{task}' has no training subject with a mask",
            path=path,
            hint="aggregate masks, or with a split of your own (--splits)",
        )
    order = _shuffled(sorted(candidates), f"{task}/labels", seed)
    labels, _ = split_slices(labels)
    if isinstance(labels, str):
        labels = parse_label_budget(labels)
    if isinstance(labels, str):
        return order[: _count_of_percentage(labels, len(order), path)]
    if isinstance(labels, int):
        if not 1 <= labels <= len(order):
            raise StoreError(
                f"{labels} labelled subjects requested, task '{task}' has {len(order)} for training",
                path=path,
                hint=f"write '{labels},' for the subject of this name"
                if str(labels) in order
                else f"take 1 to {len(order)}, or a share such as 5%",
            )
        return order[:labels]
    unknown = [subject for subject in labels if subject not in order]
    if unknown or not labels:
        hint = f"there are {', '.join(sorted(candidates)[:5])}{' ...' if len(order) > 5 else ''}"
        if len(unknown) == 1 and (share := _share(unknown[0])):
            hint = f"for a share write '{100 * share:g}%'"
        raise StoreError(
            f"{', '.join(unknown) or 'nobody'}: not a training subject of task '{task}' with a mask",
            path=path,
            hint=hint,
        )
    return list(dict.fromkeys(labels))


def _share(text: str) -> float | None:
    try:
        return share if 0 < (share := float(text)) < 1 else None
    except ValueError:
        return None


def _count_of_percentage(text: str, available: int, path: Path | None) -> int:
    try:
        percentage = float(text[:-1])
    except ValueError:
        percentage = math.nan
    if not 0 < percentage <= 100:
        raise StoreError(f"'{text}' is not a percentage above 0 and up to 100", path=path, hint="write for example 5%")
    return max(1, _rounded(percentage * available / 100))


def _rounded(value: float) -> int:
    """Rounds halves up, so that a larger share never gets fewer; 1e-9 forgives 0.15 * 10 = 1.4999."""
    return math.floor(value + 0.5 + 1e-9)


def _shuffled(subjects: Sequence[str], task: str, seed: int) -> list[str]:
    order = np.random.default_rng([seed, crc32(task.encode())]).permutation(len(subjects))
    return [subjects[index] for index in order]
