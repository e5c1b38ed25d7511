"""Files that are either complete or absent, and folders with one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from hssl.errors import NO_SPACE, ConfigError, HsslError, RunError, first_mistake, write_hint
from hssl.text import size

if TYPE_CHECKING:
    from pydantic import BaseModel

LOCK = ".lock"
Model = TypeVar("Model", bound="BaseModel")
logger = logging.getLogger(__name__)


@contextmanager
def full_disk_named(path: Path, needed: int | None = None) -> Iterator[None]:
    """Says which file or folder could not be written, and what to do, where the disk is full or may not be written to.

    Errors that name a file elsewhere stay as they are: those are of something that is read.

    Args:
        path: The file or folder.
        needed: Its size in bytes, where that is known.

    Raises:
        ConfigError: The disk is full or may not be written to.
    """
    try:
        yield
    except OSError as error:
        hint = write_hint(error)
        elsewhere = error.filename is not None and not str(error.filename).startswith(str(path.parent))
        if hint is None or elsewhere:
            raise
        what = f"cannot be written: {error.strerror}"
        if needed is not None and error.errno in NO_SPACE:
            what += f"; it needs {size(needed)}"
        raise ConfigError(what, path=path, hint=hint) from error


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and moves it there in one step at the end.

    After an error nothing is left of it, and what `path` held before is still there.

    Args:
        path: The file.
        needed: Its size in bytes, where that is known, for a message.

    Raises:
        ConfigError: There is no folder for it.
    """
    if not path.parent.is_dir():
        raise ConfigError("there is no such folder to write to", path=path.parent, hint="make it first")
    temporary = _partial(path)
    try:
        with full_disk_named(path, needed):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` to fill, and moves it there in one step at the end.

    Raises:
        ConfigError: `path` already exists and is not an empty folder, or is the current one.
    """
    # The folder that a shell stands in would be gone from under it.
    if path.exists() and (not path.is_dir() or any(path.iterdir()) or path.samefile(Path.cwd())):
        raise ConfigError("already exists", path=path, hint="give a new folder")
    temporary = _partial(path)
    try:
        with full_disk_named(path):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _partial(path: Path) -> Path:
    """A unique name beside `path`: several processes may write the same, each the same content."""
    return path.with_name(f".partial-{uuid4().hex[:8]}-{path.name}")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keeps a second writer out of a folder; the lock goes with the process, however it ends.

    Args:
        folder: The folder, which must exist.
        what: What is being done in it, for the message.

    Raises:
        RunError: Another process has the lock.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another {what} is running in this folder", path=folder, hint="wait for it") from error
        except OSError as error:
            logger.warning("%s: this disk has no locks (%s); see that no other %s writes here", folder, error, what)
        yield


def flush(path: Path) -> None:
    """Waits until a file is on the disk, where a power cut cannot empty it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_existing(path: Path) -> None:
    """Refuses to replace a file or folder.

    Raises:
        ConfigError: `path` already exists.
    """
    if path.exists():
        raise ConfigError("already exists", path=path, hint="give a new file, or remove it first")


def read_json(path: Path, model: type[Model], kind: type[HsslError] = RunError, *, hint: str) -> Model:
    """Reads a JSON file of this package.

    Args:
        path: The file.
        model: What it holds.
        kind: The error to raise.
        hint: What to do about a file that is damaged or cannot be read.

    Raises:
        HsslError: It cannot be read, or does not hold this; of the requested kind.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise kind(f"cannot be read: {error.strerror or error}", path=path, hint=hint) from error
    except ValidationError as error:
        raise kind(f"is damaged: {first_mistake(error)}", path=path, hint=hint) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step: no reader sees half of it."""
    content = text.encode()
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)
