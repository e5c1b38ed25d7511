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

import nibabel as nib

from hssl.errors import ConfigError, SourceError
from hssl.phantoms.anatomy import DOMAINS, Domain
from hssl.phantoms.rendering import make_phantom
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
    Existing folders, from the same arguments, are left as they are.

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
        SourceError: A folder already exists and holds something else.
    """
    unknown = sorted(set(tasks or ()) - set(PHANTOMS))
    if unknown:
        raise ConfigError(f"no phantom '{unknown[0]}'", hint=f"there are: {', '.join(PHANTOMS)}")
    if subjects < 1 or size < 16 or slices < 3:
        raise ConfigError("phantoms need at least 1 subject, 16 pixels and 3 slices", hint="ask for so many or more")
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
        raise SourceError("already exists and holds something else", path=folder, hint="choose another folder")
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
