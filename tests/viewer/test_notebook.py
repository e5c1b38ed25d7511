"""Volumes in a notebook: what the widget is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import hssl
from hssl.errors import ConfigError, SourceError, StoreError
from hssl.store import Store

ipyniivue = pytest.importorskip("ipyniivue", reason="needs the extra 'notebook'")


def test_a_case_of_a_store_comes_with_its_mask(make_store: Callable[..., Store]) -> None:
    store = make_store(value=3)
    widget = hssl.show(store.path, "Blobs", "blobs1", opacity=0.25)
    image, mask = widget.volumes
    assert (image.cal_min, image.cal_max, mask.opacity) == (0.0, 1.0, 0.25)
    case = store.cases("Blobs")[1]
    for volume, array in ((image, store.image(case).astype(np.float32)), (mask, store.label(case))):
        np.testing.assert_array_equal(np.asarray(nib.Nifti1Image.from_bytes(volume.data).dataobj).T, array)
    lut = mask.colormap_label
    assert (lut.labels[0], lut.labels[-1]) == ("", "square")
    assert list(lut.lut[-4:]) == [0xD6, 0x27, 0x28, 255]


def test_a_file_comes_with_any_mask(tmp_path: Path) -> None:
    voxels = np.arange(60).reshape(3, 4, 5)
    affine = np.diag([2.0, -3, 4, 1])
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image((300 * (voxels > 30)).astype(np.int16), affine), tmp_path / "mask.nii.gz")
    widget = hssl.show(tmp_path / "scan.nii.gz", mask=tmp_path / "mask.nii.gz")
    shown = [nib.Nifti1Image.from_bytes(volume.data) for volume in widget.volumes]
    np.testing.assert_array_equal(np.asarray(shown[0].dataobj), voxels)
    np.testing.assert_array_equal(np.asarray(shown[1].dataobj), 300 * (voxels > 30))
    np.testing.assert_array_equal(shown[0].affine, affine)
    assert widget.volumes[1].colormap_label.labels[-1] == "300"


def test_a_mistake_is_named(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store()
    with pytest.raises(StoreError, match="has no case 'x'"):
        hssl.show(store, case="x")
    with pytest.raises(ConfigError, match="brings its own mask"):
        hssl.show(store, mask="mask.nii")
    with pytest.raises(SourceError, match="no such file"):
        hssl.show(tmp_path / "missing.nii.gz")


def test_without_the_package_one_line_says_what_to_install(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipyniivue", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[notebook\]'"):
        hssl.show(make_store())
