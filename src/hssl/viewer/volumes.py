"""Stored arrays as NIfTI in memory, and what the page must know to draw them."""

from __future__ import annotations

from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hssl.palette import label_colours
from hssl.sources.base import Affine
from hssl.store import CaseRecord, Store

DIFFERENCES = {1: ("missed", "#d62728"), 2: ("too much", "#1f77b4"), 3: ("another label", "#ff7f0e")}
"""Name and colour of each value of :func:`difference`."""


class LabelEntry(BaseModel):
    """One label of a layer.

    Attributes:
        value: In the mask.
        name: What it shows.
        colour: ``#rrggbb``.
        ml: Its volume in millilitres; None where nobody knows, or where there is no volume.
    """

    model_config = ConfigDict(frozen=True)

    value: int
    name: str
    colour: str
    ml: float | None = None


class Layer(BaseModel):
    """One volume that the page draws over the others.

    Attributes:
        name: What the page calls it.
        url: Where it is, below the token; its name ends in ``.nii`` or ``.nii.gz``.
        kind: An image in grey, a mask in colours, or a map of values in [0, 1].
        labels: Of a mask.
        shown: Whether it is on at the start.
        note: What should be known of it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    kind: Literal["image", "mask", "map"]
    labels: list[LabelEntry] = []
    shown: bool = True
    note: str = ""


def case_affine(store: Store, case: CaseRecord) -> Affine:
    """Where a stored case lies: slice, row and column to mm (RAS+), float64 ``[4, 4]``.

    A picture has no directions: it is put upright on the screen, columns to the left of a body that faces the viewer.
    """
    preprocessing = store.tasks[case.task].preprocessing
    if preprocessing.orientation and case.geometry.ndim == 3:
        return preprocessing.stored_affine(case.geometry)
    thickness, height, width = preprocessing.stored_spacing(case.geometry)
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = -width, -height, thickness, 1.0
    return affine


def to_nifti(array: NDArray[Any], affine: Affine) -> bytes:
    """A stored array as a NIfTI file.

    Args:
        array: ``[slices, rows, columns]``; float becomes float32, which holds every float16 exactly; what is no
            uint8 becomes int32.
        affine: Slice, row and column to mm.

    Returns:
        The file, not compressed, with the axes columns, rows, slices: the bytes of the array need no turning.
    """
    whole = np.uint8 if array.dtype == np.uint8 else np.int32
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else whole
    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_dtype(kind)
    header.set_data_shape(array.shape[::-1])
    turned = affine[:, [2, 1, 0, 3]]
    header.set_sform(turned, code=1)
    header.set_qform(turned, code=1, strip_shears=True)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    start: bytes = header.binaryblock
    return start + bytes(4) + np.ascontiguousarray(array, np.dtype(kind).newbyteorder("<")).tobytes()


def difference(truth: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where a mask differs from the truth, any shape: 1 missed, 2 too much, 3 another label, 0 the same."""
    found = np.zeros(truth.shape, np.uint8)
    found[(truth > 0) & (mask == 0)] = 1
    found[(truth == 0) & (mask > 0)] = 2
    found[(truth > 0) & (mask > 0) & (truth != mask)] = 3
    return found


def label_entries(store: Store, task: str, counts: dict[int, int] | None, voxel_ml: float | None) -> list[LabelEntry]:
    """The labels of a task with their colours and volumes.

    Args:
        store: The data.
        task: The task.
        counts: Voxels of each label value; None where nobody has counted.
        voxel_ml: Volume of a voxel; None for pictures.
    """
    info = store.tasks[task]
    colours = label_colours(info.labels)

    def volume(value: int) -> float | None:
        return None if counts is None or voxel_ml is None else counts.get(value, 0) * voxel_ml

    return [
        LabelEntry(value=value, name=name, colour=colours[value], ml=volume(value))
        for value, name in sorted(info.labels.items())
    ]


def difference_entries() -> list[LabelEntry]:
    """What the values of :func:`difference` mean."""
    return [LabelEntry(value=value, name=name, colour=colour) for value, (name, colour) in DIFFERENCES.items()]


def source_voxel_ml(case: CaseRecord) -> float | None:
    """Millilitres of a voxel of the source file; None for a picture, which has no depth."""
    if case.source_ndim == 2 or min(case.source_shape) == 1:
        return None
    return abs(float(np.linalg.det(case.geometry.affine[:3, :3]))) / 1000
