"""Reading random batches: the store's memory-mapped ``.npy`` beside blosc2 as nnU-Net writes it, and ``.nii.gz``.

A batch is 32 windows of 128x128 out of random slices of random volumes. All formats hold the same volumes and read the
same sequence of windows; each window opens its file anew, as ``Store.image`` and nnU-Net's loader do. blosc2 has
nnU-Net's chunks, blocks, codec and filter for 2D patches and is mapped into memory; it holds float16 (nnU-Net itself:
float32), and segmentation and properties, which nnU-Net opens along with the image, are not read. ``.nii.gz`` holds
int16 and is read slice by slice with nibabel. Cold means that the kernel was told to drop these files from its page
cache before every batch; what lies below (a disk's or a virtual machine's host's cache) is beyond reach. 10 and 100
times the data are that many copies of the files. Usage: ``bench_store.py [STORE]``; without a store, phantoms.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from harness import Row, alternate, pin_threads, publish, row
from numpy.typing import NDArray

from hssl.phantoms import write_phantoms
from hssl.store import CaseRecord, Store, aggregate
from hssl.store.store import Index, array_path
from hssl.training.data import cut

STORE = Path(__file__).parents[1] / "runs" / "store"
BATCH, PATCH = 32, 128
BASE_BYTES = 20_000_000
"""Float16 at 1x, at most; 100x of this in two formats is what the disk limit allows."""
DISK_LIMIT = 4_000_000_000
SIZES = (1, 10, 100)
SMALLER = 30
"""Instead of 100 where that does not fit."""
NIFTI_SIZES = (1, 10)
"""What a read from .nii.gz takes does not depend on the number of files."""
MEMORY_BATCHES = 500
LEVELS = 4095
OURS, BLOSC2, NIFTI = ".npy store", "blosc2 as nnU-Net", ".nii.gz with nibabel"
GOAL_RATE, GOAL_MEMORY = "faster", "flat"


@dataclass
class Format:
    """The volumes in one format.

    Attributes:
        read: The window of a volume's number, the slice's index and the window's corner.
        files: One per volume.
    """

    read: Callable[[int, int, tuple[int, int]], NDArray[Any]]
    files: list[Path] = field(default_factory=list)


def main() -> None:
    pin_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hssl-bench-") as name:
        folder = Path(name)
        store, records = choose(folder)
        volumes = [np.array(store.image(record)) for record in records]
        formats = {OURS: write_npy(volumes, store, records, folder / "npy")}
        try:
            formats[BLOSC2] = write_blosc2(volumes, folder / "blosc2")
        except ImportError as error:
            print(f"left out blosc2: {error}")
        formats[NIFTI] = write_nifti(volumes, folder / "nifti")
        voxels = sum(volume.size for volume in volumes)
        size = {kind: sum(file.stat().st_size for file in each.files) for kind, each in formats.items()}
        print(f"{len(volumes)} volumes, {voxels * 2 / 1e6:.0f} MB of float16, from {store.path}")
        rows += [
            row("store: training size", size[OURS] / voxels, size[kind] / voxels, kind, "bytes/voxel", "-", more=False)
            for kind in list(formats)[1:]
        ]
        for copies in planned(size):
            for kind, each in formats.items():
                if kind != NIFTI or copies in NIFTI_SIZES:
                    multiply(each, len(volumes), copies)
            os.sync()  # Pages that wait to be written cannot be dropped.
            present = {kind: each for kind, each in formats.items() if len(each.files) == copies * len(volumes)}
            rows += measure(present, [len(volume) for volume in volumes], [v.shape[1:] for v in volumes], copies)
    publish(rows)


def measure(
    formats: dict[str, Format], lengths: Sequence[int], shapes: Sequence[tuple[int, ...]], copies: int
) -> list[Row]:
    """The rows of one size."""
    batches = {kind: batches_of(each, lengths, shapes) for kind, each in formats.items()}
    check(batches)
    warm = {kind: lambda each=each: next(each) for kind, each in batches.items()}
    for each in formats.values():
        load(each.files)
    fast = {kind: call for kind, call in warm.items() if kind != NIFTI}
    seconds = alternate(fast, rounds=7)
    # So slow that few rounds must do; ours is measured again beside it.
    again = alternate({OURS: warm[OURS], NIFTI: warm[NIFTI]}, rounds=2, warm_up=0) if NIFTI in warm else {}
    cold = cold_seconds(formats, batches, rounds=5 if copies < SIZES[-1] else 3)
    rows = []
    for kind in list(formats)[1:]:
        times = again if kind == NIFTI else seconds
        part = f"store: random {PATCH}x{PATCH} windows, {copies}x data"
        ours, peer = BATCH / times[OURS], BATCH / times[kind]
        rows.append(row(f"{part}, warm", ours, peer, kind, "slices/s", GOAL_RATE, more=True))
        ours, peer = BATCH / cold[OURS], BATCH / cold[kind]
        rows.append(row(f"{part}, cold", ours, peer, kind, "slices/s", GOAL_RATE, more=True))
    growth = {kind: memory_growth(batches[kind]) for kind in fast}
    part = f"store: resident memory gained in {MEMORY_BATCHES} batches, {copies}x data"
    others = [kind for kind in growth if kind != OURS] or [None]
    for other in others:
        peer_growth = growth[other] if other else None
        rows.append(row(part, growth[OURS], peer_growth, other or "-", "MiB", GOAL_MEMORY, more=False))
    return rows


def choose(folder: Path) -> tuple[Store, list[CaseRecord]]:
    """Volumes of `BASE_BYTES` in all, of the tasks in turn, from the store given, ours, or one of phantoms."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else STORE
    if path.exists():
        store = Store.open(path)
    else:
        print(f"{path} does not exist: phantoms instead")
        store = aggregate(write_phantoms(folder / "raw", subjects=4, seed=0), folder / "store")
    chosen: list[CaseRecord] = []
    total = 0
    for turn in itertools.zip_longest(*(store.cases(task) for task in store.tasks)):
        for record in turn:
            size = 0 if record is None else 2 * math.prod(record.shape)
            if record is not None and total + size <= BASE_BYTES:
                chosen.append(record)
                total += size
    return store, chosen


def planned(size: dict[str, int]) -> tuple[int, ...]:
    """How many times the data, so that all formats fit the limit together."""
    fits = SIZES[-1] * (sum(size.values()) - size[NIFTI]) + NIFTI_SIZES[-1] * size[NIFTI] <= DISK_LIMIT
    if not fits:
        print(f"{SIZES[-1]}x would take more than {DISK_LIMIT / 1e9:.0f} GB: {SMALLER}x instead")
    return (*SIZES[:-1], SIZES[-1] if fits else SMALLER)


def write_npy(volumes: list[NDArray[Any]], store: Store, records: list[CaseRecord], folder: Path) -> Format:
    """A store of its own, so that files are found and read by :meth:`hssl.Store.image_slice`."""
    named = [record.model_copy(update={"id": f"{number:06d}"}) for number, record in enumerate(records)]
    copy = Store(folder, Index(tasks=store.tasks, cases=named), store.splits)

    # Ready in advance, as the index of a store of that size would hold them.
    cases = [
        record.model_copy(update={"id": f"{record.id}-{turn}"}) if turn else record
        for turn in range(SIZES[-1])
        for record in named
    ]

    def read(number: int, index: int, corner: tuple[int, int]) -> NDArray[Any]:
        return cut(copy.image_slice(cases[number], index), corner, PATCH)

    files = []
    for record, volume in zip(named, volumes, strict=True):
        files.append(array_path(folder, "images", record.task, record.id))
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        np.save(files[-1], volume)
    return Format(read, files)


def write_blosc2(volumes: list[NDArray[Any]], folder: Path) -> Format:
    """As ``nnUNetDatasetBlosc2.save_case`` does it: LZ4HC, level 5, with or without shuffle, whichever is smaller."""
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blosc2.set_nthreads(1)
    folder.mkdir()
    files = []
    for number, volume in enumerate(volumes):
        data = np.ascontiguousarray(volume[None])
        blocks, chunks = comp_blosc2_params(data.shape, (PATCH, PATCH), data.itemsize)
        tried = []
        for kind in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE):
            settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1, "filters": [kind]}
            path = folder / f"{number:06d}.{kind.name}"
            blosc2.asarray(data, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=settings)
            tried.append(path)
        tried.sort(key=lambda path: path.stat().st_size)
        files.append(tried[0].rename(folder / f"{number:06d}.b2nd"))
        tried[1].unlink()
    made = Format(lambda *draw: np.empty(0), files)

    def read(number: int, index: int, corner: tuple[int, int]) -> NDArray[Any]:
        array = blosc2.open(urlpath=str(made.files[number]), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        return cut_from(array, (0, index), corner)

    made.read = read
    return made


def write_nifti(volumes: list[NDArray[Any]], folder: Path) -> Format:
    """int16 with :data:`LEVELS` grey values, slices along the last axis, compressed as nibabel does by default."""
    folder.mkdir()
    files = []
    for number, volume in enumerate(volumes):
        levels = np.round(volume.astype(np.float32) * LEVELS).astype(np.int16)
        files.append(folder / f"{number:06d}.nii.gz")
        nib.save(nib.Nifti1Image(levels.transpose(2, 1, 0), np.eye(4)), files[-1])
    made = Format(lambda *draw: np.empty(0), files)

    def read(number: int, index: int, corner: tuple[int, int]) -> NDArray[Any]:
        image = nib.Nifti1Image.from_filename(made.files[number])
        return cut(np.asanyarray(image.dataobj[:, :, index]).T, corner, PATCH)

    made.read = read
    return made


def cut_from(array: Any, front: tuple[int, ...], corner: tuple[int, int]) -> NDArray[Any]:
    """As :func:`hssl.training.data.cut`, but asks the array for no more than the window shows."""
    window = np.zeros((PATCH, PATCH), array.dtype)
    (top, left), (rows, columns) = corner, array.shape[-2:]
    first_row, last_row = max(top, 0), min(top + PATCH, rows)
    first_column, last_column = max(left, 0), min(left + PATCH, columns)
    part = array[(*front, slice(first_row, last_row), slice(first_column, last_column))]
    window[first_row - top : last_row - top, first_column - left : last_column - left] = part
    return window


def multiply(each: Format, base: int, copies: int) -> None:
    """Copies the first `base` files until there are `copies` of each."""
    for number in range(len(each.files), base * copies):
        source = each.files[number % base]
        stem, dot, ending = source.name.partition(".")
        each.files.append(source.with_name(f"{stem}-{number // base}{dot}{ending}"))
        shutil.copyfile(source, each.files[-1])


def batches_of(
    each: Format, lengths: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Iterator[NDArray[np.generic]]:
    """Endless batches; the same windows for every format."""
    rng = np.random.default_rng(0)
    while True:
        windows = []
        for number in rng.integers(len(each.files), size=BATCH):
            base = int(number) % len(lengths)
            corner = [int(rng.integers(min(s - PATCH, 0), max(s - PATCH, 0) + 1)) for s in shapes[base]]
            windows.append(each.read(int(number), int(rng.integers(lengths[base])), (corner[0], corner[1])))
        yield np.stack(windows)


def check(batches: dict[str, Iterator[NDArray[Any]]]) -> None:
    """Stops where the first batches differ by more than the coarser grey values of .nii.gz."""
    firsts = {kind: next(each).astype(np.float32) for kind, each in batches.items()}
    for kind, first in firsts.items():
        scaled = first / LEVELS if kind == NIFTI else first
        if not np.allclose(scaled, firsts[OURS], atol=1 / LEVELS):
            raise SystemExit(f"{kind} reads something else than the store")


def load(files: list[Path]) -> None:
    """Brings files into the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def drop(files: list[Path]) -> None:
    """Takes files out of the page cache, as far as the kernel follows advice."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cold_seconds(
    formats: dict[str, Format], batches: dict[str, Iterator[NDArray[Any]]], *, rounds: int
) -> dict[str, float]:
    """Median seconds of a batch in turns; dropping the files before each is not counted."""
    seconds: dict[str, list[float]] = {kind: [] for kind in formats}
    for turn in range(rounds):
        for kind in list(formats)[:: 1 if turn % 2 == 0 else -1]:
            gc.collect()  # A file that is still mapped keeps its pages.
            drop(formats[kind].files)
            began = time.perf_counter()
            next(batches[kind])
            seconds[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def memory_growth(batches: Iterator[NDArray[Any]]) -> float:
    """MiB of anonymous memory (no page cache) that the process gained; what it gave back counts as none."""
    next(batches)
    gc.collect()
    before = anonymous_bytes()
    for _ in range(MEMORY_BATCHES):
        next(batches)
    gc.collect()
    return max(anonymous_bytes() - before, 0) / 2**20


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon: this benchmark needs Linux")


if __name__ == "__main__":
    main()
