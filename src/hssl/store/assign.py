"""Which cases show one subject, and which part of the split it belongs to."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hssl.config import AggregateConfig, GivenSplit
from hssl.errors import HsslError, StoreError
from hssl.sources.base import Case, Source
from hssl.store.splits import Split, given_split, make_split
from hssl.store.store import CaseRecord, Store

logger = logging.getLogger(__name__)

_NAMED = 5


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be used, and why."""

    case: Case
    reason: HsslError

    def __str__(self) -> str:
        return f"{self.case.id}: {self.reason}"


@dataclass
class PendingTask:
    """One source on its way into the store."""

    source: Source
    cases: list[Case]
    fingerprint: str
    bad: list[BadCase]
    size: int = 0
    """Bytes that its arrays will take in the store, once its headers are read."""
    lowest: float = math.inf
    """Smallest value in its files, once they are converted."""

    def drop(self, bad: Sequence[tuple[Case, HsslError]]) -> None:
        """Takes bad cases out."""
        self.bad += [BadCase(case, reason) for case, reason in bad]
        out = {id(case) for case, _ in bad}  # a list may name a case twice
        self.cases = [case for case in self.cases if id(case) not in out]


def split_by_folder(
    tasks: Sequence[PendingTask],
    records: dict[str, list[CaseRecord]],
    existing: Store | None,
    config: AggregateConfig,
) -> tuple[dict[str, list[str]], dict[str, Split]]:
    """Merges subjects that show the same image, in `records` itself, and splits them.

    Channels of one folder are tasks that show the same subjects, so they are merged and split as one, even where
    a channel lacks some of them; those that the store has already keep the part that they have there.

    Returns:
        A line for each duplicate, and the split, by task.
    """
    duplicates: dict[str, list[str]] = {}
    splits: dict[str, Split] = {}
    folders: dict[Path, list[Source]] = {}
    for source in (task.source for task in tasks):
        folders.setdefault(source.path.resolve(), []).append(source)
    for folder, channels in folders.items():
        names = [source.task for source in channels]
        listed = [record for name in names for record in records[name]]
        kept, lines = _one_subject_each(listed)
        for name in names:
            records[name] = [record for record in kept if record.task == name]
            duplicates[name] = [line for record, line in lines if record.task == name]
        with_masks = {record.subject for record in kept if record.has_label}
        without_masks = {record.subject for record in kept} - with_masks
        # Cases with the same image have become one subject, whose name may not be the one that was given.
        merged = {before.subject: after.subject for before, after in zip(listed, kept, strict=True)}
        stored = _stored_parts(folder, existing)
        if given := split_given_for(channels[0], config):
            skipped = {bad.case.subject for task in tasks if task.source.path.resolve() == folder for bad in task.bad}
            given = _without(given, skipped - set(merged), folder)
            whole = given_split(names[0], given, merged, with_masks, without_masks)
            for subject, part in stored.items():
                if subject in merged.values() and subject not in getattr(whole, part):
                    raise StoreError(
                        f"splits: '{subject}' is in {part} in another channel of this folder in the store",
                        path=folder,
                        hint="keep the part that the store has, or aggregate all channels into a new store",
                    )
        else:
            whole = _drawn(folder.name, with_masks, without_masks, stored, config)
        for name in names:
            present = {record.subject for record in records[name]}
            splits[name] = Split(
                **{part: [s for s in getattr(whole, part) if s in present] for part in Split.model_fields}
            )
    return duplicates, splits


def _drawn(
    name: str, with_masks: set[str], without_masks: set[str], stored: dict[str, str], config: AggregateConfig
) -> Split:
    """A random split of the subjects that are new, with those of the store in the parts that they have there."""
    fresh = (sorted(subjects.difference(stored)) for subjects in (with_masks, without_masks))
    drawn = make_split(name, *fresh, seed=config.seed, fractions=config.fractions)
    parts = {part: set(getattr(drawn, part)) for part in Split.model_fields}
    for subject, part in stored.items():
        parts[part].add(subject)
    return Split(**{part: sorted(subjects) for part, subjects in parts.items()})


def _stored_parts(folder: Path, existing: Store | None) -> dict[str, str]:
    """The part of each subject of the tasks that a store has from this folder."""
    if existing is None:
        return {}
    return {
        subject: part
        for name, info in existing.tasks.items()
        if info.origin == str(folder)
        for part in Split.model_fields
        for subject in getattr(existing.split(name), part)
    }


def split_given_for(source: Source, config: AggregateConfig) -> GivenSplit | None:
    """The split that the user gave for the folder of `source`; None without one."""
    return (config.splits or {}).get(folder_name(source))


def _without(given: GivenSplit, subjects: set[str], folder: Path) -> GivenSplit:
    """A split that was given, less subjects all of whose cases were bad and have been left out."""
    for subject in sorted(subjects & {*given.val, *given.test}):
        logger.warning("%s: subject '%s' of the split has no usable case and is left out of it", folder, subject)
    val, test = (tuple(name for name in part if name not in subjects) for part in (given.val, given.test))
    return GivenSplit(val=val, test=test)


def folder_name(source: Source) -> str:
    """Name of the folder of a source, by which splits are given."""
    return source.path.resolve().name


def shared_scans(
    tasks: Sequence[PendingTask],
    records: Mapping[str, list[CaseRecord]],
    splits: Mapping[str, Split],
    existing: Store | None,
) -> dict[str, list[str]]:
    """Finds scans that tasks of different folders share, and warns where the splits of the two part them.

    Two are the same if their files are, or their stored images.

    Returns:
        For each new task a line for each other task that has some of its scans.
    """
    folders = {name: info.origin for name, info in existing.tasks.items()} if existing is not None else {}
    parts = {name: _part_of(existing.split(name)) for name in folders} if existing is not None else {}
    known: dict[str, dict[str, CaseRecord]] = {}  # by hash and task: of one task the first tells the part of all
    for record in existing.index.cases if existing is not None else ():
        if record.subject in parts[record.task]:  # the files of a store may have been edited
            _remember(known, record)
    lines: dict[str, list[str]] = {}
    for task in tasks:
        name = task.source.task
        folders[name], parts[name] = str(task.source.path.resolve()), _part_of(splits[name])
        twins: dict[str, list[tuple[CaseRecord, CaseRecord]]] = {}
        for record in records[name]:
            found = known.get(record.image_sha256, {}) | known.get(record.stored_image_sha256, {})
            for other, twin in found.items():
                if folders[other] != folders[name]:
                    twins.setdefault(other, []).append((record, twin))
        for record in records[name]:
            _remember(known, record)
        lines[name] = []
        for other, pairs in twins.items():
            scans = [(case.id, parts[name][case.subject], parts[other][twin.subject]) for case, twin in pairs]
            lines[name].append(_shared(name, other, scans))
            if any(here != there for _, here, there in scans):
                logger.warning("%s (leave them out of one folder, and aggregate into a new store)", lines[name][-1])
    return lines


def _remember(known: dict[str, dict[str, CaseRecord]], record: CaseRecord) -> None:
    for digest in (record.image_sha256, record.stored_image_sha256):
        known.setdefault(digest, {}).setdefault(record.task, record)


def _part_of(split: Split) -> dict[str, str]:
    return {subject: part for part in Split.model_fields for subject in getattr(split, part)}


def _shared(task: str, other: str, scans: Sequence[tuple[str, str, str]]) -> str:
    """What two tasks share, and whether the split parts it: of each scan its id, its part in `task` and in `other`."""
    line = f"'{task}' shares {len(scans)} scan{'s' * (len(scans) != 1)} with '{other}'"
    parted = [f"{case} ({here} here, {there} there)" for case, here, there in scans if here != there]
    if not parted:
        return f"{line}, each in the same part of the split"
    names = ", ".join(parted[:_NAMED]) + (" ..." if len(parted) > _NAMED else "")
    return f"{line}, and {len(parted)} of them are in another part of the split, so scores would be too good: {names}"


def _one_subject_each(records: list[CaseRecord]) -> tuple[list[CaseRecord], list[tuple[CaseRecord, str]]]:
    """Gives cases with the same image the same subject, whatever their names say; returns each and a line on it."""
    first_with: dict[str, CaseRecord] = {}
    above: dict[str, str] = {}  # the subject that one has become, which may have become another one since
    duplicates = []

    def subject_of(name: str) -> str:
        while (higher := above.get(name, name)) != name:
            above[name] = above.get(higher, higher)  # halves the way for the next one
            name = higher
        return name

    for record in records:
        first = first_with.setdefault(record.stored_image_sha256, record)
        if first is record:
            continue
        line = f"{record.id} shows the same image as {first.id}: one subject"
        duplicates.append((record, line))
        logger.warning("task '%s': %s", record.task, line)
        above[subject_of(record.subject)] = subject_of(first.subject)
    return [record.model_copy(update={"subject": subject_of(record.subject)}) for record in records], duplicates
