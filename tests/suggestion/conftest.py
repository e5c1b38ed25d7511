from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from hssl.store import Store, aggregate

TASK = "Task03_BrainMR"


class FewMasks(NamedTuple):
    """A store in which one training subject has a mask, and the masks that a person would draw for the others."""

    store: Store
    task: str
    raw: Path
    truth: dict[str, NDArray[np.uint8]]

    def draw(self, folder: Path, case: str, mask: NDArray[np.uint8]) -> None:
        """Saves a mask as a drawing program does, in another type, on the grid that it was given."""
        path = folder / "masks" / f"{case}.nii.gz"
        affine = nib.load(path).affine
        nib.save(nib.Nifti1Image(mask.astype(np.int16), affine), path)


@pytest.fixture
def few_masks(phantom_root: Path, tmp_path: Path) -> FewMasks:
    raw = tmp_path / TASK
    shutil.copytree(phantom_root / TASK, raw)
    listing = json.loads((raw / "dataset.json").read_text())
    (raw / "imagesTs").mkdir(exist_ok=True)
    truth, listing["test"] = {}, []
    for each in listing["training"][2:]:
        image, label = (raw / each[kind] for kind in ("image", "label"))
        truth[image.name.removesuffix(".nii.gz")] = np.asarray(nib.load(label).dataobj).astype(np.uint8)
        image.rename(raw / "imagesTs" / image.name)
        label.unlink()
        listing["test"].append(f"./imagesTs/{image.name}")
    listing["training"] = listing["training"][:2]
    (raw / "dataset.json").write_text(json.dumps(listing))
    return FewMasks(aggregate([raw], tmp_path / "store"), TASK, raw, truth)
