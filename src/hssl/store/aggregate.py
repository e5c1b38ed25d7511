"""Raw challenges in, one store out: checked, reoriented, resampled, scaled and split, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import rich
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hssl.config import AggregateConfig, GivenSplit
from hssl.errors import HsslError, StoreError
from hssl.files import LOCK, locked, write_text
from hssl.machine import cores
from hssl.sources import check_no_patients, find_sources
from hssl.sources.base import Case, Geometry, Source, is_ct
from hssl.sources.files import check_same_place
from hssl.store.plan import TaskPlan, check_geometry, make_plan
from hssl.store.splits import Split, Splits, check_given, given_split, make_split
from hssl.store.store import INDEX, SPLITS, CaseRecord, Index, Store, TaskInfo, array_path, file_hash

logger = logging.getLogger(__name__)
_STAGING = ".partial"
_KINDS = ("images", "labels")
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be used, and why."""

    case: Case
    reason: HsslError

    def __str__(self) -> str:
        return f"{self.case.id}: {self.reason}"


@dataclass
class _Task:
    """One source on its way into the store."""

    source: Source
    cases: list[Case]
    fingerprint: str
    bad: list[BadCase]

    def drop(self, case: Case, reason: HsslError) -> None:
        self.bad.append(BadCase(case, reason))
        self.cases.remove(case)


def aggregate(
    sources: Path | str | Sequence[Path | str], output: Path | str, *, config: AggregateConfig | None = None
) -> Store:
    """Aggregates folders of raw data into one store; a store that is there already is added to.

    Nothing is written unless all is well: a bad case stops the command, after all of them have been logged,
    or is left out and listed with ``config.skip_bad``. Two cases with the same image count as one subject, so
    that a split never parts them. Tasks already in the store keep their arrays, order and split. Running it
    again on the same files with the same options changes nothing.

    Args:
        sources: Folders of raw data, or one, each in any layout that :func:`hssl.sources.find_sources` knows.
        output: The store, new or to be added to.
        config: Options; None for the defaults.

    Returns:
        The store, opened.

    Raises:
        SourceError: A folder holds no data that can be read.
        StoreError: A case is bad, a task is in the store with other files or options, or `output` is
            something else.
        ConfigError: An option does not suit the sources.
        RunError: Another command is writing to the store.
    """
    config = config or AggregateConfig()
    folders = [sources] if isinstance(sources, Path | str) else sources
    found = [
        source
        for path in folders
        for source in find_sources(
            Path(path), layout=config.layout, subject=config.subject, channel=config.channel, task=config.task
        )
    ]
    if len(folders) > 1:  # those of one path have been looked at
        check_no_patients(found)
    return aggregate_sources(found, output, config=config)


def aggregate_sources(sources: Sequence[Source], output: Path | str, *, config: AggregateConfig) -> Store:
    """Does the work of :func:`aggregate` for sources at hand, also of readers outside this package."""
    output = Path(output).resolve()
    existing = _existing(output)
    for source in sources:
        _check_window(source, config)
        _check_labels(source)
    tasks = [_listed(source, config) for source in sources]
    if not tasks:
        raise StoreError("no source given", path=output)
    for name in (task.source.task for task in tasks):
        if sum(task.source.task == name for task in tasks) > 1:
            raise StoreError(f"two sources are called '{name}'", hint="aggregate them one by one with --task NAME")
    names = {_folder(task.source) for task in tasks}
    if stray := sorted({*(config.splits or {})} - names):
        raise StoreError(f"splits: no folder is called '{stray[0]}'", hint=f"there are {', '.join(sorted(names))}")
    for task in tasks:  # a typing mistake is told before the long work
        if given := _given(task.source, config):
            masked = {case.subject for case in task.cases if case.label_path}
            check_given(task.source.task, given, masked, {case.subject for case in task.cases} - masked)
    tasks = [task for task in tasks if not _is_stored(task, existing)]
    _check_split_options(existing, config)
    if existing is not None and not tasks:
        return existing
    with _alone(output) as existing:  # another command may have added to it meanwhile
        _check_split_options(existing, config)
        if tasks := [task for task in tasks if not _is_stored(task, existing)]:
            staging = output / _STAGING
            staging.mkdir()
            index, splits = _write_arrays(tasks, staging, existing, config)
            _add(existing, output, staging, index, splits)
    return Store.open(output)


@contextmanager
def _alone(output: Path) -> Iterator[Store | None]:
    """Holds a store, new or not, against other commands; of one that has not come about nothing stays behind.

    What is being made lies in the store's own folder, so that it is on the same disk, and that folder may be the root
    of one.

    Yields:
        The store as it is now; None where there is none yet.
    """
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "hssl aggregate"):
        existing = _existing(output)
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
        for kind in _KINDS:
            shutil.rmtree(output / kind, ignore_errors=True)
        (output / SPLITS).unlink(missing_ok=True)
    shutil.rmtree(output / _STAGING, ignore_errors=True)  # the last, for it says that the rest is ours


def _existing(output: Path) -> Store | None:
    """The store at `output`, or None where one can be made."""
    if (output / INDEX).exists():
        return Store.open(output)
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name} if output.exists() else set()
    if names - ({_STAGING, LOCK, SPLITS, *_KINDS} if _STAGING in names else {LOCK}):
        raise StoreError("is there already and is not a store", path=output, hint="choose another output")
    return None


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
            hint="aggregate CT by itself, then the others by a second command; if it is CT, say so in its dataset.json",
        )


def _check_labels(source: Source) -> None:
    if outside := sorted(value for value in source.labels if not 1 <= value <= 255):
        raise StoreError(
            f"label {outside[0]} of '{source.task}' is not from 1 to 255", path=source.path, hint="renumber the masks"
        )


def _listed(source: Source, config: AggregateConfig) -> _Task:
    """Lists the cases of a source and fingerprints their files and the options."""
    cases = list(source.cases())
    if not cases:
        raise StoreError("holds no case", path=source.path)
    files = [
        [
            case.id,
            case.subject,
            _stamps(_image_files(case), source.path),
            *([_stamps([case.label_path], source.path)] if case.label_path else []),
        ]
        for case in cases
    ]
    options = config.model_dump(mode="json", include={"channel", "window", "spacing", "orientation"})
    if given := _given(source, config):
        options["split"] = given.model_dump(mode="json")
    content = [source.task, source.layout, source.modality, sorted(source.labels.items()), options, files]
    return _Task(source, cases, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), [])


def _image_files(case: Case) -> Sequence[Path]:
    """The files of an image: its own alone, for a folder may hold many series."""
    return case.image_files or [case.image_path]


def _stamps(files: Sequence[Path], root: Path) -> list[tuple[str, int, int] | str]:
    """Name, size and time of each file; a missing one is found when it is read."""
    names = [os.path.relpath(file, root) for file in files]
    stats = [file.stat() if file.exists() else None for file in files]
    return [(name, s.st_size, s.st_mtime_ns) if s else name for name, s in zip(names, stats, strict=True)]


def _is_stored(task: _Task, existing: Store | None) -> bool:
    known = existing.tasks.get(task.source.task) if existing is not None else None
    if known is None:
        return False
    if known.fingerprint != task.fingerprint:
        raise StoreError(
            f"task '{known.name}' is in the store already, made from other files or options "
            f"(files changed since, or another folder: {known.origin})",
            path=task.source.path,
            hint="aggregate into a new store, or under another name with --task",
        )
    return True


def _write_arrays(
    tasks: list[_Task], staging: Path, existing: Store | None, config: AggregateConfig
) -> tuple[Index, Splits]:
    """Converts every case into `staging`; returns the index and split of these tasks."""
    workers = config.workers or cores()
    plans = {task.source.task: plan for task in tasks if (plan := _planned(task, workers, config))}
    tasks = _usable(tasks, set(plans), existing)
    jobs = [(task, case) for task in tasks for case in task.cases]
    for task, _ in jobs:
        for kind in _KINDS:
            (staging / kind / task.source.task).mkdir(parents=True, exist_ok=True)

    def convert(job: tuple[_Task, Case]) -> CaseRecord | HsslError:
        task, case = job
        return _converted(case, task.source, plans[task.source.task], staging)

    records: dict[str, list[CaseRecord]] = {task.source.task: [] for task in tasks}
    results = _in_parallel(convert, jobs, workers, "aggregate")
    for (task, case), result in zip(jobs, results, strict=True):
        if isinstance(result, CaseRecord):
            records[result.task].append(result)
        else:
            task.drop(case, result)
    _report([bad for task in tasks for bad in task.bad], config)
    tasks = _usable(tasks, {name for name, kept in records.items() if kept}, existing)

    infos: dict[str, TaskInfo] = {}
    duplicates, splits = _split_by_folder(tasks, records, existing, config)
    for task in tasks:
        source = task.source
        infos[source.task] = TaskInfo(
            name=source.task,
            modality=source.modality,
            labels=dict(sorted(source.labels.items())),
            plan=plans[source.task],
            layout=source.layout,
            origin=str(source.path.resolve()),
            subject=config.subject,
            channel=config.channel if source.channel is None else source.channel,
            renamed=config.task,
            fingerprint=task.fingerprint,
            skipped=[str(bad) for bad in task.bad],
            duplicates=duplicates[source.task],
        )
    for name, split in splits.items():
        masked = {record.subject for record in records[name] if record.has_label}
        if lacking := [part for part in ("train", "val", "test") if masked and masked.isdisjoint(getattr(split, part))]:
            logger.warning(
                "task '%s': none of its %d subjects with masks is in %s (--splits FILE chooses who is)",
                name,
                len(masked),
                " or ".join(lacking),
            )
    index = Index(tasks=infos, cases=[record for kept in records.values() for record in kept])
    return index, Splits(seed=config.seed, fractions=config.fractions, tasks=splits)


def _usable(tasks: list[_Task], names: set[str], existing: Store | None) -> list[_Task]:
    """Those of `tasks` that have cases left; the others are bad as a whole, and were reported case by case.

    Raises:
        StoreError: None has, and there is no store that they were to be added to.
    """
    kept = [task for task in tasks if task.source.task in names]
    for task in tasks:
        if task not in kept:
            what = f"task '{task.source.task}' has no usable case"
            if not kept and existing is None:
                raise StoreError(what, path=task.source.path)
            logger.warning("%s: %s and is left out", task.source.path, what)
    return kept


def _split_by_folder(
    tasks: Sequence[_Task],
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
        if given := _given(channels[0], config):
            skipped = {bad.case.subject for task in tasks if task.source.path.resolve() == folder for bad in task.bad}
            given = _without(given, skipped - set(merged), folder)
            whole = given_split(names[0], given, merged, with_masks, without_masks)
            for subject, part in stored.items():
                if subject in merged.values() and subject not in getattr(whole, part):
                    raise StoreError(
                        f"splits: '{subject}' is in {part} in another channel of this folder in the store", path=folder
                    )
        else:
            fresh = (sorted(subjects.difference(stored)) for subjects in (with_masks, without_masks))
            drawn = make_split(folder.name, *fresh, seed=config.seed, fractions=config.fractions)
            parts = {part: set(getattr(drawn, part)) for part in Split.model_fields}
            for subject, part in stored.items():
                parts[part].add(subject)
            whole = Split(**{part: sorted(subjects) for part, subjects in parts.items()})
        for name in names:
            present = {record.subject for record in records[name]}
            splits[name] = Split(
                **{part: [s for s in getattr(whole, part) if s in present] for part in Split.model_fields}
            )
    return duplicates, splits


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


def _given(source: Source, config: AggregateConfig) -> GivenSplit | None:
    return (config.splits or {}).get(_folder(source))


def _without(given: GivenSplit, subjects: set[str], folder: Path) -> GivenSplit:
    """A split that was given, less subjects all of whose cases were bad and have been left out."""
    for subject in sorted(subjects & {*given.val, *given.test}):
        logger.warning("%s: subject '%s' of the split has no usable case and is left out of it", folder, subject)
    val, test = (tuple(name for name in part if name not in subjects) for part in (given.val, given.test))
    return GivenSplit(val=val, test=test)


def _folder(source: Source) -> str:
    return source.path.resolve().name


def _planned(task: _Task, workers: int, config: AggregateConfig) -> TaskPlan | None:
    """Reads the headers and plans the task; cases whose header is bad are dropped. None if no case is left."""

    def checked(case: Case) -> Geometry | HsslError:
        with _reading(case.image_path) as failed:
            if not case.id or case.id.startswith(".") or case.id != Path(case.id).name:
                raise StoreError(f"the case id '{case.id}' cannot be a file name")
            geometry = case.read_geometry()
            check_geometry(geometry)
            return geometry
        return failed[0]

    geometries: dict[str, Geometry] = {}
    ids = set()
    for case, result in zip(list(task.cases), _in_parallel(checked, task.cases, workers), strict=True):
        if isinstance(result, Geometry) and case.id in ids:
            result = StoreError(f"a second case is called '{case.id}'", path=case.image_path)
        ids.add(case.id)
        if isinstance(result, Geometry):
            geometries[case.id] = result
        else:
            task.drop(case, result)
    if geometries:
        alike = make_plan(geometries.values())  # of the headers alone, whatever the user wants made of them
        for case in list(task.cases):
            with _reading(case.image_path) as failed:
                alike.check_units(geometries[case.id])
            if failed:
                task.drop(case, failed[0])
                del geometries[case.id]
    if not geometries:
        _report(task.bad, config)
        return None
    return make_plan(geometries.values(), window=config.window, spacing=config.spacing, orientation=config.orientation)


def _converted(case: Case, source: Source, plan: TaskPlan, folder: Path) -> CaseRecord | HsslError:
    """Reads, checks and prepares one case and writes its arrays; returns its record, or what is wrong."""
    with _reading(case.image_path) as failed:
        geometry = case.read_geometry()
        pixels = case.read_image()
        if pixels.shape != geometry.shape:
            raise StoreError(f"has the shape {pixels.shape}, its header says {geometry.shape}")
        intensity = plan.intensity_range(pixels)
        image = plan.prepare_image(pixels, geometry, intensity=intensity).astype(np.float16)
        image_sha256 = file_hash(*_image_files(case))
    if failed:
        return failed[0]
    del pixels

    label, voxels, label_path, label_sha256 = None, None, None, None
    if case.label_path is not None and case.read_label is not None:
        with _reading(case.label_path) as failed:
            mask = case.read_label()
            if mask.shape != geometry.shape:
                raise StoreError(f"the mask has the shape {mask.shape}, its image {geometry.shape}")
            check_same_place(case.label_path, geometry)
            voxels = _counted(mask, source.labels)
            label = plan.prepare_label(mask, geometry)
            label_path = str(case.label_path.absolute())
            label_sha256 = file_hash(case.label_path)
        if failed:
            return failed[0]

    return CaseRecord(
        id=case.id,
        task=source.task,
        subject=case.subject,
        image_path=str(case.image_path.absolute()),
        label_path=label_path,
        shape=plan.stored_shape(geometry),
        source_shape=geometry.shape,
        source_affine=geometry.affine.tolist(),
        source_ndim=geometry.ndim,
        intensity=intensity,
        label_voxels=voxels,
        image_sha256=image_sha256,
        label_sha256=label_sha256,
        stored_image_sha256=_saved(image, array_path(folder, "images", source.task, case.id)),
        stored_label_sha256=(
            _saved(label, array_path(folder, "labels", source.task, case.id)) if label is not None else None
        ),
    )


def _one_subject_each(records: list[CaseRecord]) -> tuple[list[CaseRecord], list[tuple[CaseRecord, str]]]:
    """Gives cases with the same image the same subject, whatever their names say; returns each and a line on it."""
    first_with: dict[str, CaseRecord] = {}
    subjects = {record.subject: record.subject for record in records}
    duplicates = []
    for record in records:
        first = first_with.setdefault(record.stored_image_sha256, record)
        if first is record:
            continue
        line = f"{record.id} shows the same image as {first.id}: one subject"
        duplicates.append((record, line))
        logger.warning("task '%s': %s", record.task, line)
        old, new = subjects[record.subject], subjects[first.subject]
        subjects = {name: new if subject == old else subject for name, subject in subjects.items()}
    return [record.model_copy(update={"subject": subjects[record.subject]}) for record in records], duplicates


def _counted(mask: NDArray[np.integer], labels: Mapping[int, str]) -> dict[int, int]:
    """Voxels of each label present; values outside the task's list are an error."""
    present = set(np.unique(mask).tolist()) - {0}
    if unknown := sorted(present - labels.keys()):
        raise StoreError(f"label {unknown[0]} is not in the list of labels {sorted(labels)}")
    return {value: int(np.count_nonzero(mask == value)) for value in sorted(present)}


def _saved(array: NDArray[np.generic], path: Path) -> str:
    np.save(path, array, allow_pickle=False)
    return file_hash(path)


@contextmanager
def _reading(path: Path) -> Iterator[list[HsslError]]:
    """Catches what a bad file raises; the list that is yielded then holds the error, with the file's name."""
    failed: list[HsslError] = []
    try:
        yield failed
    except HsslError as error:
        failed.append(error if error.path else type(error)(error.what, path=path, hint=error.hint))
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        failed.append(StoreError(f"cannot be read: {error}", path=path))


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
            hint="put right what is wrong, or leave bad cases out with --skip-bad",
        )


def _in_parallel(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str = "") -> list[Result]:
    """Runs `function` on every job in threads; results in the order of the jobs, with a bar if titled.

    Threads, not processes: decompressing, percentiles, resampling and hashing all release the interpreter
    lock, and a script that calls :func:`aggregate` needs no ``if __name__ == "__main__"``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    torch_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "hssl-aggregate", initializer=lambda: torch.set_num_threads(1))
    try:
        with Progress(*columns, console=rich.get_console(), disable=not title) as progress:
            bar = progress.add_task(title, total=len(jobs))
            futures = [pool.submit(function, job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                progress.advance(bar)
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch_threads)


def _write_index(folder: Path, index: Index, splits: Splits) -> None:
    """Writes the split, then the index, each in one step: what the index does not name is not there."""
    for name, model in ((SPLITS, splits), (INDEX, index)):
        write_text(folder / name, model.model_dump_json(indent=1) + "\n")


def _add(existing: Store | None, output: Path, staging: Path, index: Index, splits: Splits) -> None:
    """Moves the arrays of new tasks into the store, then names them in its index."""
    for task in index.tasks:
        for kind in _KINDS:
            target = output / kind / task
            if target.exists():  # left by an interrupted run, and named in no index
                shutil.rmtree(target)
            target.parent.mkdir(exist_ok=True)
            (staging / kind / task).replace(target)
    if existing is not None:
        index = Index(tasks=existing.tasks | index.tasks, cases=[*existing.index.cases, *index.cases])
        splits = existing.splits.model_copy(update={"tasks": existing.splits.tasks | splits.tasks})
    _write_index(output, index, splits)
