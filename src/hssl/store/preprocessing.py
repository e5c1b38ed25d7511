"""Preprocessing of one task: how images get from the grid of their files into the store, and masks back again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from hssl.errors import StoreError
from hssl.sources.base import Affine, Geometry

PERCENTILES = (0.5, 99.5)
"""The intensities that become 0 and 1 where there is no window."""

_DISPLAY = {
    "LR": "IPL",
    "AP": "ILA",
    "IS": "PLS",
}  # where the slices lie -> orientation on a radiologist's screen
_PLANES = np.array([[1, 1], [2, 1], [0, 1]])  # [rows, columns, slices] -> [slices, rows, columns], no flips
_IDENTITY = np.array([[0, 1], [1, 1], [2, 1]])
_THICK = 1.5  # slices this much thicker than the pixels are wide are the slices the scanner took
_SAME_SPACING = 0.01
_LARGEST_SCALE = 8.0  # beyond it a unit is wrong: the image would become a few pixels, or fill the memory
_FEW = 8
_SLICES_AT_ONCE = 16  # bounds the memory of the one-hot masks
_LEAST_CONTRAST = 0.02  # of the range from 0 to 1; with less, an image shows nothing
_FAR_OFF = 0.25  # of the range of the other voxels
_ON_BORDER = 0.1  # of the voxels on the faces of an image
_GREYS = 16  # a measurement has at least so many values

T = TypeVar("T")
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scalar = TypeVar("Scalar", bound=np.generic)
Orientation = NDArray[np.float64]  # for each array axis the axis it becomes and its sign, as in nibabel


class Preprocessing(BaseModel):
    """The geometry and intensities that all images of a task share in a store.

    Images are reoriented by swapping and flipping axes only, and resampled in plane only; the slice axis
    keeps its spacing.

    Attributes:
        orientation: Where stored rows, columns and slices point, three letters out of ``RLAPSI``; empty for
            2D images, which are kept as they are.
        spacing: Pixel size of stored slices in mm (rows, columns).
        window: Intensities stored as 0 and 1; None takes the percentiles 0.5 and 99.5 of each case.
        keep_slices: A case that was clearly scanned in slices of another direction keeps its own slices,
            upright as on a radiologist's screen, instead of being cut across them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orientation: Annotated[str, Field(pattern="^([RLAPSI]{3})?$")]
    spacing: tuple[Length, Length]
    window: tuple[FiniteFloat, FiniteFloat] | None = None
    keep_slices: bool = True

    def intensity_range(self, image: NDArray[np.float32], *, padding: float | None = None) -> tuple[float, float]:
        """The intensities of `image` that are stored as 0 and 1.

        Voxels outside the field of view, which were not measured, do not count: those with the value `padding`, and
        those with a value that lies far off and fills a part of the border.

        Args:
            image: Voxels in the file's units, float32 of any shape.
            padding: Value of voxels that were not measured, as the file's header declares it.

        Raises:
            StoreError: A voxel is NaN or infinite, or the image shows nothing.
        """
        if not np.isfinite(image).all():
            raise StoreError(
                f"has {np.count_nonzero(~np.isfinite(image))} voxels that are NaN or infinite",
                hint="replace them, for example by the value of air, or leave the case out",
            )
        measured = _measured(image, padding)
        lowest, highest = (float(measured.min()), float(measured.max())) if measured.size else (padding or 0.0,) * 2
        if lowest == highest:
            raise StoreError(f"has no contrast: every voxel is {lowest:g}", hint="leave the case out")
        low, high = self.window or np.percentile(measured, PERCENTILES).tolist()
        if low >= high:  # nearly all voxels are equal: the few others are the image
            low, high = lowest, highest
        if min(highest, high) - max(lowest, low) < _LEAST_CONTRAST * (high - low):
            raise StoreError(
                f"has no contrast in the window {low:g} to {high:g}: its intensities are {lowest:g} to {highest:g}",
                hint="a window is in Hounsfield units; aggregate what is scaled already without one",
            )
        return low, high

    def prepare_image(
        self,
        image: NDArray[np.float32],
        geometry: Geometry,
        *,
        intensity: tuple[float, float] | None = None,
        padding: float | None = None,
    ) -> NDArray[np.float16]:
        """Brings an image from the grid of its file into the grid and range of the store.

        Args:
            image: Voxels in the file's units, float32, ``geometry.shape``.
            geometry: The grid of the file.
            intensity: The result of :meth:`intensity_range`, if it is at hand.
            padding: As for :meth:`intensity_range`.

        Returns:
            float16 ``[slices, rows, columns]`` in [0, 1], as the store holds it.

        Raises:
            StoreError: The image does not fit its geometry, has no contrast or is not finite.
        """
        _check_shape(image, geometry)
        self.check_scale(geometry)
        low, high = intensity or self.intensity_range(image, padding=padding)
        planes = _oriented(image, self._transform(geometry)).astype(np.float32, order="C")
        planes -= low
        planes /= high - low
        np.clip(planes, 0, 1, out=planes)
        size = self.stored_shape(geometry)[1:]
        if size == planes.shape[1:]:
            return planes.astype(np.float16)
        tensor = torch.from_numpy(planes)[:, None]
        resampled = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=True)
        return np.asarray(resampled[:, 0].clamp_(0, 1)).astype(np.float16)

    def prepare_label(self, label: NDArray[np.integer], geometry: Geometry) -> NDArray[np.uint8]:
        """Brings a mask from the grid of its file into the grid of the store.

        Args:
            label: Label values 0..255, ``geometry.shape``.
            geometry: The grid of the file.

        Returns:
            uint8 ``[slices, rows, columns]``, the same label values.

        Raises:
            StoreError: The mask does not fit the geometry.
        """
        _check_shape(label, geometry)
        planes = _oriented(label, self._transform(geometry)).astype(np.uint8, order="C")
        size = self.stored_shape(geometry)[1:]
        if size == planes.shape[1:]:
            return planes

        def vote(part: slice) -> NDArray[np.uint8]:
            values = np.unique(planes[part])
            shares = (planes[part] == values[:, None, None, None]).astype(np.float32)
            return np.take(values, _resampled_argmax(shares, size))

        return _by_slices(vote, len(planes))

    def restore_slices(self, scores: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
        """Turns scores on the store's grid into classes in the pixels of the file, for all slices of an image or some.

        Scores are resampled linearly in plane, then the highest wins (the lowest class of equals).

        Args:
            scores: float32 ``[classes, slices, rows, columns]`` on the store's grid; class 0 is background.
            geometry: The grid of the file.

        Returns:
            uint8 ``[slices, rows, columns]``: the class of each pixel, in the file's pixels and the store's axes.

        Raises:
            StoreError: The slices are not of the size that those of this geometry have in the store.
        """
        size = self._restored_size(scores, geometry)
        return _by_slices(lambda part: _resampled_argmax(scores[:, part], size), scores.shape[1])

    def restore_scores(self, scores: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
        """Resamples scores linearly in plane from the store's grid to the pixels of the file.

        Args:
            scores: float32 ``[classes, slices, rows, columns]`` on the store's grid.
            geometry: The grid of the file.

        Returns:
            float32 ``[classes, slices, rows, columns]``, in the file's pixels and the store's axes.

        Raises:
            StoreError: The slices are not of the size that those of this geometry have in the store.
        """
        size = self._restored_size(scores, geometry)
        if scores.shape[2:] == size:
            return scores
        tensor = torch.from_numpy(np.ascontiguousarray(scores, np.float32))
        return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False).numpy()

    def _restored_size(self, scores: NDArray[np.float32], geometry: Geometry) -> tuple[int, int]:
        """Rows and columns of the file's slices, in the store's axes."""
        if scores.shape[2:] != self.stored_shape(geometry)[1:]:
            raise self._unfit(scores.shape[1:], geometry)
        _, rows, columns = _permuted(geometry.shape, self._transform(geometry))
        return rows, columns

    def restore_axes(self, planes: NDArray[Scalar], geometry: Geometry) -> NDArray[Scalar]:
        """Puts all slices of :meth:`restore_slices` back into the axes of the file, exactly.

        Args:
            planes: ``[slices, rows, columns]``.
            geometry: The grid of the file.

        Returns:
            ``geometry.shape``, the same type: the value of each voxel.

        Raises:
            StoreError: There are not as many slices as images of this geometry have in the store.
        """
        if len(planes) != self.stored_shape(geometry)[0]:
            raise self._unfit(planes.shape, geometry)
        return np.ascontiguousarray(_oriented(planes, _between(_IDENTITY, self._transform(geometry))))

    def _unfit(self, shape: tuple[int, ...], geometry: Geometry) -> StoreError:
        return StoreError(
            f"scores of shape {shape} do not fit an image stored as {self.stored_shape(geometry)}",
            hint="give scores on the grid of the store",
        )

    def check_units(self, geometry: Geometry) -> None:
        """Refuses a header whose pixels are so much larger or smaller than the task's that its unit must be wrong.

        For a spacing that the user has not set.

        Raises:
            StoreError: They are eight times as large, or more, or as small.
        """
        spacing = _permuted(geometry.spacing, self._transform(geometry))[1:]
        scales = [own / stored for own, stored in zip(spacing, self.spacing, strict=True)]
        if not 1 / _LARGEST_SCALE <= min(scales) <= max(scales) <= _LARGEST_SCALE:
            raise self._scaled(spacing, "correct the spacing in its header, or see whether that of the others is wrong")

    def check_scale(self, geometry: Geometry) -> None:
        """Refuses an image that preprocessing would make far too small, or too large for memory.

        Raises:
            StoreError: A side of 64 pixels or more would become one of less than eight, or any one eight times as long.
        """
        spacing = _permuted(geometry.spacing, self._transform(geometry))[1:]
        before, after = _permuted(geometry.shape, self._transform(geometry))[1:], self.stored_shape(geometry)[1:]
        if any((o >= _FEW**2 and n < _FEW) or n > _LARGEST_SCALE * o for o, n in zip(before, after, strict=True)):
            raise self._scaled(spacing, "correct the spacing in its header, or aggregate with another --spacing")

    def _scaled(self, spacing: Sequence[float], hint: str) -> StoreError:
        own, stored = (" x ".join(f"{length:g}" for length in lengths) for lengths in (spacing, self.spacing))
        return StoreError(f"has pixels of {own} mm where the task has {stored}", hint=hint)

    def stored_shape(self, geometry: Geometry) -> tuple[int, int, int]:
        """Slices, rows and columns that an image of this geometry has in the store."""
        transform = self._transform(geometry)
        slices, rows, columns = _permuted(geometry.shape, transform)
        _, height, width = _permuted(geometry.spacing, transform)
        return slices, _size(rows, height, self.spacing[0]), _size(columns, width, self.spacing[1])

    def stored_spacing(self, geometry: Geometry) -> tuple[float, float, float]:
        """Spacing in mm of slices, rows and columns that an image of this geometry has in the store."""
        transform = self._transform(geometry)
        before, after = _permuted(geometry.shape, transform), self.stored_shape(geometry)
        spacing = _permuted(geometry.spacing, transform)
        return spacing[0], spacing[1] * before[1] / after[1], spacing[2] * before[2] / after[2]

    def stored_affine(self, geometry: Geometry) -> Affine:
        """Where an image of this geometry lies once stored: slice, row and column to mm (RAS+), float64 ``[4, 4]``."""
        transform = self._transform(geometry)
        scale = np.array(_permuted(geometry.shape, transform)) / self.stored_shape(geometry)
        resampled = np.diag([*scale, 1.0])
        resampled[:3, 3] = (scale - 1) / 2  # the outer edges stay, not the centres of the first pixels
        turned = nib.orientations.inv_ornt_aff(transform, geometry.shape)  # type: ignore[no-untyped-call]
        affine: Affine = geometry.affine @ turned @ resampled
        return affine

    def _transform(self, geometry: Geometry) -> Orientation:
        """The nibabel orientation that takes the file's axes to ``[slices, rows, columns]``."""
        if not self.orientation or geometry.ndim == 2:
            return _PLANES
        stored = self.orientation
        thick = _thick_axis(geometry)
        if self.keep_slices and thick is not None and stored[2] not in _axis(geometry, thick):
            stored = _DISPLAY[_axis(geometry, thick)]
        end = nib.orientations.axcodes2ornt(stored[2] + stored[:2])  # type: ignore[no-untyped-call]
        return _between(_orientation(geometry), end)


def make_preprocessing(
    geometries: Iterable[Geometry],
    *,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, float] | None = None,
    orientation: str | None = None,
) -> Preprocessing:
    """Chooses the preprocessing of a task from the geometry of its cases.

    Slices lie along the axis with clearly the largest spacing (1.5 times the others), else along the last
    array axis, by the majority of cases; they are turned upright as on a radiologist's screen. The spacing is
    the median.

    Args:
        geometries: One for each case, at least one.
        window: Intensities to store as 0 and 1; None for percentiles.
        spacing: In-plane spacing in mm (rows, columns) instead of the median.
        orientation: Where rows, columns and slices point, instead of the majority's.
    """
    geometries = list(geometries)
    volumes = [geometry for geometry in geometries if geometry.ndim == 3]
    keep_slices = orientation is None
    if orientation is None:
        orientation = ""
        if 2 * len(volumes) >= len(geometries):
            axes = Counter(_axis(geometry, _slice_axis(geometry)) for geometry in volumes)
            orientation = _DISPLAY[max(sorted(axes), key=axes.__getitem__)]
    chosen = Preprocessing(orientation=orientation, spacing=(1.0, 1.0), window=window, keep_slices=keep_slices)
    if spacing is None:
        sizes = [_permuted(geometry.spacing, chosen._transform(geometry))[1:] for geometry in geometries]
        rows, columns = np.median(sizes, axis=0).round(6).tolist()
        spacing = rows, columns
    return chosen.model_copy(update={"spacing": spacing})


def check_geometry(geometry: Geometry) -> None:
    """Raises :class:`StoreError` if the grid is empty or its affine cannot be used."""
    if min(geometry.shape) < 1:
        raise StoreError(f"has no voxels: its shape is {geometry.shape}", hint="convert it again from where it came")
    usable = np.isfinite(geometry.affine).all() and min(geometry.spacing) > 0
    if not usable or np.isnan(_orientation(geometry)).any():
        raise StoreError(
            "has no usable affine: a spacing is zero or not a number, or two axes coincide",
            hint="correct the header, or convert it again from where it came",
        )


def _measured(image: NDArray[np.float32], padding: float | None) -> NDArray[np.float32]:
    """The voxels inside the field of view, ``[n]``; `image` itself where none lies outside."""
    if padding is not None:
        return np.asarray(image[image != np.float32(padding)])
    faces = [np.take(image, [0, -1], axis).reshape(-1) for axis, length in enumerate(image.shape) if length > 1]
    border = np.concatenate(faces) if faces else image.reshape(-1)
    outside = [
        extreme
        for extreme in (image.min(), image.max())
        if np.count_nonzero(border == extreme) >= _ON_BORDER * border.size and _lies_far_off(extreme, image)
    ]
    return image[~np.isin(image, outside)] if outside else image


def _lies_far_off(extreme: np.float32, image: NDArray[np.float32]) -> bool:
    """Whether the other voxels are a measurement of many values, none of which comes near to `extreme`."""
    sample = image.reshape(-1)[:: 1 + image.size // 100_000]
    rest = sample[sample != extreme]
    if len(np.unique(rest)) < _GREYS:  # a picture of a few greys, each of which means something
        return False
    low, high = np.percentile(rest, PERCENTILES)
    far = _FAR_OFF * float(high - low)
    if np.abs(rest - extreme).min() <= far:
        return False
    return bool(np.abs(image[image != extreme] - extreme).min() > far)


def _check_shape(array: NDArray[np.float32] | NDArray[np.integer], geometry: Geometry) -> None:
    if array.shape != geometry.shape:
        raise StoreError(
            f"has the shape {array.shape}, expected {geometry.shape}", hint="convert it again from where it came"
        )


def _orientation(geometry: Geometry) -> Orientation:
    """How the file's axes lie in the body, as nibabel counts."""
    return np.asarray(nib.orientations.io_orientation(geometry.affine))  # type: ignore[no-untyped-call]


def _between(start: Orientation, end: Orientation) -> Orientation:
    """The swaps and flips that lead from one orientation to another."""
    return np.asarray(nib.orientations.ornt_transform(start, end))  # type: ignore[no-untyped-call]


def _oriented(array: NDArray[Any], transform: Orientation) -> NDArray[Any]:
    """Swaps and flips the axes of `array`; returns a view."""
    return np.asarray(nib.orientations.apply_orientation(array, transform))  # type: ignore[no-untyped-call]


def _axis(geometry: Geometry, axis: int) -> str:
    """The line in the body that an array axis runs along: ``LR``, ``AP`` or ``IS``."""
    letter = geometry.orientation[axis]
    return next(line for line in _DISPLAY if letter in line)


def _thick_axis(geometry: Geometry) -> int | None:
    """The array axis whose spacing is clearly the largest, if there is one."""
    order = np.argsort(geometry.spacing)
    second, largest = (geometry.spacing[axis] for axis in order[1:])
    # Spacings are stored as float32: 1.5 mm is no less than 1.5 times 1 mm.
    return int(order[2]) if largest >= _THICK * second * (1 - 1e-5) else None


def _slice_axis(geometry: Geometry) -> int:
    thick = _thick_axis(geometry)
    return 2 if thick is None else thick


def _size(length: int, spacing: float, target: float) -> int:
    """Pixels along an axis after resampling, the extent in mm being kept."""
    if abs(spacing / target - 1) <= _SAME_SPACING:
        return length
    return max(1, round(length * spacing / target))


def _permuted(values: tuple[T, T, T], transform: Orientation) -> tuple[T, T, T]:
    """Puts one value for each file axis into the order of the stored axes."""
    first, second, third = (values[axis] for axis in np.argsort(transform[:, 0]))
    return first, second, third


def _resampled_argmax(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resamples ``[classes, slices, rows, columns]`` in plane; returns the class with the highest score."""
    if len(scores) == 1:
        return np.zeros((scores.shape[1], *size), np.uint8)
    tensor = torch.from_numpy(np.ascontiguousarray(scores, np.float32))
    if tensor.shape[2:] != size:
        tensor = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    best, winner = tensor[0].clone(), torch.zeros(tensor.shape[1:], dtype=torch.uint8)
    for number, score in enumerate(tensor[1:], start=1):  # several times as fast as argmax over the first axis
        winner.masked_fill_(score > best, number)
        torch.maximum(best, score, out=best)
    return winner.numpy()


def _by_slices(part_of: Callable[[slice], NDArray[np.uint8]], slices: int) -> NDArray[np.uint8]:
    """Puts together what `part_of` returns for a few slices at a time."""
    starts = range(0, slices, _SLICES_AT_ONCE)
    return np.concatenate([part_of(slice(start, start + _SLICES_AT_ONCE)) for start in starts])
