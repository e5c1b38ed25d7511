"""One case on its way into the store: read, checked, brought to the store's grid and range, written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import numpy as np
import rich
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hssl.errors import StoreError, name_bad_file
from hssl.sources.base import Case, Geometry, Source
from hssl.sources.files import check_same_place
from hssl.store.preprocessing import Preprocessing
from hssl.store.store import IGNORE_NAME, CaseRecord, array_path, file_hash, file_sample

Job = TypeVar("Job")
Result = TypeVar("Result")


def convert_case(case: Case, source: Source, preprocessing: Preprocessing, folder: Path) -> tuple[CaseRecord, float]:
    """Reads, checks and prepares one case and writes its arrays.

    Returns:
        The record, and the smallest value in the image file.

    Raises:
        HsslError: The image or the mask cannot be used; the message names its file.
        OSError: The arrays cannot be written.
    """
    with name_bad_file(case.image_path, StoreError):
        geometry = case.read_geometry()
        pixels = case.read_image()
        if pixels.shape != geometry.shape:
            raise StoreError(
                f"has the shape {pixels.shape}, its header says {geometry.shape}",
                hint="convert it again from where it came",
            )
        intensity = preprocessing.intensity_range(pixels, padding=case.padding)
        image = preprocessing.prepare_image(pixels, geometry, intensity=intensity)
        image_sha256 = file_hash(*image_files_of(case))
        lowest = float(pixels.min())
    del pixels
    label, voxels, label_sha256 = _label(case, source.labels, preprocessing, geometry)
    image_path, label_path = (array_path(folder, kind, source.task, case.id) for kind in ("images", "labels"))
    np.save(image_path, image, allow_pickle=False)
    if label is not None:
        np.save(label_path, label, allow_pickle=False)
    record = CaseRecord(
        id=case.id,
        task=source.task,
        subject=case.subject,
        image_path=str(case.image_path.absolute()),
        label_path=str(case.label_path.absolute()) if label is not None and case.label_path else None,
        shape=preprocessing.stored_shape(geometry),
        source_shape=geometry.shape,
        source_affine=geometry.affine.tolist(),
        source_ndim=geometry.ndim,
        intensity=intensity,
        label_voxels=voxels,
        image_sha256=image_sha256,
        label_sha256=label_sha256,
        stored_image_sha256=file_hash(image_path),
        stored_label_sha256=None if label is None else file_hash(label_path),
        stored_image_sample=file_sample(image_path),
        stored_label_sample=None if label is None else file_sample(label_path),
    )
    return record, lowest


def _label(
    case: Case, labels: Mapping[int, str], preprocessing: Preprocessing, geometry: Geometry
) -> tuple[NDArray[np.uint8] | None, dict[int, int] | None, str | None]:
    """The prepared mask, the voxels of each label in its file, and the file's SHA-256; None without a mask."""
    if case.label_path is None or case.read_label is None:
        return None, None, None
    with name_bad_file(case.label_path, StoreError):
        mask, voxels = checked_label(case.label_path, case.read_label, labels, geometry)
        return preprocessing.prepare_label(mask, geometry), voxels, file_hash(case.label_path)


def checked_label(
    path: Path, read: Callable[[], NDArray[np.integer]], labels: Mapping[int, str], geometry: Geometry
) -> tuple[NDArray[np.integer], dict[int, int]]:
    """Reads the mask of an image.

    Args:
        path: The mask.
        read: Reads it.
        labels: Name of each label value of the task, the one of what is not annotated among them.
        geometry: The grid of the image.

    Returns:
        The mask, ``geometry.shape``, and the voxels of each label in it.

    Raises:
        HsslError: It is damaged, of another grid, or holds a value that is no label.
    """
    mask = read()
    if mask.shape != geometry.shape:
        raise StoreError(
            f"the mask has the shape {mask.shape}, its image {geometry.shape}",
            hint="bring the mask to the grid of its image",
        )
    check_same_place(path, geometry)
    return mask, _counted(mask, labels)


def _counted(mask: NDArray[np.integer], labels: Mapping[int, str]) -> dict[int, int]:
    """Voxels of each label present; values outside the task's list are an error."""
    present = set(np.unique(mask).tolist()) - {0}
    if unknown := sorted(present - labels.keys()):
        raise StoreError(
            f"label {unknown[0]} is not in the list of labels {sorted(labels)}",
            hint="add it to the list of labels, or correct the mask",
        )
    present = {value for value in present if labels[value] != IGNORE_NAME}
    return {value: int(np.count_nonzero(mask == value)) for value in sorted(present)}


def image_files_of(case: Case) -> Sequence[Path]:
    """The files of an image: its own alone, for a folder may hold many series."""
    return case.image_files or [case.image_path]


def in_parallel(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str = "") -> list[Result]:
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
