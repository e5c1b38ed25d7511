"""A store made small enough to travel to a machine with a GPU, and made whole again there.

    python tools/pack.py pack STORE PARTS [--mib 54] [--levels 256]
    python tools/pack.py unpack PARTS STORE

`PARTS` is a folder of tar files of at most so many MiB each, which can travel one by one. Images are rounded to a
number of grey levels and stored as lossless WebP, masks as they are; cases and splits stay the same. The unpacked
store has a hash of its own, and no source files beside it: a benchmark of it needs ``scoring: {space: store}``.
"""

from __future__ import annotations

import argparse
import io
import lzma
import math
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hssl.errors import HsslError, StoreError
from hssl.files import new_folder, write_text
from hssl.store import CaseRecord, Store
from hssl.store.store import INDEX, SPLITS, Index, array_path, file_hash

LARGEST = 16_383
"""Rows and columns that a WebP image can have."""


def main() -> None:
    """Packs or unpacks, and says how much."""
    parser = argparse.ArgumentParser(description="Packs a store for another machine, and unpacks it there.")
    commands = parser.add_subparsers(dest="command", required=True)
    packs = commands.add_parser("pack")
    packs.add_argument("store", type=Path)
    packs.add_argument("parts", type=Path)
    packs.add_argument("--mib", type=float, default=54)
    packs.add_argument("--levels", type=int, default=256)
    unpacks = commands.add_parser("unpack")
    unpacks.add_argument("parts", type=Path)
    unpacks.add_argument("store", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "pack":
            for part in pack(Store.open(options.store), options.parts, options.mib, options.levels):
                print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")
        else:
            store = unpack(options.parts, options.store)
            print(f"{store.path}: {len(store.cases())} cases, hash {store.hash[:16]}")
    except HsslError as error:
        sys.exit(str(error))


def pack(store: Store, parts: Path, mib: float = 54, levels: int = 256) -> list[Path]:
    """Writes the tar files of a store.

    Args:
        store: What to pack.
        parts: A new folder.
        mib: The most that a file holds, in MiB; a case is never cut in two.
        levels: Grey levels of the images, 2 to 256.

    Returns:
        The files, in order.

    Raises:
        ConfigError: There is something at `parts`.
        StoreError: An array cannot be read, a case alone takes more than a file holds, slices are too large for WebP,
            or there are fewer than 2 or more than 256 levels.
    """
    if not 2 <= levels <= 256:
        raise StoreError(f"{levels} grey levels do not fit a byte", hint="2 to 256")
    members = [(INDEX, store.index.model_dump_json().encode()), (SPLITS, store.splits.model_dump_json().encode())]
    names: list[str] = []
    room = 0.0
    with new_folder(parts) as folder, ExitStack() as opened:
        for case in (None, *store.cases()):
            members += [] if case is None else _packed(store, case, levels)
            size = sum(len(content) + 1024 for _, content in members)  # header and padding of the tar format
            most = mib * 2**20 - 10_240
            if size > most:
                what = "the index" if case is None else f"case '{case.id}' of '{case.task}'"
                need = (size + 10_240) / 2**20
                raise StoreError(f"{what} alone takes a file of {need:.1f} MiB", hint=f"--mib {math.ceil(need)}")
            if size > room:
                names.append(f"part-{len(names)}.tar")
                tar = opened.enter_context(tarfile.open(folder / names[-1], "w"))
                room = most
            room -= size
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            members = []
    return [parts / name for name in names]


def unpack(parts: Path, path: Path) -> Store:
    """Makes a store of the tar files in a folder.

    Raises:
        ConfigError: There is something at `path`.
        StoreError: A part is missing or damaged.
    """
    contents: dict[str, bytes] = {}
    for part in sorted(parts.glob("part-*.tar")):
        try:
            with tarfile.open(part) as tar:
                for entry in tar:
                    stream = tar.extractfile(entry)
                    contents[entry.name] = b"" if stream is None else stream.read()
        except (OSError, tarfile.TarError) as error:
            raise StoreError(f"cannot be read: {error}", path=part, hint="pack again") from error
    if INDEX not in contents:
        raise StoreError("holds no packed store", path=parts, hint="it is in part-0.tar")
    index = Index.model_validate_json(contents[INDEX])
    with new_folder(path) as folder:
        cases = [_unpacked(contents, case, parts, folder) for case in index.cases]
        (folder / SPLITS).write_bytes(contents[SPLITS])
        write_text(folder / INDEX, index.model_copy(update={"cases": cases}).model_dump_json(indent=1))
    return Store.open(path)


def _packed(store: Store, case: CaseRecord, levels: int) -> Iterator[tuple[str, bytes]]:
    if max(case.shape[1:]) > LARGEST:
        rows, columns = case.shape[1:]
        raise StoreError(
            f"slices of case '{case.id}' of '{case.task}' have {rows} x {columns} pixels: WebP has {LARGEST}",
            hint="leave this task out of the store",
        )
    grey = np.rint(store.image(case).astype(np.float32) * (levels - 1)).astype(np.uint8)
    header = np.array([levels - 1], np.uint8).tobytes()
    for number, chunk in enumerate(_chunks(case)):
        picture = io.BytesIO()
        Image.fromarray(grey[chunk].reshape(-1, case.shape[2])).save(picture, "WEBP", lossless=True, method=4)
        yield f"images/{case.task}/{case.id}/{number}", header + picture.getvalue()
    if case.has_label:
        yield f"labels/{case.task}/{case.id}", lzma.compress(np.ascontiguousarray(store.label(case)).tobytes())


def _unpacked(contents: dict[str, bytes], case: CaseRecord, parts: Path, path: Path) -> CaseRecord:
    def array(kind: str, values: NDArray[np.float16] | NDArray[np.uint8]) -> str:
        target = array_path(path, kind, case.task, case.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, values.reshape(case.shape))
        return file_hash(target)

    try:
        pictures = [contents[f"images/{case.task}/{case.id}/{number}"] for number, _ in enumerate(_chunks(case))]
        label = contents[f"labels/{case.task}/{case.id}"] if case.has_label else None
    except KeyError as error:
        raise StoreError(f"lacks {error}", path=parts, hint="bring all parts") from error
    grey = [np.asarray(Image.open(io.BytesIO(picture[1:])))[..., 0] for picture in pictures]
    image = np.concatenate(grey).astype(np.float32) / pictures[0][0]
    hashes: dict[str, str | None] = {"stored_image_sha256": array("images", image.astype(np.float16))}
    if label is not None:
        hashes["stored_label_sha256"] = array("labels", np.frombuffer(lzma.decompress(label), np.uint8))
    return case.model_copy(update={**hashes, "stored_label": None})


def _chunks(case: CaseRecord) -> Iterator[slice]:
    slices, rows, _ = case.shape
    each = max(1, LARGEST // rows)
    return (slice(start, start + each) for start in range(0, slices, each))


if __name__ == "__main__":
    main()
