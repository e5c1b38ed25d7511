"""JSON Lines files that only grow: one line a finished run, whole lines only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hssl.errors import RunError

Row = Mapping[str, Any]


def row_key(row: Row) -> tuple[str, str, str, int, str]:
    """Whose result a line is, as :attr:`hssl.benchmark.experiment.Cell.key` has it."""
    return (row["arm"], row["task"], row["label_budget"], row["seed"], row["config_hash"])


class Ledger:
    """A ledger file; it need not be there yet.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """All complete lines; one that a crash has cut off does not count.

        Raises:
            RunError: A line is not JSON.
        """
        if not self.path.exists():
            return []
        *lines, _torn = self.path.read_text(encoding="utf-8").split("\n")
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise RunError(f"is damaged: {error}", path=self.path, hint="remove the line that is not JSON") from error

    def append(self, row: Row) -> None:
        """Adds a line; it is on the disk when this returns."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a crash has left of a line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
