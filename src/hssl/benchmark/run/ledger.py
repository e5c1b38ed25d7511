"""JSON Lines files that only grow: one line a finished run, whole lines only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hssl.benchmark.run.records import LedgerRow, PretrainingRow
from hssl.errors import RunError, first_mistake

Row = Mapping[str, Any]
LEDGER, PRETRAINING = "ledger.jsonl", "pretraining.jsonl"
"""Fine-tunings and pre-trainings of a benchmark."""


def row_key(row: Row) -> tuple[str, str, str, int, str]:
    """The cell that a line belongs to, as :attr:`hssl.benchmark.experiment.Cell.key` has it."""
    return (row["arm"], row["task"], row["label_budget"], row["seed"], row["config_hash"])


class Ledger:
    """A ledger file, which need not exist yet; its name says what a line holds.

    Args:
        path: The file, :data:`LEDGER` or :data:`PRETRAINING` of a benchmark.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model: type[BaseModel] = PretrainingRow if path.name == PRETRAINING else LedgerRow

    def rows(self) -> list[Row]:
        """All complete lines; one that a crash has cut off does not count.

        Raises:
            RunError: The file cannot be read, or a line does not hold what it should.
        """
        try:
            *lines, _torn = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(
                f"cannot be read: {error}", path=self.path, hint="check that the file is there and may be read"
            ) from error
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def _parsed(self, number: int, line: bytes) -> Row:
        try:
            return self._model.model_validate_json(line).model_dump(mode="json")
        except ValidationError as error:
            raise RunError(
                f"line {number} is damaged: {first_mistake(error)}",
                path=self.path,
                hint="remove this line, and the same benchmark enters the run again",
            ) from error

    def append(self, row: Row) -> None:
        """Adds a line; it is on the disk when this returns."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a crash has left of a line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
