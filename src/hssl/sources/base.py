"""What every reader of raw data yields: a lazily read :class:`Case` with its geometry, subject and task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]

_CT = re.compile(r"(?<![a-z])(nc|ce|cb|ld|hr|md|de|micro)?-?ct[ap]?(?![a-z])|computed tomogra", re.IGNORECASE)


def is_ct(modality: str) -> bool:
    """Whether a modality, as a source names it, is CT, whose intensities are Hounsfield units."""
    return _CT.search(modality) is not None


@dataclass(frozen=True)
class Geometry:
    """The grid of one image.

    Attributes:
        shape: Voxels along the three array axes; a 2D image has 1 along the last.
        affine: Voxel indices to world coordinates in mm (RAS+), float64 ``[4, 4]``, as in NIfTI.
        ndim: 3 for a volume, 2 for a 2D image (read as one slice).
    """

    shape: tuple[int, int, int]
    affine: Affine
    ndim: int = 3

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Where each array axis points, as three letters out of ``RLAPSI`` (for example ``RAS``)."""
        return "".join(nib.orientations.aff2axcodes(self.affine))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Case:
    """One image, with its mask if there is one. Nothing is read until it is needed.

    Attributes:
        id: Unique within its task; also the name of its files in a store.
        subject: The person that it shows. Several cases of one subject are never split.
        task: The challenge, or channel of a challenge, that it belongs to.
        image_path: The file the image comes from (for a DICOM series, its folder).
        label_path: The file the mask comes from; None without a mask.
        read_geometry: Reads the header alone.
        read_image: Reads the voxels as float32, ``geometry.shape``, in the file's own units and axis order.
        read_label: Reads the mask as integers, ``geometry.shape`` (checked against the image by the store).
        image_files: The files the image is read from; empty where `image_path` is the only one.
        padding: Value in `read_image` of voxels that were not measured, where the header declares one.
    """

    id: str
    subject: str
    task: str
    image_path: Path
    label_path: Path | None
    read_geometry: Callable[[], Geometry] = field(repr=False)
    read_image: Callable[[], NDArray[np.float32]] = field(repr=False)
    read_label: Callable[[], NDArray[np.integer]] | None = field(repr=False, default=None)
    image_files: tuple[Path, ...] = field(repr=False, default=())
    padding: float | None = None


class Source(Protocol):
    """One task of raw data. A folder can hold several (one per channel).

    Attributes:
        task: Its name; safe as a folder name.
        path: The folder it was found in.
        layout: Which reader found it (``msd``, ``nnunet``, ``nifti``, ``images2d``, ``dicom``).
        modality: As the source names it (``MRI``, ``CT`` ...); empty where unknown.
        labels: Integer value of each label in the masks, without background; empty without masks.
        channel: Index of the channel it reads in files that hold several; None in files that hold one.
    """

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def layout(self) -> str:
        """Name of the layout."""
        ...

    @property
    def modality(self) -> str:
        """Modality, or an empty string."""
        ...

    @property
    def labels(self) -> Mapping[int, str]:
        """Name of each label value."""
        ...

    @property
    def channel(self) -> int | None:
        """Channel read, where files hold several."""
        ...

    def cases(self) -> Iterator[Case]:
        """Yields the cases in a fixed order, sorted by id.

        Raises:
            SourceError: A listed file is missing, or a subject rule does not match.
        """
        ...
