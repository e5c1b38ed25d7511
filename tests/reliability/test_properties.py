"""Files as other programs may write them, drawn by hypothesis: each is read as nibabel reads it, or refused by name.

``HSSL_MUTATIONS=1000`` (``make test-reliability``) draws so many.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from hssl.errors import HsslError, attempt
from hssl.sources.files import read_geometry, read_image, read_label

EXAMPLES = int(os.environ.get("HSSL_MUTATIONS", "20"))
TYPES = [np.dtype(order + kind) for order in "<>" for kind in ("u1", "i2", "u2", "i4", "f4", "f8")]
AXES = [np.roll(np.eye(3), shift, axis=1) for shift in range(3)]

drawn = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)) | st.tuples(*[st.integers(1, 5)] * 2)


@st.composite
def affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """A voxel grid in mm: axes in any order and direction, and a little oblique."""
    axes = draw(st.sampled_from(AXES)) * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = (axes + draw(st.floats(-0.1, 0.1)) * np.roll(axes, 1, axis=0)) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@drawn
@given(
    dtype=st.sampled_from(TYPES),
    shape=shapes,
    affine=affines(),
    scaling=st.sampled_from([(None, None), (1.0, 0.0), (2.5, -1024.0), (0.1, 7.0)]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
    data=st.data(),
)
def test_a_scan_is_read_as_nibabel_reads_it(
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    scaling: tuple[float | None, float | None],
    ending: str,
    data: st.DataObject,
) -> None:
    limits = (-1e4, 1e4) if dtype.kind == "f" else (max(np.iinfo(dtype).min, -9999), min(np.iinfo(dtype).max, 9999))
    elements = st.floats(*limits, width=32) if dtype.kind == "f" else st.integers(*map(int, limits))
    voxels = data.draw(arrays.arrays(dtype, shape, elements=elements))
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(*scaling)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending}"
        nib.save(image, path)
        expected = nib.load(path)
        whole = expected.get_fdata(dtype=np.float32).reshape(*shape, *[1] * (3 - len(shape)))
        refused = attempt(lambda _: read_image(path), None)
        if isinstance(refused, HsslError):
            assert refused.path == path
            return
        found, geometry = read_image(path), read_geometry(path)
    np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(geometry.affine, expected.affine, rtol=1e-6, atol=1e-6)
    assert geometry.shape == whole.shape


@drawn
@given(dtype=st.sampled_from(TYPES), shape=shapes, largest=st.integers(0, 70_000), half=st.booleans(), data=st.data())
def test_a_mask_is_read_to_the_last_voxel_or_refused(
    dtype: np.dtype[np.generic], shape: tuple[int, ...], largest: int, half: bool, data: st.DataObject
) -> None:
    top = largest if dtype.kind == "f" else min(largest, int(np.iinfo(dtype).max))
    voxels = data.draw(arrays.arrays(dtype, shape, elements=st.integers(0, top)))
    if dtype.kind == "f" and half:
        voxels.flat[0] += 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        if dtype.kind == "f" and half:
            with pytest.raises(HsslError, match=r"mask\.nii\.gz"):
                read_label(path)
            return
        found = read_label(path)
    np.testing.assert_array_equal(found.reshape(shape), voxels)
