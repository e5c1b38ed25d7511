"""See it: a local page of stores, runs and benchmarks, and volumes in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hssl.errors import ConfigError, install
from hssl.viewer.notebook import show

__all__ = ["show", "view"]


def _print(address: str) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()


def view(paths: Path | str | Sequence[Path | str], *, port: int = 0, ready: Callable[[str], None] = _print) -> None:
    """Serves a page of stores, runs and benchmarks to this machine alone, until it is interrupted.

    The address holds a token that nobody can guess. The page loads nothing from a network, and shows no file outside of
    the given folders.

    Args:
        paths: Stores, runs, benchmarks, or folders of them.
        port: Where to listen; 0 takes any that is free.
        ready: Called with the address once somebody can ask for it; prints it by default.

    Raises:
        ConfigError: There is nothing to show, the port is taken, or the extra ``view`` is not installed.
    """
    try:
        from hssl.viewer.server import serve
    except ImportError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(f"the page needs {error.name}", hint=install("view")) from error
    serve([paths] if isinstance(paths, Path | str) else paths, port, ready)
