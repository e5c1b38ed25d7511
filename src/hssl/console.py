"""What the command line prints: results on stdout, everything else on stderr.

Rooms below never print. They log to the logger ``hssl`` and draw progress on rich's own console, and
:func:`configure` decides what of that is seen.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def configure(*, quiet: bool = False, verbose: bool = False) -> None:
    """Sends messages and progress to stderr, and sets how much of them is shown.

    Colour follows the terminal; ``NO_COLOR`` switches it off.

    Args:
        quiet: Only warnings and errors; no progress bars.
        verbose: Debug messages too.
    """
    import rich
    from rich.console import Console
    from rich.logging import RichHandler

    rich.reconfigure(stderr=True, quiet=quiet)
    handler: logging.Handler = logging.StreamHandler()  # without a terminal there is no width: one line a message
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, show_level=False)
    log = logging.getLogger("hssl")
    log.handlers = [handler]
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def print_rows(rows: Sequence[Mapping[str, Any]], *, title: str = "", as_json: bool = False) -> None:
    """Prints rows with the same keys as a table, or as a JSON list of objects.

    Args:
        rows: One mapping per row; the first one's keys are the columns.
        title: Heading of the table.
        as_json: JSON instead, unrounded.
    """
    if as_json:
        print_json(list(rows))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, title_justify="left", header_style="bold")
    for name in rows[0] if rows else ():
        number = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(escape(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    print_table(table)


def print_table(table: RenderableType) -> None:
    """Prints a table, or a group of them, to stdout."""
    from rich.console import Console

    # A pipe has no width of its own: there, a line is as long as it needs to be.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_json(value: Any) -> None:
    """Writes one JSON value to stdout; what JSON does not know is written as text, NaN as null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def print_paths(paths: Path | str | Sequence[Path | str], *, as_json: bool = False) -> None:
    """Prints what has been written: paths or addresses one a line, or as JSON; a single one is JSON text."""
    several = [paths] if isinstance(paths, Path | str) else paths
    if as_json:
        print_json(paths)
        return
    for path in several:
        print_line(str(path))


def print_line(text: str) -> None:
    """Writes one line to stdout."""
    sys.stdout.write(text + "\n")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
