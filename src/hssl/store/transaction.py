"""One writer at a time, and a store that is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hssl.errors import StoreError
from hssl.files import LOCK, locked, write_text
from hssl.store.splits import Splits
from hssl.store.store import INDEX, SPLITS, Index, Store

STAGING = ".partial"
KINDS = ("images", "labels")


@contextmanager
def exclusive(output: Path) -> Iterator[Store | None]:
    """Locks a store, new or not, against other commands; after an error nothing of a new store is left.

    What is being made lies in the store's own folder, so that it is on the same disk, and that folder may be the root
    of one.

    Yields:
        The store as it is now; None where there is none yet.
    """
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "hssl aggregate"):
        existing = existing_store(output)
        _clear(output)  # what a command that was killed has left
        try:
            yield existing
        finally:
            _clear(output)
            if not (output / INDEX).exists():
                (output / LOCK).unlink(missing_ok=True)
                if fresh:
                    with suppress(OSError):  # somebody else has put something there
                        output.rmdir()


def _clear(output: Path) -> None:
    """Removes what is being made, and, where that is the whole store, what of it lies in its place already."""
    if not (output / INDEX).exists():
        for kind in KINDS:
            shutil.rmtree(output / kind, ignore_errors=True)
        (output / SPLITS).unlink(missing_ok=True)
    shutil.rmtree(output / STAGING, ignore_errors=True)  # the last, for it says that the rest is ours


def existing_store(output: Path) -> Store | None:
    """The store at `output`, or None where one can be made."""
    if (output / INDEX).exists():
        return Store.open(output)
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name} if output.exists() else set()
    if names - ({STAGING, LOCK, SPLITS, *KINDS} if STAGING in names else {LOCK}):
        raise StoreError("already exists and is not a store", path=output, hint="choose another output")
    return None


def _write_index(folder: Path, index: Index, splits: Splits) -> None:
    """Writes the split, then the index, each in one step: what the index does not name is not there."""
    for name, model in ((SPLITS, splits), (INDEX, index)):
        write_text(folder / name, model.model_dump_json(indent=1) + "\n")


def commit(existing: Store | None, output: Path, staging: Path, index: Index, splits: Splits) -> None:
    """Moves the arrays of new tasks into the store, then names them in its index."""
    for task in index.tasks:
        for kind in KINDS:
            target = output / kind / task
            if target.exists():  # left by an interrupted run, and named in no index
                shutil.rmtree(target)
            target.parent.mkdir(exist_ok=True)
            (staging / kind / task).replace(target)
    if existing is not None:
        index = Index(tasks=existing.tasks | index.tasks, cases=[*existing.index.cases, *index.cases])
        splits = existing.splits.model_copy(update={"tasks": existing.splits.tasks | splits.tasks})
    _write_index(output, index, splits)
