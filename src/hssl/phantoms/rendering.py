"""From a drawing to a scan: coordinates of a subject, the grid of its file, and how the scanner sees it."""

from __future__ import annotations

from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from hssl.phantoms.anatomy import Array, Canvas, Domain, smooth_field


def make_phantom(
    domain: Domain, seeds: tuple[int, ...], frame: int, size: int, slices: int
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Draws and acquires one case.

    Args:
        domain: What to draw.
        seeds: Seed of the anatomy; the frames of a subject share it.
        frame: Number of the frame, from 0.
        size: Pixels along the longer side of a slice.
        slices: Slices on average; subjects differ by up to a sixth.

    Returns:
        Image (int16) and mask (uint8), in one of the domain's stored orientations.
    """
    rng, acquisition = np.random.default_rng(seeds), np.random.default_rng((*seeds, frame + 1))
    columns = round(size / max(1, domain.aspect))
    count = 1 if domain.single else slices + int(rng.integers(-(slices // 6), slices // 6 + 1))
    shape = (columns, round(columns * domain.aspect), count)
    zoom = rng.uniform(0.9, 1.1)
    x, y, z = _coordinates(rng, shape, zoom, count / (1 if domain.single else slices))
    canvas = Canvas(rng, x, y, z, phase=float(frame))
    domain.draw(canvas)

    pixel = zoom * domain.width / columns
    affine = _affine(rng, domain, (pixel, pixel, domain.thickness), shape)
    stored = domain.stored[seeds[-1] % len(domain.stored)]
    turn = ornt_transform(axcodes2ornt(domain.axes), axcodes2ornt(stored))  # type: ignore[no-untyped-call]
    acquired = _ACQUIRE[domain.kind](acquisition, canvas.image).astype(np.int16)
    return _stored(acquired, affine, turn), _stored(canvas.label, affine, turn)


def _stored(array: NDArray[np.integer], affine: NDArray[np.float64], turn: NDArray[np.float64]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    return cast(nib.Nifti1Image, image.as_reoriented(turn))  # type: ignore[no-untyped-call]


def _coordinates(rng: np.random.Generator, shape: tuple[int, int, int], zoom: float, extent: float) -> list[Array]:
    """Coordinates of every voxel: scaled by the pixel size, then moved, turned, sized and bent."""
    columns, rows, slices = shape
    grids = [
        zoom * (2 * np.arange(columns) + 1 - columns) / columns,
        zoom * (2 * np.arange(rows) + 1 - rows) / columns,
        extent * (2 * np.arange(slices) + 1 - slices) / slices,
    ]
    x, y, z = np.meshgrid(*(grid.astype(np.float32) for grid in grids), indexing="ij")
    bends = [smooth_field(rng, shape, (4, 4, 2)) for _ in range(2)]
    angle, big = rng.uniform(-0.14, 0.14), rng.uniform(0.9, 1.12)
    x, y = x + rng.uniform(-0.06, 0.06) + 0.035 * bends[0], y + rng.uniform(-0.06, 0.06) + 0.03 * bends[1]
    return [
        ((np.cos(angle) * x + np.sin(angle) * y) * big * rng.uniform(0.95, 1.05)).astype(np.float32),
        ((np.cos(angle) * y - np.sin(angle) * x) * big).astype(np.float32),
        (z + rng.uniform(-0.1, 0.1)).astype(np.float32) if slices > 1 else z,
    ]


def _affine(
    rng: np.random.Generator, domain: Domain, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> NDArray[np.float64]:
    """An affine whose axes point as the drawing does, tilted at random, its origin near the middle."""
    axes = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(axcodes2ornt(domain.axes)):  # type: ignore[no-untyped-call]
        axes[int(world), axis] = sign * spacing[axis]
    tilt = np.deg2rad(domain.oblique) * rng.uniform(-1, 1, 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(tilt).as_matrix() @ axes
    affine[:3, 3] = rng.uniform(-20, 20, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _acquire_ct(rng: np.random.Generator, image: Array) -> Array:
    """HU, slightly blurred, with correlated noise."""
    noise = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (0.6, 0.6, 0))
    blurred = gaussian_filter(image, (0.5, 0.5, 0.3))
    return np.clip(np.rint(blurred + rng.uniform(25, 60) * noise), -1024, 3000).astype(np.float32)


def _acquire_mr(rng: np.random.Generator, image: Array) -> Array:
    """Arbitrary units, blurred, shaded by the coil, with Rician noise."""
    width = rng.uniform(0.4, 0.9)
    shaded = gaussian_filter(image, (width, width, 0.3)) * np.exp(
        rng.uniform(0.1, 0.3) * smooth_field(rng, image.shape, (2, 2, 1))
    )
    level = rng.uniform(4, 12)
    parts = [level * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2)]
    magnitude = rng.uniform(1, 8) * np.hypot(shaded + parts[0], parts[1])
    return np.asarray(np.rint(np.clip(magnitude, 0, 32000)), np.float32)


def _acquire_xray(rng: np.random.Generator, image: Array) -> Array:
    """12 bits, with scatter, a detector curve and noise."""
    blurred = gaussian_filter(image, (0.6, 0.6, 0))
    scatter = gaussian_filter(image, (8, 8, 0))
    mixed = blurred + rng.uniform(0, 0.4) * (scatter - blurred) + 0.04 * smooth_field(rng, image.shape, (2, 2, 1))
    mixed += rng.uniform(0.01, 0.04) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.rint(4095 * np.clip(mixed, 0, 1) ** rng.uniform(0.7, 1.4)), np.float32)


_ACQUIRE = {"ct": _acquire_ct, "mr": _acquire_mr, "xray": _acquire_xray}
