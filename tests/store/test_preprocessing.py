from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from hssl.errors import StoreError
from hssl.sources.base import Geometry
from hssl.store import Preprocessing, make_preprocessing
from hssl.store.preprocessing import check_geometry

ORIENTATIONS = ["".join(letters) for axes in permutations(("LR", "AP", "IS")) for letters in product(*axes)]
SHAPE = (9, 12, 7)


def geometry_of(
    orientation: str, spacing: tuple[float, float, float] = (1, 1, 1), shape: tuple[int, int, int] = SHAPE
) -> Geometry:
    """A grid whose array axes point as `orientation` says, with `spacing` along them."""
    affine = np.zeros((4, 4))
    affine[:3, 3] = 5, -7, 11
    affine[3, 3] = 1
    for axis, letter in enumerate(orientation):
        world = next(world for world, line in enumerate(("LR", "PA", "IS")) if letter in line)
        affine[world, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    return Geometry(shape, affine)


def one_hot(label: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    return (label == np.arange(classes)[:, None, None, None]).astype(np.float32)


def restored(plan: Preprocessing, scores: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
    return plan.restore_axes(plan.restore_slices(scores, geometry), geometry)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def balls(geometry: Geometry) -> NDArray[np.uint8]:
    """Two nested ellipsoids, smooth in mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(geometry.shape, geometry.spacing, strict=True)]
    radius = [abs(axis[0]) for axis in axes]
    distance = sum((grid / r) ** 2 for grid, r in zip(np.meshgrid(*axes, indexing="ij"), radius, strict=True))
    return ((distance < 0.7).astype(np.uint8) + (distance < 0.25)).astype(np.uint8)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_shows_the_same_picture_and_comes_back_exactly(orientation: str) -> None:
    rng = np.random.default_rng(0)
    upright = rng.integers(0, 3, (7, 9, 12)).astype(np.uint8)  # slices to superior, rows to posterior, columns left
    as_image = nib.Nifti1Image(upright, geometry_of("SPL", shape=upright.shape).affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("SPL"), nib.orientations.axcodes2ornt(orientation)
    )
    in_file = as_image.as_reoriented(transform)
    geometry = Geometry(in_file.shape, in_file.affine)
    assert geometry.orientation == orientation
    plan = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
    array = np.asarray(in_file.dataobj)

    stored = plan.prepare_label(array, geometry)
    np.testing.assert_array_equal(stored, upright)
    image = plan.prepare_image(array.astype(np.float32), geometry)
    np.testing.assert_array_equal(image, upright / np.float32(2))
    assert stored.flags.c_contiguous
    assert image.flags.c_contiguous

    np.testing.assert_array_equal(restored(plan, one_hot(stored, 3), geometry), array)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 5.0), (3.0, 0.7, 0.9), (1.0, 1.6, 1.3)])
def test_predicting_the_truth_gives_it_back_after_resampling(
    orientation: str, spacing: tuple[float, float, float]
) -> None:
    geometry = geometry_of(orientation, spacing, (30, 34, 26))
    truth = balls(geometry)
    own = make_preprocessing([geometry])
    assert own.stored_shape(geometry)[1:] == own.prepare_label(truth, geometry).shape[1:]
    np.testing.assert_array_equal(restored(own, one_hot(own.prepare_label(truth, geometry), 3), geometry), truth)

    finer = own.model_copy(update={"spacing": (own.spacing[0] * 0.7, own.spacing[1] * 0.85)})
    back = restored(finer, one_hot(finer.prepare_label(truth, geometry), 3), geometry)
    assert back.shape == truth.shape
    wrong = back != truth
    assert wrong.mean() < 0.01
    # Linear resampling can err only beside a border: a wrong voxel has another value within one pixel of it.
    flat = np.pad(truth, 1, mode="edge")
    around = np.stack([np.roll(flat, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)])
    assert ((around != truth).any(axis=0) | ~wrong).all()

    coarser = own.model_copy(update={"spacing": (own.spacing[0] * 1.3, own.spacing[1] * 1.3)})
    back = restored(coarser, one_hot(coarser.prepare_label(truth, geometry), 3), geometry)
    for value in (1, 2):
        assert dice(back == value, truth == value) > 0.93


def test_slices_are_the_thick_axis_and_upright() -> None:
    assert make_preprocessing([geometry_of("RAS", (1, 1, 3))]).orientation == "PLS"
    assert make_preprocessing([geometry_of("RAS", (3, 1, 1))]).orientation == "IPL"
    assert make_preprocessing([geometry_of("RAS", (1, 1.5, 1))]).orientation == "ILA"


def test_slices_are_the_last_axis_of_the_majority_without_a_thick_one() -> None:
    many = [geometry_of("PSR"), geometry_of("LSP", (1, 1.2, 1)), geometry_of("PIL")]
    assert make_preprocessing(many).orientation == "IPL"


def test_spacing_is_the_median_in_plane_in_rows_and_columns() -> None:
    plan = make_preprocessing([geometry_of("RAS", (x, y, 9)) for x, y in ((1, 2), (1.5, 2.5), (3, 3.5))])
    assert plan.spacing == (2.5, 1.5)  # rows run to posterior, so along y


def test_a_case_scanned_in_other_slices_keeps_its_own() -> None:
    plan = make_preprocessing([geometry_of("RAS", (1, 1, 5))] * 2)
    sagittal = geometry_of("PSR", (1, 1, 5))
    assert plan.stored_shape(sagittal) == (7, 12, 9)
    array = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    stored = plan.prepare_label(array, sagittal)
    np.testing.assert_array_equal(stored, array.transpose(2, 1, 0)[::-1, ::-1])  # to left, inferior, posterior
    np.testing.assert_array_equal(restored(plan, one_hot(stored, 2), sagittal), array)


def test_a_chosen_orientation_is_kept_for_every_case() -> None:
    plan = make_preprocessing([geometry_of("RAS", (1, 1, 5))], orientation="IPL", spacing=(1, 1))
    assert plan.stored_shape(geometry_of("RAS", (1, 1, 1))) == (9, 7, 12)
    assert plan.stored_shape(geometry_of("RAS", (1, 1, 5))) == (9, 35, 12)


def test_2d_images_stay_as_they_are() -> None:
    geometry = Geometry((4, 6, 1), np.diag([1.0, 1.0, 1.0, 1.0]), ndim=2)
    plan = make_preprocessing([geometry])
    image = np.arange(24, dtype=np.float32).reshape(4, 6, 1)
    assert plan.orientation == ""
    np.testing.assert_array_equal(plan.prepare_label(image.astype(int), geometry)[0], image[..., 0])
    assert plan.prepare_image(image, geometry).shape == (1, 4, 6)


def test_resampling_is_skipped_within_one_percent_and_keeps_the_extent() -> None:
    plan = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
    assert plan.stored_shape(geometry_of("LPS", (1.009, 0.991, 1), (300, 300, 2))) == (2, 300, 300)
    geometry = geometry_of("LPS", (1.5, 0.5, 2), (30, 30, 2))
    assert plan.stored_shape(geometry) == (2, 15, 45)
    assert plan.stored_spacing(geometry) == (2, 1, 1)


def test_intensities_are_scaled_by_percentiles_and_clipped() -> None:
    geometry = geometry_of("LPS", shape=(10, 10, 10))
    image = np.arange(1000, dtype=np.float32).reshape(10, 10, 10) - 300
    plan = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
    low, high = np.percentile(image, (0.5, 99.5))
    assert plan.intensity_range(image) == (low, high)
    expected = np.clip((image - low) / (high - low), 0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(plan.prepare_image(image, geometry), expected, atol=2.5e-4)  # of float16 below 1
    np.testing.assert_allclose(plan.prepare_image(image * 1000 + 7, geometry), expected, atol=2.6e-4)


def test_a_window_maps_hounsfield_units() -> None:
    geometry = geometry_of("SPL", shape=(1, 2, 2))
    plan = Preprocessing(orientation="PLS", spacing=(1.0, 1.0), window=(-100, 300))
    image = np.array([[[-1000, 0], [100, 400]]], np.float32)
    np.testing.assert_array_equal(plan.prepare_image(image, geometry), [[[0, 0.25], [0.5, 1]]])
    with pytest.raises(StoreError, match="no contrast"):
        plan.prepare_image(image - 2000, geometry)


def test_a_few_bright_voxels_are_contrast_enough_and_none_are_not() -> None:
    image = np.zeros((20, 20, 20), np.float32)
    plan = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
    with pytest.raises(StoreError, match="no contrast"):
        plan.intensity_range(image)
    image[3, 4, 5] = 9
    assert plan.intensity_range(image) == (0, 9)


@pytest.mark.parametrize("padding", [-2000, -32768, 30000])
@pytest.mark.parametrize("where", [np.s_[:15], np.s_[:, 35:], np.s_[:, :, :3]])
def test_padding_outside_the_field_of_view_does_not_count(padding: float, where: object) -> None:
    scan = np.random.default_rng(0).normal(0, 100, (60, 50, 8)).astype(np.float32)
    geometry = Geometry((60, 50, 8), np.eye(4))
    inside = np.ones(scan.shape, bool)
    inside[where] = False
    padded = np.where(inside, scan, np.float32(padding))
    preprocessing = make_preprocessing([geometry])
    low, high = np.percentile(scan[inside], (0.5, 99.5))
    assert preprocessing.intensity_range(padded) == pytest.approx((low, high), rel=1e-6)
    assert preprocessing.intensity_range(padded, padding=padding) == pytest.approx((low, high), rel=1e-6)
    stored = preprocessing.prepare_image(padded, geometry)
    unpadded = preprocessing.prepare_image(scan, geometry, intensity=(low, high))
    inside = preprocessing.prepare_label(inside.astype(np.uint8), geometry) == 1
    np.testing.assert_allclose(stored[inside], unpadded[inside], rtol=1e-3, atol=1e-6)  # float16
    assert set(np.unique(stored[~inside])) == {float(padding > 0)}


def test_a_declared_padding_does_not_count_wherever_it_lies() -> None:
    scan = np.random.default_rng(0).normal(0, 100, (40, 40, 8)).astype(np.float32)
    scan[15:25, 15:25] = -2000
    geometry = Geometry(scan.shape, np.eye(4))
    preprocessing = make_preprocessing([geometry])
    assert preprocessing.intensity_range(scan)[0] == -2000
    low, high = np.percentile(scan[scan > -2000], (0.5, 99.5))
    assert preprocessing.intensity_range(scan, padding=-2000.0) == pytest.approx((low, high), rel=1e-6)
    with pytest.raises(StoreError, match="no contrast"):
        preprocessing.intensity_range(np.full((4, 4, 4), -2000, np.float32), padding=-2000.0)


@pytest.mark.parametrize(
    "image",
    [
        np.where(np.arange(4000).reshape(20, 20, 10) % 7 > 3, 0, np.float32(50)),  # two greys: both mean something
        np.clip(np.random.default_rng(0).normal(0, 300, (20, 20, 10)), -100, None),  # air, cut off
        np.pad(np.random.default_rng(0).normal(500, 20, (10, 10, 10)), 5),  # a head on black, and no border of its own
    ],
    ids=["greys", "clipped", "object"],
)
def test_a_dark_background_is_no_padding_unless_it_lies_far_off(image: np.ndarray) -> None:
    image = image.astype(np.float32)
    preprocessing = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
    inner = image[5:-5, 5:-5, 5:-5] if image.shape == (20, 20, 20) else image
    assert preprocessing.intensity_range(image) == pytest.approx(tuple(np.percentile(inner, (0.5, 99.5))), rel=1e-6)


def test_a_scan_that_is_scaled_already_shows_nothing_in_a_window() -> None:
    scan = np.random.default_rng(0).random((8, 8, 8), np.float32)
    geometry = Geometry(scan.shape, np.eye(4))
    with pytest.raises(StoreError, match=r"no contrast in the window -160 to 240: its intensities are 0\.\d+ to 0\.99"):
        make_preprocessing([geometry], window=(-160.0, 240.0)).prepare_image(scan, geometry)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    image = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    image[0, 0, 0] = value
    with pytest.raises(StoreError, match="1 voxels that are NaN or infinite"):
        Preprocessing(orientation="PLS", spacing=(1.0, 1.0)).intensity_range(image)


def test_arrays_of_another_shape_are_refused() -> None:
    plan, geometry = Preprocessing(orientation="PLS", spacing=(1.0, 1.0)), geometry_of("RAS")
    with pytest.raises(StoreError, match="expected"):
        plan.prepare_image(np.zeros((2, 2, 2), np.float32), geometry)
    with pytest.raises(StoreError, match="do not fit"):
        restored(plan, np.zeros((2, 3, 3, 3), np.float32), geometry)


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), SHAPE),
        (np.diag([1.0, np.nan, 1.0, 1.0]), SHAPE),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), SHAPE),
        (np.eye(4), (3, 0, 3)),
    ],
)
def test_unusable_grids_are_refused(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> None:
    with pytest.raises(StoreError):
        check_geometry(Geometry(shape, affine))


def test_real_masks_come_back(real_data: Path) -> None:
    from hssl.sources import find_sources

    for name in ("Task03_Cardiac", "Task08_BrainTissue"):
        (source,) = find_sources(real_data / name)
        cases = list(source.cases())
        plan = make_preprocessing(case.read_geometry() for case in cases)
        for case in cases[:: len(cases) // 2][:2]:
            geometry, truth = case.read_geometry(), case.read_label()
            back = restored(plan, one_hot(plan.prepare_label(truth, geometry), 4), geometry)
            assert back.shape == truth.shape
            for value in source.labels:
                assert dice(back == value, truth == value) > 0.9, (case.id, value)
