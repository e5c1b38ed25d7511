"""What lies in the folders that the page may show, and the guard that keeps it inside them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hssl.errors import ConfigError, HsslError
from hssl.runs import Run
from hssl.runs.run import CHECKPOINT, INFO, WEIGHTS
from hssl.store import CaseRecord, Store
from hssl.store.store import INDEX, SPLITS

Kind = Literal["store", "run", "benchmark"]
EXPERIMENT = "experiment.json"
"""In the folder of a benchmark; :data:`hssl.benchmark.run.runner.EXPERIMENT`, whose room takes long to import."""
DEPTH = 3
"""Folders below a given one that are looked into."""
logger = logging.getLogger(__name__)


class OutsideError(HsslError):
    """A file lies outside of the folders that were given, perhaps by a link."""


class NotThereError(HsslError):
    """The page has nothing under this address."""

    def __init__(self, what: str, *, path: Path | str | None = None, hint: str = "go back to the first page") -> None:
        super().__init__(what, path=path, hint=hint)


@dataclass(frozen=True)
class Place:
    """A store, a run or a benchmark.

    Attributes:
        id: What an address calls it; the same as long as its path is.
        kind: What it is.
        path: The folder, resolved.
        name: What the page calls it.
    """

    id: str
    kind: Kind
    path: Path
    name: str


class Places:
    """The folders that were given, and what lies in them now.

    Args:
        paths: Stores, runs, benchmarks, or folders of them.

    Raises:
        ConfigError: One is no folder, or there is nothing to show in any of them.
    """

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.roots = [Path(path).resolve() for path in paths]
        for path, root in zip(paths, self.roots, strict=True):
            if not root.is_dir():
                raise ConfigError(
                    "is no folder", path=path, hint="give a store, a run, a benchmark or a folder of them"
                )
        if not self.listed():
            what = "holds no store, no run and no benchmark"
            raise ConfigError(
                what, path=paths[0] if paths else ".", hint="make one with 'hssl aggregate' or 'hssl pretrain'"
            )

    def guard(self, path: Path) -> Path:
        """The same path, if what it leads to lies inside a given folder.

        Raises:
            OutsideError: It does not.
        """
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self.roots):
            hint = "give the folder that it is in as a PATH of hssl view too"
            raise OutsideError("leads out of the folders that may be shown", path=path, hint=hint)
        return path

    def listed(self) -> list[Place]:
        """What is there now: stores, then benchmarks, then runs, each in the order of the paths.

        What cannot be opened is there too: its page says what is wrong with it.
        """
        found: dict[Path, Place] = {}
        for root in self.roots:
            for path, kind in _walk(root, DEPTH):
                if path.resolve().is_relative_to(root) and path.resolve() not in found:
                    name = path.name if path == root else str(path.relative_to(root.parent))
                    found[path.resolve()] = Place(_id(path.resolve()), kind, path.resolve(), name)
        order = ("store", "benchmark", "run")
        return sorted(found.values(), key=lambda place: order.index(place.kind))

    def find(self, kind: Kind, id: str) -> Place:
        """The place of this kind and id.

        Raises:
            NotThereError: There is none.
        """
        for place in self.listed():
            if place.kind == kind and place.id == id:
                return place
        raise NotThereError(f"there is no such {kind} here any more")

    def store(self, place: Place) -> Store:
        """Opens a store.

        Raises:
            StoreError: It is damaged.
            OutsideError: One of its files is a link out of the given folders.
        """
        for name in (INDEX, SPLITS):
            self.guard(place.path / name)
        return Store.open(place.path)

    def run(self, place: Place) -> Run:
        """Opens a run; its weights are not read.

        Raises:
            RunError: It is damaged.
            OutsideError: One of its files is a link out of the given folders.
        """
        for path in (*place.path.iterdir(), *(place.path / CHECKPOINT).glob("*/*")):
            self.guard(path)
        return Run.open(place.path)

    def array(self, store: Store, kind: Literal["images", "labels"], case: CaseRecord) -> CaseRecord:
        """The same case, if its stored array lies inside a given folder.

        Raises:
            OutsideError: It does not.
        """
        self.guard(store.array_file(kind, case))
        return case

    def store_of(self, run: Run, stores: Mapping[Place, str | None] | None = None) -> Place | None:
        """The store that a run was made from, where it is among the given ones: by its content, else by its path."""
        data, known = run.info.provenance.get("data"), run.info.provenance.get("store_path")
        return self.store_with(data.get("store") if isinstance(data, dict) else None, known, stores)

    def store_with(self, hash: object, path: object, stores: Mapping[Place, str | None] | None = None) -> Place | None:
        """The given store with this content, else the one at this path; None where there is neither."""
        stores = self._stores() if stores is None else stores
        same = (place for place, content in stores.items() if content is not None and content == hash)
        there = (place for place in stores if isinstance(path, str) and place.path == Path(path).resolve())
        return next(same, None) or next(there, None)

    def _stores(self) -> dict[Place, str | None]:
        """The stores with the hashes of their contents; None where one cannot be opened."""
        found: dict[Place, str | None] = {}
        for place in self.listed():
            if place.kind == "store":
                try:
                    found[place] = self.store(place).hash
                except HsslError as error:
                    logger.warning("%s", error)
                    found[place] = None
        return found

    def runs_on(self, store: Place, stage: Literal["pretrain", "finetune"] | None = None) -> list[tuple[Place, Run]]:
        """The readable runs that were made from a store, of one stage or both."""
        stores = self._stores()
        return [(place, run) for place, run in self.runs(stage) if self.store_of(run, stores) == store]

    def runs(self, stage: Literal["pretrain", "finetune"] | None = None) -> list[tuple[Place, Run]]:
        """All readable runs, of one stage or both."""
        found = []
        for place in self.listed():
            if place.kind == "run":
                try:
                    run = self.run(place)
                except (HsslError, OSError) as error:
                    logger.warning("%s", error)
                    continue
                if stage in (None, run.info.stage):
                    found.append((place, run))
        return found

    def networks(self) -> list[tuple[Place, Run]]:
        """The runs that can predict: complete fine-tunings whose weights are there."""
        runs = self.runs("finetune")
        return [(place, run) for place, run in runs if run.info.complete and (place.path / WEIGHTS).is_file()]


def _walk(path: Path, depth: int) -> list[tuple[Path, Kind]]:
    kind = _kind(path)
    own: list[tuple[Path, Kind]] = [(path, kind)] if kind else []
    if depth == 0 or kind in ("store", "run"):  # what they hold is theirs
        return own
    try:
        below = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        logger.warning("%s: %s", path, error.strerror)
        return own
    return own + [found for each in below for found in _walk(each, depth - 1)]


def _kind(path: Path) -> Kind | None:
    if (path / INFO).is_file():
        return "run"
    if (path / INDEX).is_file() and (path / SPLITS).is_file():
        return "store"
    if (path / EXPERIMENT).is_file():
        return "benchmark"
    return None


def _id(path: Path) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
