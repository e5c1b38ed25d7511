"""Stored arrays as NIfTI: the same values at the same place in the body as in the file they were made from."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hssl.sources.base import Geometry
from hssl.store import Preprocessing, Store, aggregate
from hssl.viewer.volumes import case_affine, difference, source_voxel_ml, to_nifti

ORIENTATIONS = ["RAS", "LPS", "PIR", "SLA", "AIL"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_served_mask_lies_where_the_file_has_it(orientation: str, tmp_path: Path) -> None:
    """Every labelled voxel, through both affines, and turned about an axis so that no axis is straight."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    turn = nib.eulerangles.euler2mat(0.1, -0.05, 0.08)
    codes = nib.orientations.axcodes2ornt(orientation)
    straight = nib.orientations.inv_ornt_aff(codes, (9, 12, 7)) @ np.diag([1.5, 1.5, 1.5, 1])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ straight[:3, :3], (5, -7, 11)
    image = rng.normal(100, 20, (9, 12, 7)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    mask[2:5, 3:9, 1:4] = 1
    mask[6, 10, 5] = 2
    nib.save(nib.Nifti1Image(image, affine), folder / "images" / "a.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), folder / "labels" / "a.nii.gz")
    store = aggregate([folder], tmp_path / "store")
    (case,) = store.cases()
    served = nib.Nifti1Image.from_bytes(to_nifti(store.label(case), case_affine(store, case)))
    stored = np.asarray(served.dataobj)
    assert sorted(stored.shape) == sorted(mask.shape)
    voxels = np.argwhere(np.ones(mask.shape))
    there = nib.affines.apply_affine(np.linalg.inv(served.affine) @ affine, voxels)
    assert np.abs(there - there.round()).max() < 1e-3
    assert (stored[tuple(there.round().astype(int).T)] == mask[tuple(voxels.T)]).all()
    assert served.header.get_zooms() == pytest.approx((1.5, 1.5, 1.5), abs=1e-5)


def test_a_resampled_grid_has_the_same_outer_edges() -> None:
    geometry = Geometry((40, 30, 5), np.array([[2.0, 0, 0, -10], [0, 3, 0, 4], [0, 0, 6, 1], [0, 0, 0, 1]]))
    plan = Preprocessing(orientation="ASR"[0] + "RS", spacing=(1.0, 4.0))
    stored, affine = plan.stored_shape(geometry), plan.stored_affine(geometry)
    assert stored != tuple(geometry.shape[axis] for axis in (2, 1, 0))
    corners = [nib.affines.apply_affine(affine, corner) for corner in ((-0.5,) * 3, np.array(stored) - 0.5)]
    first = nib.affines.apply_affine(geometry.affine, (-0.5,) * 3)
    last = nib.affines.apply_affine(geometry.affine, np.array(geometry.shape) - 0.5)
    np.testing.assert_allclose(np.sort(corners, axis=0), np.sort([first, last], axis=0), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), plan.stored_spacing(geometry))


def test_float16_is_served_exactly() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    image = values[np.isfinite(values)].reshape(1, 2, -1)
    served = nib.Nifti1Image.from_bytes(to_nifti(image, np.eye(4)))
    assert served.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(served.dataobj).T, image.astype(np.float32))
    assert gzip.compress(to_nifti(image, np.eye(4)))  # bytes, and not a view of the array


def test_a_picture_stands_upright(phantom_pictures: Store) -> None:
    case = phantom_pictures.cases()[0]
    affine = case_affine(phantom_pictures, case)
    down, right = affine @ [0, 1, 0, 0], affine @ [0, 0, 1, 0]
    assert down[1] < 0  # to posterior, which is down on the screen
    assert right[0] < 0  # to left, which is right on the screen
    assert source_voxel_ml(case) is None


@pytest.fixture
def phantom_pictures(tmp_path: Path) -> Store:
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return aggregate([folder], tmp_path / "store")


def test_differences_have_names() -> None:
    truth = np.array([0, 0, 1, 1, 1, 2], np.uint8)
    mask = np.array([0, 2, 0, 1, 2, 2], np.uint8)
    assert difference(truth, mask).tolist() == [0, 2, 1, 0, 3, 0]
