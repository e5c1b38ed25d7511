"""Raw challenges in, one store out: checked, reoriented, resampled, scaled and split, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hssl.config import AggregateConfig
from hssl.errors import ConfigError, HsslError, StoreError, attempt, name_bad_file
from hssl.files import full_disk_named
from hssl.machine import cores
from hssl.sources.base import Case, Geometry, Source, is_ct
from hssl.sources.discovery import check_no_patients, find_sources
from hssl.sources.files import check_name
from hssl.sources.leftovers import named_like_images, unused_files
from hssl.store.assign import BadCase, PendingTask, folder_name, shared_scans, split_by_folder, split_given_for
from hssl.store.convert import convert_case, image_files_of, in_parallel
from hssl.store.corrections import LIST, take_back
from hssl.store.preprocessing import Preprocessing, check_geometry, make_preprocessing
from hssl.store.splits import Split, Splits, check_given
from hssl.store.store import IGNORE_NAME, CaseRecord, Index, Store, TaskInfo
from hssl.store.transaction import KINDS, STAGING, commit, exclusive, existing_store
from hssl.text import size

logger = logging.getLogger(__name__)

_DARK_IN_CT = -100.0
"""HU; a CT scan has darker voxels, for there is air around and in a body, and fat."""


def aggregate(
    sources: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    config: AggregateConfig | None = None,
    layout: str | None = None,
    subject: str | None = None,
    channel: str | int | None = None,
    task: str | None = None,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, float] | None = None,
    splits: Mapping[str, Any] | None = None,
    seed: int | None = None,
    skip_bad: bool | None = None,
    **options: Any,
) -> Store:
    """Aggregates folders of raw data into one store; an existing store is extended.

    Nothing is written unless all is well: a bad case stops the command, after all of them have been logged,
    or is left out and listed with ``config.skip_bad``. Two cases with the same image count as one subject, so
    that a split never parts them; a warning names those that the splits of two folders part. Tasks already in the
    store keep their arrays, order and split. Running it again on the same files with the same options changes nothing.
    Options that are not given are those of `config`, or the defaults of :class:`hssl.config.AggregateConfig`.

    A folder that :func:`hssl.suggest` exported is another matter: its corrected masks go back into the store, to the
    cases that they are called after, and the split stays as it is (:func:`hssl.store.corrections.take_back`).

    Args:
        sources: Folders of raw data, or one, each in any layout that :func:`hssl.sources.find_sources` knows.
        output: The store, new or to be added to.
        config: Options; those given by name override them.
        layout: Reader to use; found from the folder by default.
        subject: Regular expression that finds the subject in a case id.
        channel: Channel of multi-channel sources, by name or number.
        task: Name of the task, for a single source.
        window: CT window (low, high) in HU.
        spacing: In-plane spacing in mm (rows, columns).
        splits: ``{folder: {"val": [...], "test": [...]}}``, a split of your own.
        seed: Seed of the split.
        skip_bad: Leave bad cases out and list them.
        options: Any other field of :class:`hssl.config.AggregateConfig`.

    Returns:
        The store, opened.

    Raises:
        SourceError: A folder holds no data that can be read.
        StoreError: A case is bad, a task is in the store with other files or options, or `output` is
            something else.
        ConfigError: An option does not suit the sources, or the disk is full or may not be written to.
        RunError: Another command is writing to the store.
    """
    named: dict[str, Any] = {"layout": layout, "subject": subject, "channel": channel, "task": task, "window": window}
    named |= {"spacing": spacing, "splits": splits, "seed": seed, "skip_bad": skip_bad}
    config = AggregateConfig.over(config, **options, **named)
    folders = [sources] if isinstance(sources, Path | str) else sources
    if any((Path(folder) / LIST).is_file() for folder in folders):
        return _take_back([Path(folder) for folder in folders], Path(output), config)
    found = []
    for path in map(Path, folders):
        here = find_sources(
            path,
            layout=config.layout,
            subject=config.subject,
            channel=config.channel,
            task=config.task,
            follow_links=config.follow_links,
        )
        _warn_of_unused(path, here)
        found += here
    if len(folders) > 1:  # those of one path have been looked at
        check_no_patients(found)
    return aggregate_sources(found, output, config=config)


def _take_back(folders: Sequence[Path], output: Path, config: AggregateConfig) -> Store:
    """Takes corrected masks; what only new sources need is refused."""
    if len(folders) > 1:
        hint = "give each folder of corrected masks by a command of its own"
        raise ConfigError(f"{len(folders)} folders, and corrected masks in them", hint=hint)
    if others := sorted(config.model_fields_set - {"accept_unchanged", "skip_bad"}):
        hint = "they go into the task that they were exported from; leave it out"
        raise ConfigError(f"option '{others[0]}' does not suit corrected masks", path=folders[0], hint=hint)
    return take_back(folders[0], output.resolve(), accept_unchanged=config.accept_unchanged, skip_bad=config.skip_bad)


def aggregate_sources(sources: Sequence[Source], output: Path | str, *, config: AggregateConfig) -> Store:
    """Does the work of :func:`aggregate` for sources at hand, also of readers outside this package."""
    output = Path(output).resolve()
    existing = existing_store(output)
    for source in sources:
        _check_window(source, config)
        _check_labels(source)
    tasks = [_list_task(source, config) for source in sources]
    if not tasks:
        raise StoreError("no source given", path=output, hint="give at least one folder of raw data")
    for name in (task.source.task for task in tasks):
        if sum(task.source.task == name for task in tasks) > 1:
            raise StoreError(f"two sources are called '{name}'", hint="aggregate them one by one with --task NAME")
    names = {folder_name(task.source) for task in tasks}
    if stray := sorted({*(config.splits or {})} - names):
        raise StoreError(f"splits: no folder is called '{stray[0]}'", hint=f"there are {', '.join(sorted(names))}")
    for task in tasks:  # a typing mistake is reported before the long work
        if given := split_given_for(task.source, config):
            masked = {case.subject for case in task.cases if case.label_path}
            check_given(task.source.task, given, masked, {case.subject for case in task.cases} - masked)
    tasks = [task for task in tasks if not _is_stored(task, existing)]
    _check_split_options(existing, config)
    if existing is not None and not tasks:
        return existing
    with full_disk_named(output), exclusive(output) as existing:  # another command may have added to it meanwhile
        _check_split_options(existing, config)
        if tasks := [task for task in tasks if not _is_stored(task, existing)]:
            staging = output / STAGING
            staging.mkdir()
            index, splits = _write_arrays(tasks, staging, existing, config)
            commit(existing, output, staging, index, splits)
    return Store.open(output)


def _warn_of_unused(path: Path, sources: Sequence[Source]) -> None:
    """Lists the files that are not used, and the tasks without masks where some of these may be masks."""
    unused = unused_files(path, sources)
    for group in unused:
        logger.warning("%s", group)
    masks = [mask for group in unused for mask in group.masks]
    for source in sources if unused else ():
        if any(case.label_path for case in source.cases()):
            continue
        named = named_like_images(source, unused)
        for folder, count in named.items():
            logger.warning(
                "task '%s' has no masks; in %s/ are files with the names of %d of its images: if they are its masks, "
                "rename that folder to 'masks'",
                source.task,
                folder.name,
                count,
            )
        if masks and not named:
            logger.warning(
                "task '%s' has no masks, although %d files look like some, such as %s",
                source.task,
                len(masks),
                masks[0],
            )


def _check_split_options(existing: Store | None, config: AggregateConfig) -> None:
    if existing is None:
        return
    seed, fractions = existing.splits.seed, existing.splits.fractions
    if (seed, fractions) != (config.seed, config.fractions):
        raise StoreError(
            f"is split with seed {seed} and fractions {fractions}, not {config.seed} and {config.fractions}",
            path=existing.path,
            hint="give the same, or aggregate into a new store",
        )


def _check_window(source: Source, config: AggregateConfig) -> None:
    if config.window is not None and source.modality and not is_ct(source.modality):
        raise StoreError(
            f"'{source.task}' is {source.modality}, and a window is in Hounsfield units",
            path=source.path,
            hint="aggregate CT alone, then the others with a second command; if it is CT, say so in its dataset.json",
        )


def _check_labels(source: Source) -> None:
    if outside := sorted(value for value in source.labels if not 1 <= value <= 255):
        raise StoreError(
            f"label {outside[0]} of '{source.task}' is not from 1 to 255", path=source.path, hint="renumber the masks"
        )


def _list_task(source: Source, config: AggregateConfig) -> PendingTask:
    """Lists the cases of a source and fingerprints their files and the options."""
    cases = list(source.cases())
    if not cases:
        raise StoreError("holds no case", path=source.path, hint="give the folder that the images are in")
    files = [
        [
            case.id,
            case.subject,
            _stamps(image_files_of(case), source.path),
            *([_stamps([case.label_path], source.path)] if case.label_path else []),
        ]
        for case in cases
    ]
    options = config.model_dump(mode="json", include={"channel", "window", "spacing", "orientation"})
    if given := split_given_for(source, config):
        options["split"] = given.model_dump(mode="json")
    content = [source.task, source.layout, source.modality, sorted(source.labels.items()), options, files]
    return PendingTask(source, cases, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), [])


def _stamps(files: Sequence[Path], root: Path) -> list[tuple[str, int, int] | str]:
    """Name, size and time of each file; a missing one is found when it is read."""
    names = [os.path.relpath(file, root) for file in files]
    stats = [file.stat() if file.exists() else None for file in files]
    return [(name, s.st_size, s.st_mtime_ns) if s else name for name, s in zip(names, stats, strict=True)]


def _is_stored(task: PendingTask, existing: Store | None) -> bool:
    known = existing.tasks.get(task.source.task) if existing is not None else None
    if known is None:
        return False
    if known.fingerprint != task.fingerprint:
        raise StoreError(
            f"task '{known.name}' is already in the store, made from other files or options "
            f"(files changed since, or another folder: {known.origin})",
            path=task.source.path,
            hint="aggregate into a new store, or under another name with --task",
        )
    return True


def _write_arrays(
    tasks: list[PendingTask], staging: Path, existing: Store | None, config: AggregateConfig
) -> tuple[Index, Splits]:
    """Converts every case into `staging`; returns the index and split of these tasks."""
    workers = config.workers or cores()
    preprocessings = {
        task.source.task: chosen for task in tasks if (chosen := _choose_preprocessing(task, workers, config))
    }
    tasks = _usable(tasks, set(preprocessings), existing)
    _check_space(sum(task.size for task in tasks), staging.parent)
    jobs = [(task, case) for task in tasks for case in task.cases]
    for task, _ in jobs:
        for kind in KINDS:
            (staging / kind / task.source.task).mkdir(parents=True, exist_ok=True)

    def convert(job: tuple[PendingTask, Case]) -> tuple[CaseRecord, float]:
        task, case = job
        return convert_case(case, task.source, preprocessings[task.source.task], staging)

    records: dict[str, list[CaseRecord]] = {task.source.task: [] for task in tasks}
    results = in_parallel(partial(attempt, convert), jobs, workers, "aggregate")
    failed: dict[str, list[tuple[Case, HsslError]]] = {task.source.task: [] for task in tasks}
    for (task, case), result in zip(jobs, results, strict=True):
        if isinstance(result, HsslError):
            failed[task.source.task].append((case, result))
        else:
            record, lowest = result
            records[record.task].append(record)
            task.lowest = min(task.lowest, lowest)
    for task in tasks:
        task.drop(failed[task.source.task])
    _report([bad for task in tasks for bad in task.bad], config)
    tasks = _usable(tasks, {name for name, kept in records.items() if kept}, existing)

    duplicates, splits = split_by_folder(tasks, records, existing, config)
    for name, lines in shared_scans(tasks, records, splits, existing).items():
        duplicates[name] += lines
    infos = {
        name: _task_info(task, preprocessings[name], duplicates[name], config)
        for task in tasks
        for name in [task.source.task]
    }
    _warn_of_empty_parts(splits, records)
    _warn_of_window(tasks, config)
    index = Index(tasks=infos, cases=[record for kept in records.values() for record in kept])
    return index, Splits(seed=config.seed, fractions=config.fractions, tasks=splits)


def _check_space(needed: int, output: Path) -> None:
    """Refuses a store that does not fit on the disk before hours of work, not after them."""
    free = shutil.disk_usage(output).free
    if needed > free:
        raise StoreError(
            f"needs {size(needed)}, and {size(free)} are free on its disk",
            path=output,
            hint="free some space, or choose another output",
        )


def _task_info(
    task: PendingTask, preprocessing: Preprocessing, duplicates: list[str], config: AggregateConfig
) -> TaskInfo:
    source = task.source
    return TaskInfo(
        name=source.task,
        modality=source.modality,
        labels={value: name for value, name in sorted(source.labels.items()) if name != IGNORE_NAME},
        ignore=next((value for value, name in source.labels.items() if name == IGNORE_NAME), None),
        preprocessing=preprocessing,
        layout=source.layout,
        origin=str(source.path.resolve()),
        subject=config.subject,
        channel=config.channel if source.channel is None else source.channel,
        renamed=config.task,
        follow_links=config.follow_links,
        fingerprint=task.fingerprint,
        skipped=[str(bad) for bad in task.bad],
        duplicates=duplicates,
    )


def _warn_of_empty_parts(splits: dict[str, Split], records: dict[str, list[CaseRecord]]) -> None:
    for name, split in splits.items():
        masked = {record.subject for record in records[name] if record.has_label}
        if lacking := [part for part in ("train", "val", "test") if masked and masked.isdisjoint(getattr(split, part))]:
            logger.warning(
                "task '%s': none of its %d subjects with masks is in %s (--splits FILE chooses who is)",
                name,
                len(masked),
                " or ".join(lacking),
            )


def _warn_of_window(tasks: list[PendingTask], config: AggregateConfig) -> None:
    """Names the tasks that do not say what they are, and hold nothing as dark as air or fat in CT."""
    for task in tasks if config.window is not None else ():
        if not task.source.modality and task.lowest > _DARK_IN_CT:
            logger.warning(
                "'%s' does not say that it is CT, and its smallest value is %g (air: -1000): the window was applied "
                "(if it is not CT, aggregate again into a new store, this folder without --window)",
                task.source.task,
                task.lowest,
            )


def _usable(tasks: list[PendingTask], names: set[str], existing: Store | None) -> list[PendingTask]:
    """Those of `tasks` that have cases left; the others are bad as a whole, and were reported case by case.

    Raises:
        StoreError: No task has cases left, and there is no store to add to.
    """
    kept = [task for task in tasks if task.source.task in names]
    for task in tasks:
        if task not in kept:
            what = f"task '{task.source.task}' has no usable case"
            if not kept and existing is None:
                raise StoreError(
                    what, path=task.source.path, hint="put right what is wrong with its cases, as listed above"
                )
            logger.warning("%s: %s and is left out", task.source.path, what)
    return kept


def _choose_preprocessing(task: PendingTask, workers: int, config: AggregateConfig) -> Preprocessing | None:
    """Reads the headers and plans the task; cases whose header is bad are dropped. None if no case is left."""

    def checked(case: Case) -> Geometry:
        with name_bad_file(case.image_path, StoreError):
            for path in (case.image_path, *((case.label_path,) if case.label_path else ())):
                check_name(path.absolute())
            if not case.id or case.id.startswith(".") or case.id != Path(case.id).name:
                raise StoreError(
                    f"the case id '{case.id}' cannot be a file name",
                    hint="a reader of your own has to give ids that are file names",
                )
            geometry = case.read_geometry()
            check_geometry(geometry)
            return geometry

    def check_units(case: Case) -> None:
        with name_bad_file(case.image_path, StoreError):
            alike.check_units(geometries[case.id])

    geometries: dict[str, Geometry] = {}
    ids = set()
    bad: list[tuple[Case, HsslError]] = []
    for case, result in zip(task.cases, in_parallel(partial(attempt, checked), task.cases, workers), strict=True):
        if isinstance(result, Geometry) and case.id in ids:
            result = StoreError(
                f"a second case is called '{case.id}'", path=case.image_path, hint="rename one of the two"
            )
        ids.add(case.id)
        if isinstance(result, Geometry):
            geometries[case.id] = result
        else:
            bad.append((case, result))
    task.drop(bad)
    if geometries:
        alike = make_preprocessing(geometries.values())  # of the headers alone, whatever the user wants made of them
        odd = [(case, failed) for case in task.cases if (failed := attempt(check_units, case)) is not None]
        task.drop(odd)
        for case, _ in odd:
            del geometries[case.id]
    if not geometries:
        _report(task.bad, config)
        return None
    chosen = make_preprocessing(
        geometries.values(), window=config.window, spacing=config.spacing, orientation=config.orientation
    )
    for case in task.cases:  # images of 2 bytes a voxel, masks of 1
        task.size += math.prod(chosen.stored_shape(geometries[case.id])) * (3 if case.label_path else 2)
    return chosen


def _report(bad: list[BadCase], config: AggregateConfig) -> None:
    """Logs every bad case, and stops at them unless they are to be skipped."""
    if len(bad) > 1 or config.skip_bad:
        for case in bad:
            logger.log(logging.WARNING if config.skip_bad else logging.ERROR, "bad case %s", case)
    if bad and not config.skip_bad:
        count = "1 bad case" if len(bad) == 1 else f"the first of {len(bad)} bad cases"
        first = bad[0].reason
        raise StoreError(
            f"{first.what} ({count}; nothing was written)",
            path=first.path,
            hint="correct what is wrong, or leave bad cases out with --skip-bad",
        )
