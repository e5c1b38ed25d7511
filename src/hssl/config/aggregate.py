"""Options of ``hssl aggregate``."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hssl.config.base import Fraction, StageConfig, SubjectName, registered
from hssl.registry import LAYOUTS


class GivenSplit(StageConfig):
    """Subjects for validation and test, by name; all others train.

    Attributes:
        val: Subjects for validation.
        test: Subjects for test.
    """

    val: tuple[SubjectName, ...] = ()
    test: tuple[SubjectName, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _names_val_and_test(cls, value: Any) -> Any:
        if isinstance(value, list | tuple | str):
            raise ValueError("should be {val: [...], test: [...]}")
        if isinstance(value, dict) and "train" in value:
            raise ValueError("subjects that are not named train: leave 'train' out")
        return value

    @model_validator(mode="after")
    def _once(self) -> Self:
        named = [*self.val, *self.test]
        if twice := sorted({subject for subject in named if named.count(subject) > 1}):
            raise ValueError(f"subject '{twice[0]}' is named twice")
        return self


class AggregateConfig(StageConfig):
    """How raw challenges become a store.

    Attributes:
        layout: Reader to use; None finds it from the folder.
        subject: Regular expression over the case id whose first group (or whole match) is the subject.
        channel: Channel of multi-channel sources by name or number; None makes one task of each channel.
        task: Name of the task, for a single source; None takes it from the folder.
        window: CT window (low, high) in HU, for sources that are CT or do not say; None scales each case by robust
            percentiles.
        spacing: In-plane spacing in mm (rows, columns) for all tasks; None takes each task's median.
        orientation: Where stored rows, columns and slices point, for example ``PLS``; None decides by task.
        fractions: Shares of the subjects in training, validation and test.
        seed: Seed of the split.
        splits: Split of your own, by name of the source's folder; those without one are split at random.
        skip_bad: Leave bad cases out and list them, instead of stopping before anything is written.
        follow_links: Read files that a ``dataset.json`` lists outside of its folder, too.
        accept_unchanged: Of corrected masks: take those that are as they were exported, too.
        workers: Threads; None uses every core.
    """

    layout: str | None = None
    subject: str | None = None
    channel: str | int | None = None
    task: str | None = None
    window: tuple[float, float] | None = None
    spacing: tuple[PositiveFloat, PositiveFloat] | None = None
    orientation: str | None = None
    fractions: tuple[Fraction, Fraction, Fraction] = (0.60, 0.15, 0.25)
    seed: int = Field(0, ge=0)
    splits: dict[str, GivenSplit] | None = None
    skip_bad: bool = False
    follow_links: bool = False
    accept_unchanged: bool = False
    workers: PositiveInt | None = None

    @field_validator("layout")
    @classmethod
    def _layout_is_known(cls, layout: str | None) -> str | None:
        return layout if layout is None else registered(LAYOUTS, layout)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("the three fractions must add up to 1")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("a window is (low, high) with low < high")
        if self.orientation is not None:
            axes = sorted(
                "".join(sorted(line for line in ("LR", "AP", "IS") if letter in line)) for letter in self.orientation
            )
            if axes != ["AP", "IS", "LR"]:
                raise ValueError("an orientation is three letters, one each of L/R, A/P and I/S, like PLS")
        return self
