"""One pydantic model per stage: validated before anything runs, saved with every run, read back on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from hssl.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]


class StageConfig(BaseModel):
    """Base of every configuration: unknown keys are errors, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def load(cls, path: Path | None = None, **overrides: Any) -> Self:
        """Reads a YAML file, puts `overrides` that are not None on top, and validates.

        Args:
            path: A YAML (or JSON) file with any subset of the fields; None for the defaults.
            **overrides: Fields by name, ``None`` meaning "not given".

        Raises:
            ConfigError: The file cannot be read, or a value is not valid; the message names the field.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError(f"not a readable YAML file: {error}", path=path) from error
            if not isinstance(loaded, dict | None):
                raise ConfigError("holds no options", path=path, hint="write one 'name: value' a line")
            values.update(loaded or {})
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls.checked(values, path=path)

    @classmethod
    def checked(cls, values: dict[str, Any], *, path: Path | None = None) -> Self:
        """Validates `values`; a mistake becomes a one-line :class:`ConfigError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or cls.__name__
            raise ConfigError(f"option '{name}': {first['msg']}", path=path) from error


class AggregateConfig(StageConfig):
    """How raw challenges become a store.

    Attributes:
        layout: Reader to use; None finds it from the folder.
        subject: Regular expression over the case id whose first group (or whole match) is the subject.
        channel: Channel of multi-channel sources by name or number; None makes one task of each channel.
        task: Name of the task, for a single source; None takes it from the folder.
        window: CT window (low, high) in HU; None scales each case by robust percentiles.
        spacing: In-plane spacing in mm (rows, columns) for all tasks; None takes each task's median.
        orientation: Where stored rows, columns and slices point, for example ``PLS``; None decides by task.
        fractions: Shares of the subjects in training, validation and test.
        seed: Seed of the split.
        skip_bad: Leave bad cases out and list them, instead of stopping before anything is written.
        workers: Processes; None uses every core.
    """

    layout: Literal["msd", "nnunet", "nifti", "images2d", "dicom"] | None = None
    subject: str | None = None
    channel: str | int | None = None
    task: str | None = None
    window: tuple[float, float] | None = None
    spacing: tuple[PositiveFloat, PositiveFloat] | None = None
    orientation: str | None = None
    fractions: tuple[Fraction, Fraction, Fraction] = (0.60, 0.15, 0.25)
    seed: int = 0
    skip_bad: bool = False
    workers: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("the three fractions must add up to 1")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("a window is (low, high) with low < high")
        return self
