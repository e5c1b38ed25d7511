"""What a damaged or unusual file gives: the right values, or an error that names it."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl.errors import SourceError
from hssl.sources.files import read_geometry, read_image, read_label

VOLUME = np.random.default_rng(0).integers(0, 1000, (9, 8, 7), dtype=np.int16)
CORNERS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)  # two rows, three columns


def write_nifti(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


# NIfTI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_voxels_are_those_that_nibabel_reads(name: str, kind: type, order: str, tmp_path: Path) -> None:
    array = np.stack([VOLUME, 2 * VOLUME], axis=-1)
    image = kind(array, np.eye(4), kind.header_class(endianness=order))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, tmp_path / name)
    expected = nib.load(tmp_path / name).get_fdata(dtype=np.float32)
    for channel in range(2):
        np.testing.assert_array_equal(read_image(tmp_path / name, channel), expected[..., channel])


def test_a_flipped_bit_in_a_compressed_file_is_never_read_as_other_voxels(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", VOLUME)
    whole, right = path.read_bytes(), read_image(path)
    rng = np.random.default_rng(1)
    refused: list[SourceError] = []
    for place in rng.choice(np.arange(10, len(whole)), 200, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_image(path), right)
        except SourceError as error:
            refused.append(error)
    assert {error.path for error in refused} == {path}
    assert len(refused) >= 195  # a flag of gzip's header may mean nothing


def test_the_checksum_counts_for_a_mask_and_for_a_channel(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.stack([VOLUME, VOLUME], axis=-1))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # of the checksum itself, behind the last voxel
    path.write_bytes(content)
    with pytest.raises(SourceError, match="CRC"):
        read_image(path, 0)
    path = write_nifti(tmp_path / "b.nii.gz", VOLUME)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"b\.nii\.gz"):
        read_label(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused_before_it_is_read(
    name: str, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / name, VOLUME)
    opened = gzip.open if name.endswith("gz") else open
    with opened(path, "rb") as stream:
        content = bytearray(stream.read())
    content[42:48] = np.array([4000, 5000, 5000], "<i2").tobytes()  # dim[1:4] of 200 GB
    with opened(path, "wb") as stream:
        stream.write(content)
    for read in (read_geometry, read_image, read_label):
        with pytest.raises(SourceError, match="header claims 200,000,000,352 bytes"):
            read(path)


def test_what_unpacks_to_far_more_than_its_header_says_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", VOLUME)
    with gzip.open(path, "rb") as stream:
        content = stream.read()
    with gzip.open(path, "wb") as stream:
        stream.write(content + bytes(1000))  # padding is common
    np.testing.assert_array_equal(read_image(path), VOLUME)
    with gzip.open(path, "wb") as stream:
        stream.write(content + bytes(1 << 25))
    with pytest.raises(SourceError, match="far more than its header says"):
        read_image(path)


@pytest.mark.parametrize("offset", [np.inf, -1e9, 1e30, np.nan])
def test_an_odd_offset_of_the_voxels_is_named(offset: float, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    content = bytearray(path.read_bytes())
    content[108:112] = np.array(offset, "<f4").tobytes()
    path.write_bytes(content)
    for read in (read_geometry, read_image):
        with pytest.raises(SourceError, match=r"a\.nii"):
            read(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float64([0, 1, 1e10]), r"holds 1e\+10, which is not a label"),
        (np.float32([0, 1, 1.7]), r"not whole numbers, such as 1\.7"),
        (np.float32([0, 1, np.inf]), "not whole numbers, such as inf"),
    ],
)
def test_what_cannot_be_a_label_is_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", values.reshape(3, 1, 1))
    with pytest.raises(SourceError, match=message):
        read_label(path)


# Pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["tif", "jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_as_its_orientation_says(ending: str, orientation: int, tmp_path: Path) -> None:
    picture = Image.fromarray(np.kron(CORNERS, np.ones((8, 8), np.uint8)))  # blocks of JPEG's size
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if ending == "tif" else {"exif": exif}
    picture.save(path, **options)
    # How the stored picture has to be turned, as the EXIF standard lists it.
    turned = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.T,
        6: CORNERS[::-1].T,
        7: CORNERS[::-1, ::-1].T,
        8: CORNERS[:, ::-1].T,
    }[orientation]
    image = read_image(path)
    assert image.shape == read_geometry(path).shape == (8 * turned.shape[0], 8 * turned.shape[1], 1)
    np.testing.assert_allclose(image[4::8, 4::8, 0], turned, atol=2)
    if ending != "jpg":
        np.testing.assert_array_equal(read_label(path)[4::8, 4::8, 0], turned)


def test_the_spacing_of_a_turned_picture_turns_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(CORNERS).save(path, tiffinfo={274: 6, 282: 10.0, 283: 40.0, 296: 3})  # pixels per cm
    geometry = read_geometry(path)
    assert geometry.shape == (3, 2, 1)
    np.testing.assert_allclose(geometry.spacing[:2], (1.0, 0.25))  # stored columns, 1 mm apart, have become rows


def test_a_mask_that_is_jpeg_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.kron(CORNERS, np.ones((8, 8), np.uint8))).save(path, format="JPEG")
    with pytest.raises(SourceError, match="a mask as JPEG"):
        read_label(path)
    tiff = tmp_path / "a.tif"
    Image.fromarray(np.kron(CORNERS, np.ones((8, 8), np.uint8))).save(tiff, compression="jpeg")
    with pytest.raises(SourceError, match="compressed with loss"):
        read_label(tiff)
