"""One error family: what is wrong, in which file, and what to do about it.

Every error that a user can cause is an :class:`HsslError`. The command line prints it as one line and
exits with code 2; the Python API raises it. Anything else that escapes is a bug.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import ValidationError

Item = TypeVar("Item")
Result = TypeVar("Result")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk."""


def install(extra: str) -> str:
    """The hint of an error that an extra of this package would have prevented."""
    return f"pip install '.[{extra}]' in hssl's folder"


def first_line(error: BaseException) -> str:
    """What an error of another package says, without its trace; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def first_mistake(error: ValidationError) -> str:
    """The first thing that does not fit a model, with its place in the file."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def write_hint(error: OSError) -> str | None:
    """What to do where a disk is full or may not be written to; None for any other error."""
    if error.errno in NO_SPACE:
        return "free some space on this disk, and give the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the rights of file and folder, or give another place"
    return None


class HsslError(Exception):
    """Something that the user can correct.

    Args:
        what: What is wrong, without a trailing full stop.
        path: The file or folder it concerns, if there is one.
        hint: What to do about it. Every refusal has one.
    """

    def __init__(self, what: str, *, path: Path | str | None = None, hint: str) -> None:
        self.what = what
        self.path = Path(path) if path is not None else None
        self.hint = hint
        where = f"{self.path}: " if self.path is not None else ""
        text = f"{where}{what} ({hint})".replace("\n", " ")
        super().__init__(text.encode("utf-8", "backslashreplace").decode())  # a file's name need not be UTF-8

    def __reduce__(self) -> tuple[Callable[[], HsslError], tuple[()]]:
        """Lets it come out of another process as it is; exceptions are made again from their text by default."""
        return partial(type(self), self.what, path=self.path, hint=self.hint), ()


class ConfigError(HsslError):
    """An option or a configuration file is not valid."""


class SourceError(HsslError):
    """A folder of raw data, or one case in it, cannot be read."""


class StoreError(HsslError):
    """An aggregated store is missing, damaged or does not hold what is needed."""


class RunError(HsslError):
    """A run folder is missing, damaged or does not fit its use."""


class LeakError(HsslError):
    """Subjects to evaluate were seen by training or pre-training."""


class TrainingError(HsslError):
    """Training cannot go on: the loss is not finite or the features have collapsed."""


@contextmanager
def name_bad_file(path: Path | str, kind: type[HsslError] = SourceError) -> Iterator[None]:
    """Turns whatever is raised while a file is read into an error that names the file.

    A damaged file makes the library that reads it raise almost anything, so every exception counts. An
    :class:`HsslError` that names a file already passes through; one that names none gets `path`.

    Args:
        path: The file.
        kind: What is raised.
    """
    try:
        yield
    except HsslError as error:
        if error.path is not None:
            raise
        raise kind(error.what, path=path, hint=error.hint) from error
    except FileNotFoundError as error:
        raise kind("no such file", path=path, hint="check the name, and that its disk is there") from error
    except PermissionError as error:
        raise kind("may not be read", path=path, hint="change its permissions") from error
    except MemoryError as error:
        raise kind(
            "needs more memory than there is",
            path=path,
            hint="close other programs, crop the image, or take a larger machine",
        ) from error
    except Exception as error:
        raise kind(
            f"cannot be read, it may be truncated or damaged: {first_line(error)}",
            path=path,
            hint="get it again from where it came, or export it again",
        ) from error


def attempt(function: Callable[[Item], Result], item: Item) -> Result | HsslError:
    """What `function` returns of `item`, or the error that it raises where that is bad."""
    try:
        return function(item)
    except HsslError as error:
        return error
