"""Masks that a person has drawn or corrected, taken back into the store that their images came from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hssl.errors import HsslError, StoreError, attempt, name_bad_file
from hssl.files import read_json, write_text
from hssl.sources.files import NIFTI, PICTURES, read_label, stem
from hssl.store.convert import checked_label
from hssl.store.splits import Split
from hssl.store.store import (
    IGNORE_NAME,
    INDEX,
    CaseRecord,
    FileName,
    LabelValue,
    Store,
    TaskInfo,
    file_hash,
    file_sample,
)
from hssl.store.transaction import STAGING, exclusive

LIST = "suggested.json"
"""What ``hssl suggest --export`` writes beside images and masks; it marks a folder of corrected masks."""
MASKS = "masks"
logger = logging.getLogger(__name__)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExportedCase(_Entry):
    """A case that was exported to be drawn.

    Attributes:
        case: The case.
        subject: Whom it shows.
        ranks: Its places in the order in which to draw, 1 first; a case of several suggested slices has several.
        slices: For each rank the number of the slice to draw, from 0, along `axis` of the file; None for all slices.
        axis: The axis of the file, from 0.
        stands_for: For each rank how many training subjects, or slices, are nearest to it.
        uncertainty: For each rank the mean entropy; None without a fine-tuned run.
        from_store: Whether the raw image was not found, and the image is that of the store.
        mask_sha256: Of the values of the mask as it was exported (:func:`hash_of_mask`).
    """

    case: FileName
    subject: str
    ranks: list[int]
    slices: list[int] | None
    axis: int
    stands_for: list[int]
    uncertainty: list[float] | None
    from_store: bool
    mask_sha256: str


class ExportList(_Entry):
    """What ``suggested.json`` holds.

    Attributes:
        format: Of this file.
        task: The task.
        labels: Name of each label value; a name may be added here where the task has no labels yet.
        ignore: Value of what is not to be drawn.
        prefilled: The run whose predictions the masks began with; None where they began empty.
        cases: What was exported.
    """

    format: Literal[1] = 1
    task: FileName
    labels: dict[LabelValue, str]
    ignore: Annotated[int, Field(ge=1, le=255)]
    prefilled: str | None
    cases: list[ExportedCase]


class _Taken(NamedTuple):
    """A mask on its way into the store."""

    before: CaseRecord
    after: CaseRecord
    array: NDArray[np.uint8]
    ignores: bool


def ignore_value(task: TaskInfo) -> int:
    """The value that marks what is not annotated: the task's, or the highest that is no label.

    Raises:
        StoreError: The task has a label for every value.
    """
    if task.ignore is not None:
        return task.ignore
    free = [value for value in range(255, 0, -1) if value not in task.labels]
    if not free:
        raise StoreError(
            f"task '{task.name}' uses all label values: none is left for what is not drawn",
            hint="free one from 1 to 255",
        )
    return free[0]


def hash_of_mask(mask: NDArray[np.integer]) -> str:
    """SHA-256 of the values of a mask, whatever its type and file."""
    return hashlib.sha256(np.ascontiguousarray(mask, np.uint8).tobytes()).hexdigest()


def take_back(folder: Path, output: Path, *, accept_unchanged: bool = False, skip_bad: bool = False) -> Store:
    """Takes the masks of an exported folder into the store; all of them, or with an error none.

    A mask belongs to the case that it is called after, in the task of the folder's list. Its grid and its values are
    checked as those of any other mask. Who trains, validates and tests stays as it is. What the store has already is
    not taken again.

    Args:
        folder: A folder that ``hssl suggest --export`` wrote.
        output: The store.
        accept_unchanged: Take masks that are as they were exported, too.
        skip_bad: Leave bad masks out, each with a warning.

    Returns:
        The store, opened.

    Raises:
        StoreError: A mask belongs to no case, is unchanged, is of a subject that validates or tests, or cannot be
            used; or there is none.
        RunError: Another command is writing to the store.
    """
    listed = read_json(folder / LIST, ExportList, StoreError, hint="export again")
    Store.open(output)
    with exclusive(output) as store:
        if store is None or listed.task not in store.tasks:
            raise StoreError(f"has no task '{listed.task}'", path=output, hint="give the store that was exported from")
        masks = sorted(path for path in (folder / MASKS).glob("*") if not path.name.startswith("."))
        if not masks:
            raise StoreError("holds no mask", path=folder / MASKS, hint="save what was drawn there")
        info = _with_labels(store.tasks[listed.task], listed, masks)
        take = partial(_take, store=store, info=info, listed=listed, accept_unchanged=accept_unchanged)
        found = [attempt(take, path) for path in masks]
        _report([each for each in found if isinstance(each, HsslError)], len(masks), skip_bad)
        taken = [each for each in found if isinstance(each, _Taken)]
        if taken:
            _commit(store, info, taken, output / STAGING)
    after = Store.open(output)
    _tell(store, after, info, taken)
    return after


def _with_labels(info: TaskInfo, listed: ExportList, masks: list[Path]) -> TaskInfo:
    """The task with labels from the list where it has none yet, and its value of what is not drawn."""
    labels = info.labels
    if not labels:
        read = [attempt(read_label, path) for path in masks if _is_mask(path)]
        values = {v for mask in read if not isinstance(mask, HsslError) for v in np.unique(mask).tolist()}
        unnamed = {v: f"label {v}" for v in values if 1 <= v <= 255}
        labels = {v: name for v, name in sorted((unnamed | listed.labels).items()) if v != listed.ignore}
    return info.model_copy(update={"labels": labels, "ignore": listed.ignore if info.ignore is None else info.ignore})


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith((*NIFTI, *PICTURES))


def _take(path: Path, *, store: Store, info: TaskInfo, listed: ExportList, accept_unchanged: bool) -> _Taken | None:
    """Checks and prepares a mask; None where the store has it already."""
    if not _is_mask(path):
        raise StoreError("is no mask that can be read", path=path, hint="save it as NIfTI, NAME.nii.gz")
    name = stem(path)
    record = next((case for case in store.cases(info.name) if case.id == name), None)
    if record is None:
        hint = "call it after its image; a case of another task goes with the folder of that task"
        raise StoreError(f"belongs to no case of task '{info.name}'", path=path, hint=hint)
    _check_part(store.split(info.name), record, path)
    labels = {**info.labels, **({} if info.ignore is None else {info.ignore: IGNORE_NAME})}
    with name_bad_file(path, StoreError):
        mask, voxels = checked_label(path, partial(read_label, path), labels, record.geometry)
        array = info.preprocessing.prepare_label(mask, record.geometry)
    if record.has_label and np.array_equal(array, store.label(record)):
        return None
    if (mask == info.ignore).all():
        raise StoreError("holds nothing that is drawn", path=path, hint="draw some slices, or remove it")
    exported = next((case.mask_sha256 for case in listed.cases if case.case == name), None)
    if exported == hash_of_mask(mask) and not accept_unchanged:
        hint = "correct it, remove it from the folder, or say --accept-unchanged if it is right as it is"
        raise StoreError("is unchanged since it was exported", path=path, hint=hint)
    after = record.model_copy(
        update={"label_path": str(path.absolute()), "label_voxels": voxels, "label_sha256": file_hash(path)}
    )
    return _Taken(record, after, array, bool((mask == info.ignore).any()))


def _check_part(split: Split, record: CaseRecord, path: Path) -> None:
    for part, what in (("val", "validates"), ("test", "tests")):
        if record.subject in getattr(split, part):
            raise StoreError(
                f"is of subject '{record.subject}', who {what}: only masks of training subjects are taken",
                path=path,
                hint="remove it from the folder",
            )


def _report(bad: list[HsslError], count: int, skip_bad: bool) -> None:
    """Logs every bad mask, and stops at them unless they are to be skipped."""
    for error in bad if skip_bad or len(bad) > 1 else ():
        logger.log(logging.WARNING if skip_bad else logging.ERROR, "%s", error)
    if bad and (not skip_bad or len(bad) == count):
        number = "1 bad mask" if len(bad) == 1 else f"the first of {len(bad)} bad masks"
        raise StoreError(f"{bad[0].what} ({number}; nothing was taken)", path=bad[0].path, hint=bad[0].hint)


def _commit(store: Store, info: TaskInfo, taken: list[_Taken], staging: Path) -> None:
    """Puts the masks beside those that are there, names them in the index in one step, and removes the old ones."""
    staging.mkdir()
    records: dict[str, CaseRecord] = {}
    for each in taken:
        file = staging / f"{each.after.id}.npy"
        np.save(file, each.array, allow_pickle=False)
        sha256 = file_hash(file)
        records[each.after.id] = each.after.model_copy(
            update={
                "stored_label_sha256": sha256,
                "stored_label_sample": file_sample(file),
                # A name that nothing has yet: until the index names it, the store is as it was.
                "stored_label": f"{each.after.id}.{sha256[:12]}",
            }
        )
    for record in records.values():
        target = store.array_file("labels", record)
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / f"{record.id}.npy").replace(target)
    if not any(each.ignores for each in taken):
        info = info.model_copy(update={"ignore": store.tasks[info.name].ignore})
    cases = [records.get(case.id, case) if case.task == info.name else case for case in store.index.cases]
    index = store.index.model_copy(update={"tasks": store.tasks | {info.name: info}, "cases": cases})
    write_text(store.path / INDEX, index.model_dump_json(indent=1) + "\n")
    for each in taken:
        if each.before.has_label:
            store.array_file("labels", each.before).unlink(missing_ok=True)


def _tell(before: Store, after: Store, info: TaskInfo, taken: list[_Taken]) -> None:
    """Says what was new and what was replaced."""
    for each in taken:
        new, old = (_volumes(record.label_voxels, info.labels) for record in (each.after, each.before))
        what = f"replaces a mask of {old}" if each.before.has_label else "new mask"
        logger.info("%s (%s): %s; voxels: %s", each.after.id, each.after.subject, what, new)
    subjects = [
        len({case.subject for case in store.cases(info.name, part="train", labelled=True)}) for store in (before, after)
    ]
    logger.info(
        f"{info.name}: {len(taken)} masks taken; training subjects with masks: {subjects[1]}, before {subjects[0]}; "
        "the split is as it was"
    )


def _volumes(voxels: Mapping[int, int] | None, labels: Mapping[int, str]) -> str:
    return ", ".join(f"{labels.get(value, value)} {count:,}" for value, count in (voxels or {}).items()) or "none"
