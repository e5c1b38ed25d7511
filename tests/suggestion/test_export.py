from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl import aggregate, suggest
from hssl.errors import ConfigError
from hssl.sources.files import read_geometry

TASK = "Task03_BrainMR"


def test_without_the_raw_files_images_come_from_the_store(
    few_masks: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = {case: nib.load(few_masks.raw / "imagesTs" / f"{case}.nii.gz").get_fdata() for case in few_masks.truth}
    shutil.move(few_masks.raw, tmp_path / "elsewhere")
    suggest(few_masks.store, task=TASK, export=tmp_path / "out")
    assert "2 images are those of the store" in caplog.text
    listed = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert [each["from_store"] for each in listed["cases"]] == [True, True]
    for case, expected in raw.items():
        record = next(each for each in few_masks.store.cases(TASK) if each.id == case)
        image = nib.load(tmp_path / "out" / "images" / f"{case}.nii.gz")
        assert image.shape == record.source_shape
        np.testing.assert_allclose(image.affine, record.geometry.affine, atol=1e-5)
        low, high = record.intensity
        found = image.get_fdata()
        assert low - 1e-3 <= found.min() <= found.max() <= high + 1e-3
        # Coarser than the raw one, and in its place: turned or shifted, they would have nothing in common.
        assert np.corrcoef(found.ravel(), expected.clip(low, high).ravel())[0, 1] > 0.9
        mask = nib.load(tmp_path / "out" / "masks" / f"{case}.nii.gz")
        assert mask.shape == record.source_shape
        assert not np.asarray(mask.dataobj).any()


def test_a_raw_file_that_has_changed_is_not_what_the_store_shows(few_masks: Any, tmp_path: Path) -> None:
    case = min(few_masks.truth)
    path = few_masks.raw / "imagesTs" / f"{case}.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), path)
    suggest(few_masks.store, task=TASK, export=tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert {each["case"]: each["from_store"] for each in listed["cases"]} == {
        name: name == case for name in few_masks.truth
    }


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "skin" / part).mkdir(parents=True)
    for number in range(5):
        picture = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "skin" / "images" / f"p{number}.png")
        if number < 3:
            Image.fromarray((picture[..., 0] > 128).astype(np.uint8)).save(
                tmp_path / "skin" / "masks" / f"p{number}.png"
            )
    store = aggregate(tmp_path / "skin", tmp_path / "store")
    suggest(store, task="skin", count=1, export=tmp_path / "out")
    (image,) = (tmp_path / "out" / "images").iterdir()
    assert image.read_bytes() == (tmp_path / "skin" / "images" / image.name).read_bytes()
    mask = tmp_path / "out" / "masks" / image.name
    assert np.asarray(Image.open(mask)).shape == (20, 30)
    drawn = np.zeros((20, 30), np.uint8)
    drawn[3:9, 4:20] = 1
    Image.fromarray(drawn).save(mask)
    after = aggregate(tmp_path / "out", tmp_path / "store")
    (case,) = [case for case in after.cases("skin") if case.id == image.stem]
    np.testing.assert_array_equal(after.label(case)[0], drawn)


@pytest.mark.parametrize("oblique", [False, True])
def test_mask_and_image_lie_in_one_place(tmp_path: Path, oblique: bool) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    if oblique:
        affine[:3, :3] = [[0.0, 0.9, 0.3], [-0.95, 0.1, 0.0], [0.1, -0.3, 2.9]]
        affine[:3, 3] = [10, -20, 30]
    for name in ("a", "b"):
        (tmp_path / "raw" / "images").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).normal(100, 20, (12, 10, 6)).astype(np.float32)
        nib.save(
            nib.Nifti1Image(pixels * (name == "a") + pixels[::-1], affine),
            tmp_path / "raw" / "images" / f"{name}.nii.gz",
        )
    store = aggregate(tmp_path / "raw", tmp_path / "store")
    suggest(store, task="raw", count=2, slices=True, export=tmp_path / "out")
    for path in (tmp_path / "out" / "images").iterdir():
        image, mask = read_geometry(path), read_geometry(tmp_path / "out" / "masks" / path.name)
        assert image.shape == mask.shape
        np.testing.assert_allclose(image.affine, mask.affine)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_a_folder_that_is_there_is_left_alone(few_masks: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out: already exists"):
        suggest(few_masks.store, task=TASK, export=tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
