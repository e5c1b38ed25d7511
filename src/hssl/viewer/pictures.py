"""Small pictures of slices, as PNG: thumbnails, and sheets of what a network sees."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from hssl.store import CaseRecord, Store

SIDE = 128
"""Longer side of a thumbnail, in pixels."""


def draw_slice(
    image: NDArray[np.floating],
    mask: NDArray[np.uint8] | None = None,
    colours: Mapping[int, str] | None = None,
    *,
    filled: float = 0.0,
) -> NDArray[np.uint8]:
    """A slice in grey, with the outlines of its labels in their colours.

    Args:
        image: ``[rows, columns]`` in [0, 1].
        mask: Label values, ``[rows, columns]``.
        colours: Of each label value that is drawn, ``#rrggbb``.
        filled: How much colour the inside of a label gets, in [0, 1].

    Returns:
        uint8 ``[rows, columns, 3]``.
    """
    grey = (255 * np.nan_to_num(image.astype(np.float32)).clip(0, 1)).round()
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    for value, colour in (colours or {}).items():
        if mask is None:
            break
        inside = mask == value
        part = np.where(_edge(inside), 1.0, filled)[:, :, None] * inside[:, :, None]
        picture = picture * (1 - part) + part * np.array(ImageColor.getrgb(colour)[:3])
    return picture.round().astype(np.uint8)


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that touch what lies outside of it."""
    padded = np.pad(inside, 1, mode="edge")
    kept = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = inside & ~kept
    return edge


def thumbnail(picture: NDArray[np.uint8], *, aspect: float = 1.0, side: int = SIDE) -> Image.Image:
    """A picture whose longer side is `side` pixels, drawn at its true aspect.

    Args:
        picture: uint8 ``[rows, columns, 3]``.
        aspect: Height of a pixel over its width.
        side: Pixels.
    """
    height, width = picture.shape[0] * aspect, float(picture.shape[1])
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)


def case_thumbnail(
    store: Store, case: CaseRecord, number: int, colours: Mapping[int, str] | None = None, *, side: int = SIDE
) -> bytes:
    """One stored slice as a PNG, with the outlines of its mask where `colours` are given and there is one."""
    _, height, width = store.tasks[case.task].preprocessing.stored_spacing(case.geometry)
    mask = store.label_slice(case, number) if colours and case.has_label else None
    picture = draw_slice(store.image_slice(case, number), mask, colours)
    return to_png(thumbnail(picture, aspect=height / width, side=side))


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], *, side: int = SIDE, gap: int = 4) -> bytes:
    """Pictures in rows and columns, as a PNG; each is fitted into a square of `side` pixels."""
    columns = max(len(row) for row in rows)
    whole = Image.new("RGB", (columns * (side + gap) - gap, len(rows) * (side + gap) - gap), (127, 127, 127))
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            whole.paste(thumbnail(picture, side=side), (across * (side + gap), down * (side + gap)))
    return to_png(whole)


def to_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
