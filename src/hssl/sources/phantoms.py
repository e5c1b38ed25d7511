"""Labelled phantom challenges, written as Medical Segmentation Decathlon folders.

They differ the way real ones do (modality, organs, spacing, orientation, number of cases), need no download,
and are the same for the same seed. They are for the demo and the tests; no result on them says anything
about patients.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from hssl.errors import ConfigError, SourceError
from hssl.sources.anatomy import DOMAINS, Array, Canvas, Domain, smooth_field
from hssl.sources.folder import read_json

PHANTOMS = tuple(domain.task for domain in DOMAINS)


def write_phantoms(
    root: Path,
    *,
    seed: int = 0,
    subjects: int = 16,
    tasks: Collection[str] | None = None,
    size: int = 96,
    slices: int = 12,
) -> list[Path]:
    """Writes phantom challenges into `root`, one folder each.

    A subject depends on the seed, the size and its number alone, so a smaller set is part of a larger one.
    Folders that are there already, from the same arguments, are left as they are.

    Args:
        root: Folder to write into; made if missing.
        seed: Seed of everything random; the same seed gives the same voxels.
        subjects: Subjects of each challenge (four times as many X-rays, which have one slice each).
        tasks: Some of :data:`PHANTOMS`; None for all.
        size: Pixels along the longer side of a slice.
        slices: Slices of a volume, on average.

    Returns:
        The folders, sorted.

    Raises:
        ConfigError: A task is unknown, or a number is too small.
        SourceError: A folder is there already and holds something else.
    """
    unknown = sorted(set(tasks or ()) - set(PHANTOMS))
    if unknown:
        raise ConfigError(f"no phantom '{unknown[0]}'", hint=f"there are: {', '.join(PHANTOMS)}")
    if subjects < 1 or size < 16 or slices < 3:
        raise ConfigError("phantoms need at least 1 subject, 16 pixels and 3 slices")
    root = Path(root)
    folders = []
    for number, domain in enumerate(DOMAINS):
        if tasks is None or domain.task in tasks:
            settings = {"seed": seed, "subjects": subjects, "size": size, "slices": slices}
            folders.append(_write_domain(root / domain.task, number, domain, settings))
    return folders


def _write_domain(folder: Path, number: int, domain: Domain, settings: dict[str, int]) -> Path:
    if folder.exists():
        listing = folder / "dataset.json"
        if listing.is_file() and read_json(listing).get("phantom") == settings:
            return folder
        raise SourceError("is there already and holds something else", path=folder, hint="choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (partial / part).mkdir(parents=True)
    training = []
    for subject in range(settings["subjects"] * (4 if domain.single else 1)):
        for frame in range(domain.frames):
            name = f"{domain.task[7:].lower()}_{subject + 1:03d}"
            name += f"_frame{1 + 7 * frame:02d}" if domain.frames > 1 else ""
            seeds = (settings["seed"], number, subject)
            image, label = make_phantom(domain, seeds, frame, settings["size"], settings["slices"])
            nib.save(image, partial / f"imagesTr/{name}.nii.gz")
            nib.save(label, partial / f"labelsTr/{name}.nii.gz")
            training.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    labels = ("background", *domain.labels)
    dataset = {
        "name": domain.task[7:],
        "description": f"Phantom: {domain.description}",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": domain.modality},
        "labels": {str(value): name for value, name in enumerate(labels)},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
        "phantom": settings,
    }
    (partial / "dataset.json").write_text(json.dumps(dataset, indent=1), encoding="utf-8")
    return partial.replace(folder)


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
