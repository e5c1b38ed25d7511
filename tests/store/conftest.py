from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

MakeTask = Callable[..., Path]


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Writes a challenge of blobs in the layout of the Medical Segmentation Decathlon; returns its folder."""

    def make(
        name: str = "Blobs",
        *,
        ids: tuple[str, ...] = ("a", "b", "c", "d"),
        unlabelled: tuple[str, ...] = (),
        affine: NDArray[np.float64] | None = None,
        images: Mapping[str, NDArray[np.generic]] | None = None,
        labels: Mapping[str, NDArray[np.generic]] | None = None,
        shape: tuple[int, int, int] = (12, 10, 6),
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / "raw" / name
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / part).mkdir(parents=True)
        affine = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
        rng = np.random.default_rng(seed)
        for case in (*ids, *unlabelled):
            image = (images or {}).get(case, rng.normal(100, 20, shape).astype(np.float32))
            part = "imagesTs" if case in unlabelled else "imagesTr"
            nib.save(nib.Nifti1Image(image, affine), folder / part / f"{case}.nii.gz")
            if case not in unlabelled:
                mask = (labels or {}).get(case, (image > 110).astype(np.uint8) + (image > 130))
                nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / "labelsTr" / f"{case}.nii.gz")
        listing = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "rim", "2": "core"},
            "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ids],
            "test": [f"./imagesTs/{case}.nii.gz" for case in unlabelled],
        }
        (folder / "dataset.json").write_text(json.dumps(listing))
        return folder

    return make
