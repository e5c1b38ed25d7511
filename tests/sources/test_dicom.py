"""Reads synthetic series, and writes and reads back segmentations of them."""

from __future__ import annotations

import builtins
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hssl
from hssl.config import AggregateConfig, FinetuneConfig
from hssl.errors import ConfigError, SourceError, StoreError
from hssl.evaluation import evaluate
from hssl.prediction import predict
from hssl.prediction.dicom_seg import check_source, write_segmentation
from hssl.runs import ComponentRule
from hssl.sources import find_sources
from hssl.sources.base import Geometry, Source
from hssl.sources.dicom import list_series
from hssl.sources.dicom_series import Series
from hssl.store import Preprocessing, TaskInfo, aggregate, convert
from hssl.store.store import file_hash

pytest.importorskip("pydicom", reason="needs the dicom extra: pip install '.[dicom]'")
highdicom = pytest.importorskip("highdicom", reason="needs the dicom extra: pip install '.[dicom]'")

import pydicom  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

UPRIGHT = (1, 0, 0, 0, 1, 0)
SPACING = (0.75, 0.5)  # rows, columns
STEP = 2.5


def voxels(slices: int = 5, rows: int = 6, columns: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3000, (slices, rows, columns), dtype=np.int16)


def oblique() -> tuple[float, ...]:
    """Two directions at right angles, along no axis of the body."""
    across = np.array([0.9, 0.3, -0.2])
    columns = across / np.linalg.norm(across)
    down = np.cross([0.1, -0.4, 1.0], columns)
    return (*columns.tolist(), *(down / np.linalg.norm(down)).tolist())


def positions(count: int, directions: tuple[float, ...] = UPRIGHT, step: float = STEP) -> np.ndarray:
    normal = np.cross(directions[:3], directions[3:])
    return np.array([-30.0, 12.5, 100.0]) + np.arange(count)[:, None] * step * normal


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    places: np.ndarray | None = None,
    directions: tuple[float, ...] = UPRIGHT,
    uid: str | None = None,
    slices: dict[int, dict[str, Any]] | None = None,
    **fields: Any,
) -> list[Path]:
    """Writes ``[slices, rows, columns]``, one file each; neither names nor InstanceNumber have the slices' order.

    Args:
        folder: Where to; made if it is missing.
        array: Stored values, int16.
        places: ImagePositionPatient of each slice.
        directions: ImageOrientationPatient.
        uid: SeriesInstanceUID.
        slices: Fields of single slices, instead of those of all.
        fields: Fields of all slices, None to leave one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    places = positions(len(array), directions) if places is None else places
    shuffled = np.random.default_rng(1).permutation(len(array))
    common = {"study": generate_uid(), "frame": generate_uid()}
    paths = []
    for number, (pixels, place) in enumerate(zip(array, places, strict=True)):
        dataset = _dataset(CTImageStorage, common)
        dataset.SeriesInstanceUID = uid
        dataset.InstanceNumber = int(shuffled[number]) + 1
        dataset.ImagePositionPatient = [round(float(value), 6) for value in place]
        dataset.ImageOrientationPatient = [round(float(value), 8) for value in directions]
        dataset.PixelSpacing = list(SPACING)
        dataset.SliceThickness = STEP
        _set_pixels(dataset, pixels)
        for keyword, value in (fields | (slices or {}).get(number, {})).items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        paths.append(folder / f"IM{uid[-4:]}.{(number * 7 + 3) % 97:02d}")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_enhanced(path: Path, array: np.ndarray, order: list[int], slope: float = 2.0) -> Path:
    """Writes an Enhanced MR image whose frames hold the slices of `array` in the given order."""
    dataset = _dataset(EnhancedMRImageStorage, {"study": generate_uid(), "frame": generate_uid()})
    dataset.Modality = "MR"
    dataset.SeriesInstanceUID = generate_uid()
    dataset.NumberOfFrames = len(array)
    _set_pixels(dataset, array[order])
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(UPRIGHT)
    measures.PixelSpacing = list(SPACING)
    measures.SliceThickness = STEP
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, -1.0, "US"
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    places = positions(len(array))
    groups = []
    for number in order:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [float(value) for value in places[number]]
        group.PlanePositionSequence = [place]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(path, enforce_file_format=True)
    return path


def _dataset(sop_class: str, common: dict[str, str]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = common["study"], common["frame"]
    dataset.Modality = "CT"
    dataset.PatientID = "P1"
    dataset.SeriesNumber = 3
    dataset.SeriesDescription = "thorax"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = -1024
    return dataset


def _set_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = pixels.astype("<i2").tobytes()


# Series in ------------------------------------------------------------------------------------------------------


def only(path: Path, **options: Any) -> Source:
    (source,) = find_sources(path, **options)
    return source


@pytest.mark.parametrize(
    "directions", [UPRIGHT, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), oblique()]
)
def test_voxel_centres_are_where_dicom_puts_them(tmp_path: Path, directions: tuple[float, ...]) -> None:
    array = voxels()
    paths = write_series(tmp_path / "scan", array, directions=directions)
    source = only(tmp_path)
    (case,) = (pickle.loads(pickle.dumps(case)) for case in source.cases())  # noqa: S301
    geometry, image = case.read_geometry(), case.read_image()

    assert (source.layout, source.modality, dict(source.labels), source.channel) == ("dicom", "CT", {}, None)
    assert case.subject == "P1"
    assert case.image_path == tmp_path / "scan"
    assert geometry.shape == image.shape == (4, 6, 5)
    assert geometry.ndim == 3
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, array.transpose(2, 1, 0).astype(np.float32) - 1024)
    np.testing.assert_allclose(geometry.spacing, (0.5, 0.75, STEP), atol=1e-6)
    # The equation of PS3.3 C.7.6.2.1.1, voxel by voxel, from the files themselves.
    for number, path in enumerate(paths):
        header = dcmread(path)
        along_row, down = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
        for row, column in ((0, 0), (5, 0), (0, 3), (2, 1)):
            left_back_up = np.array(header.ImagePositionPatient, float) + along_row * 0.5 * column + down * 0.75 * row
            right_front_up = left_back_up * (-1, -1, 1)
            np.testing.assert_allclose(
                (geometry.affine @ [column, row, number, 1])[:3], right_front_up, atol=1e-5, rtol=0
            )
            assert image[column, row, number] == header.pixel_array[row, column] - 1024


def test_an_upright_series_has_this_affine(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    geometry = next(only(tmp_path).cases()).read_geometry()
    expected = [[-0.5, 0, 0, 30], [0, -0.75, 0, -12.5], [0, 0, 2.5, 100], [0, 0, 0, 1]]
    np.testing.assert_allclose(geometry.affine, expected, atol=1e-9)
    assert geometry.orientation == "LPS"


def test_slices_that_go_down_are_turned_over(tmp_path: Path) -> None:
    array, places = voxels(), positions(5)
    write_series(tmp_path / "a", array[::-1], places=places[::-1], uid="1.2.3.1")
    (case,) = only(tmp_path).cases()
    np.testing.assert_array_equal(case.read_image(), array.transpose(2, 1, 0) - 1024.0)


def test_every_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    array = voxels(2)
    write_series(tmp_path, array, slices={1: {"RescaleSlope": 0.5, "RescaleIntercept": 7}})
    image = next(only(tmp_path).cases()).read_image()
    np.testing.assert_array_equal(image[..., 0], array[0].T - 1024.0)
    np.testing.assert_array_equal(image[..., 1], array[1].T * 0.5 + 7)
    write_series(tmp_path / "MR", array, Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    image = next(only(tmp_path, channel="MR").cases()).read_image()
    np.testing.assert_array_equal(image, array.transpose(2, 1, 0))


def test_a_slice_alone_takes_its_thickness_from_the_header(tmp_path: Path) -> None:
    write_series(tmp_path, voxels(1))
    geometry = next(only(tmp_path).cases()).read_geometry()
    assert geometry.shape == (4, 6, 1)
    assert geometry.spacing == (0.5, 0.75, STEP)


def test_series_are_told_apart_wherever_their_files_lie(tmp_path: Path) -> None:
    arrays = [voxels(seed=seed) for seed in range(3)]
    write_series(tmp_path / "a", arrays[0], uid="1.2.3.1", SeriesNumber=1)
    write_series(tmp_path / "a", arrays[1], uid="1.2.3.2", SeriesNumber=2)
    for file in write_series(tmp_path / "b", arrays[2], uid="1.2.3.3", PatientID="P/2")[:2]:
        (tmp_path / "c").mkdir(exist_ok=True)
        file.rename(tmp_path / "c" / file.name)
    (tmp_path / "a" / "notes.txt").write_text("no DICOM")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.dcm").write_text("no DICOM")
    source = only(tmp_path)
    assert source.task == tmp_path.name
    cases = list(source.cases())
    assert [case.id[:-9] for case in cases] == ["P1_1", "P1_2", "P_2_3"]
    assert [case.subject for case in cases] == ["P1", "P1", "P_2"]
    assert [case.image_path for case in cases] == [tmp_path / "a", tmp_path / "a", tmp_path]
    for case, array in zip(cases, arrays, strict=True):
        np.testing.assert_array_equal(case.read_image(), array.transpose(2, 1, 0) - 1024.0)


def test_every_modality_is_a_task_or_chosen(tmp_path: Path) -> None:
    write_series(tmp_path / "x" / "ct", voxels())
    write_series(tmp_path / "x" / "pet", voxels(), Modality="PT")
    sources = find_sources(tmp_path / "x")
    assert [(source.task, source.modality) for source in sources] == [("x_CT", "CT"), ("x_PT", "PT")]
    assert only(tmp_path / "x", channel="PT").task == "x_PT"
    with pytest.raises(SourceError, match=r"no channel 'MR' \(there are: 0 CT, 1 PT\)"):
        find_sources(tmp_path / "x", channel="MR")


def test_the_subject_is_the_patient_or_a_rule_over_folder_and_case(tmp_path: Path) -> None:
    write_series(tmp_path / "person07" / "ct", voxels(), PatientID="")
    with pytest.raises(SourceError, match=r"has no PatientID \(say with --subject"):
        list(only(tmp_path).cases())
    assert [case.subject for case in only(tmp_path, subject=r"^person\d+").cases()] == ["person07"]
    assert [case.subject for case in only(tmp_path, subject=r"unknown_\d").cases()] == ["unknown_3"]
    with pytest.raises(SourceError, match="finds nothing in case 'person07/ct/unknown_3_"):
        list(only(tmp_path, subject="patient").cases())


def test_other_layouts_keep_their_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "ct" / "deep", voxels())
    (tmp_path / "mr").mkdir()
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), tmp_path / "mr" / "a.nii.gz")
    assert [(source.task, source.layout) for source in find_sources(tmp_path)] == [("ct", "dicom"), ("mr", "nifti")]


def test_series_are_not_passed_over_for_a_picture(tmp_path: Path) -> None:
    for patient in "ab":
        write_series(tmp_path / "t1" / patient, voxels(), PatientID=patient)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "t1" / "overview.png")
    for given in (tmp_path, tmp_path / "t1"):
        with pytest.raises(SourceError, match=r"t1: may be read as images2d and dicom \(choose one with --layout\)"):
            find_sources(given)
    (tmp_path / "t1" / "a" / "thumbs").mkdir()
    (tmp_path / "t1" / "overview.png").rename(tmp_path / "t1" / "a" / "thumbs" / "x.png")
    with pytest.raises(SourceError, match="a: holds DICOM series and other images"):
        find_sources(tmp_path / "t1")
    assert [case.subject for case in only(tmp_path / "t1", layout="dicom").cases()] == ["a", "b"]


def test_a_single_file_is_a_source_of_one_case(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", voxels())
    (case,) = only(paths[2]).cases()
    assert case.read_geometry().shape == (4, 6, 1)


def test_what_is_no_scan_is_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    write_series(tmp_path, voxels(1), Modality="SEG")
    report = write_series(tmp_path / "report", voxels(1), Modality="SR", Rows=None, Columns=None)
    written = dcmread(report[0])
    written.file_meta.MediaStorageSOPClassUID = written.SOPClassUID = BasicTextSRStorage
    written.save_as(report[0])
    assert len(list(only(tmp_path).cases())) == 1
    with pytest.raises(SourceError, match="report: holds no DICOM images"):
        find_sources(report[0].parent)


def test_an_enhanced_image_is_a_series_of_frames(tmp_path: Path) -> None:
    array = voxels(5)
    write_enhanced(tmp_path / "a.dcm", array, order=[3, 0, 4, 1, 2])
    (case,) = only(tmp_path).cases()
    geometry = case.read_geometry()
    np.testing.assert_allclose(geometry.affine[:3, 3], [30, -12.5, 100])
    assert geometry.spacing == (0.5, 0.75, STEP)
    np.testing.assert_array_equal(case.read_image(), array.transpose(2, 1, 0) * 2.0 - 1)


def test_run_length_encoded_slices_are_decoded(tmp_path: Path) -> None:
    array = voxels()
    for path in write_series(tmp_path, array):
        dataset = dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    image = next(only(tmp_path).cases()).read_image()
    np.testing.assert_array_equal(image, array.transpose(2, 1, 0) - 1024.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"array": voxels()[[0, 1, 3, 4]], "places": positions(5)[[0, 1, 3, 4]]},
            "lacks 1 of its slices, such as between",
        ),
        ({"places": positions(5) + [[0, 0, z] for z in (0, 0, 0, 1.2, 1.9)]}, r"slices 2.50 to 3.70 mm apart"),
        ({"places": positions(5)[[0, 1, 1, 2, 3]]}, "has 1 slices where another one lies already"),
        ({"places": positions(5) + np.arange(5)[:, None] * [0, 1, 0]}, "gantry tilted by 21.8 degrees"),
        ({"places": positions(5) + [[x, 0, 0] for x in (0, 4, 0, 4, 0)]}, r"(3\.2|4\.0) mm off a straight line"),
        ({"slices": {2: {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}}}, "slices in several directions"),
        ({"slices": {2: {"Rows": 4, "Columns": 6}}}, "slices of 6 × 4 and of 4 × 6 pixels"),
        ({"slices": {2: {"PixelSpacing": [0.75, 0.6]}}}, "pixels of 0.75 × 0.5 and of 0.75 × 0.6 mm"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, r"is a localizer \(move its files away\)"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"ImagePositionPatient": None, "NumberOfFrames": 5}, "no ImagePositionPatient of its 5 frames"),
        ({"NumberOfFrames": 5}, "holds 5 frames and one place for all of them"),
        ({"SamplesPerPixel": 3}, "is in colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colours"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "stores bright as dark"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "side by side in one"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not at right angles"),
        ({"PixelSpacing": [0, 0.5]}, "has pixels of 0 × 0.5 mm"),
        ({"ModalityLUTSequence": [Dataset()]}, "a table of values instead of slope"),
    ],
)
def test_a_series_that_is_no_even_stack_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_series(tmp_path / "bad", **{"array": voxels(), "uid": "1.2.3.4", **options})
    (case,) = only(tmp_path).cases()
    for read in (case.read_geometry, case.read_image):
        with pytest.raises(SourceError, match=message) as caught:
            read()
        assert "series 3 'thorax' of patient 'P1' (1.2.3.4)" in str(caught.value)
        assert caught.value.path == tmp_path / "bad"
        assert caught.value.hint


def test_rounded_positions_are_no_gaps(tmp_path: Path) -> None:
    places = positions(40, step=0.625) + np.random.default_rng(0).uniform(-0.02, 0.02, (40, 3))
    write_series(tmp_path, voxels(40), places=places)
    assert next(only(tmp_path).cases()).read_geometry().spacing[2] == pytest.approx(0.625, abs=0.002)


@pytest.mark.parametrize(("syntax", "name"), [(MPEG2MPML, "MPEG2"), ("1.2.840.10008.1.9.9", "1.2.840.10008.1.9.9")])
def test_slices_that_cannot_be_decoded_are_named(tmp_path: Path, syntax: str, name: str) -> None:
    for path in write_series(tmp_path, voxels()):
        if syntax == MPEG2MPML:
            dataset = dcmread(path)
            dataset.file_meta.TransferSyntaxUID = MPEG2MPML
            dataset.PixelData = encapsulate([b"not shown"])
            dataset.save_as(path)
        else:
            path.write_bytes(path.read_bytes().replace(ExplicitVRLittleEndian.encode(), syntax.encode()))
    with pytest.raises(SourceError, match=rf"is compressed as '{name}.*cannot be decoded here \(install a decoder"):
        next(only(tmp_path).cases()).read_geometry()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels())
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    (case,) = only(tmp_path).cases()
    assert case.read_geometry().shape == (4, 6, 5)
    with pytest.raises(SourceError, match="truncated or damaged") as caught:
        case.read_image()
    assert caught.value.path == paths[1]
    (tmp_path / "b.dcm").write_bytes(b"")
    (case,) = only(tmp_path).cases()
    with pytest.raises(SourceError, match=r"b.dcm: has the name of a DICOM file, but is not one"):
        case.read_geometry()


@pytest.mark.parametrize("lies", ["among its series", "alone"])
def test_a_header_that_cannot_be_read_is_one_bad_case(lies: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, patient in enumerate("abc"):
        paths = write_series(raw / patient, voxels(seed=number), PatientID=patient, uid=f"1.2.{number}")
    bad = paths[0] if lies == "among its series" else raw / "d" / "x.dcm"
    bad.parent.mkdir(exist_ok=True)
    bad.write_bytes(paths[0].read_bytes()[:400])  # pydicom takes it for a whole one without pixels
    with pytest.raises(StoreError, match=rf"{bad}: is truncated or damaged: its header lacks Rows \(1 bad case"):
        aggregate(raw, tmp_path / "store", subject=r"(\w)/")
    store = aggregate(raw, tmp_path / "store", subject=r"(\w)/", skip_bad=True)
    assert {case.subject for case in store.cases()} == ({*"ab"} if lies == "among its series" else {*"abc"})
    (line,) = store.tasks["raw"].skipped
    assert str(bad) in line


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, voxels())
    (series,) = list_series(tmp_path)
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("pydicom", "highdicom"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SourceError, match=r"without pydicom \(pip install '\.\[dicom\]' in hssl's folder\)"):
        find_sources(tmp_path)
    with pytest.raises(SourceError, match=r"without highdicom \(pip install '\.\[dicom\]' in hssl's folder\)"):
        write_segmentation(np.zeros((4, 6, 5), np.uint8), series, tmp_path / "x", labels={1: "a"}, description="")


def test_series_are_aggregated_and_bad_ones_left_out(tmp_path: Path) -> None:
    for number in range(4):
        write_series(tmp_path / "raw" / f"p{number}", voxels(seed=number), PatientID=f"P{number}")
    write_series(tmp_path / "raw" / "scout", voxels(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(StoreError, match=r"is a localizer \(1 bad case; nothing was written\)"):
        aggregate([tmp_path / "raw"], tmp_path / "store")
    store = aggregate([tmp_path / "raw"], tmp_path / "store", config=AggregateConfig(skip_bad=True, workers=1))
    assert store.tasks["raw"].modality == "CT"
    assert [case.subject for case in store.cases("raw")] == ["P0", "P1", "P2", "P3"]
    assert [case.shape for case in store.cases("raw")] == [(5, 6, 4)] * 4
    case = store.cases("raw")[2]
    np.testing.assert_allclose(case.geometry.affine[:3, 3], [30, -12.5, 100])
    np.testing.assert_array_equal(store.source_case(case).read_image(), voxels(seed=2).transpose(2, 1, 0) - 1024.0)


def test_a_screenshot_beside_scans_is_left_out_with_the_bad_cases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        write_series(tmp_path / "raw" / f"p{number}", voxels(seed=number), PatientID=f"P{number}")
    write_series(tmp_path / "raw" / "report", voxels(1), Modality="OT", ImagePositionPatient=None)
    with pytest.raises(StoreError, match=r"has no ImagePositionPatient .*1 bad case"):
        aggregate([tmp_path / "raw"], tmp_path / "store")
    config = AggregateConfig(skip_bad=True, workers=1)
    store = aggregate([tmp_path / "raw"], tmp_path / "store", config=config)
    assert list(store.tasks) == ["raw_CT"]
    assert "task 'raw_OT' has no usable case and is left out" in caplog.text
    assert aggregate([tmp_path / "raw"], tmp_path / "store", config=config).hash == store.hash


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_series(tmp_path / "archive" / "p2", voxels(seed=2), PatientID="P2")
    write_series(tmp_path / "raw" / "p1", voxels(seed=1), PatientID="P1")
    (tmp_path / "raw" / "p2").symlink_to(tmp_path / "archive" / "p2")
    (tmp_path / "raw" / "p1" / "up").symlink_to(tmp_path / "raw")
    assert [series.patient for series in list_series(tmp_path / "raw")] == ["P1", "P2"]
    subjects = [case.subject for case in only(tmp_path / "raw", subject=r"^p\d").cases()]
    assert subjects == ["p1", "p2"]


def test_each_file_is_hashed_once_however_many_series_lie_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By folder, the time of a flat export would grow with the square of its series."""
    written = [
        write_series(tmp_path / "raw", voxels(seed=number), uid=f"1.2.3.{number}", PatientID=f"P{number}")
        for number in range(4)
    ]
    (tmp_path / "raw" / "notes.txt").write_text("no DICOM")
    hashed: list[Path] = []
    monkeypatch.setattr(convert, "file_hash", lambda *paths: [hashed.extend(paths), file_hash(*paths)][1])
    store = aggregate([tmp_path / "raw"], tmp_path / "store", config=AggregateConfig(workers=1))
    assert sorted(path for path in hashed if path.suffix != ".npy") == sorted(
        path for files in written for path in files
    )
    # What is said of a series is of its own files.
    hashes = [case.image_sha256 for case in store.cases("raw")]
    assert hashes == [file_hash(*sorted(files)) for files in written]
    (tmp_path / "raw" / "notes.txt").write_text("still no DICOM")
    assert aggregate([tmp_path / "raw"], tmp_path / "store", config=AggregateConfig(workers=1)).hash == store.hash


# Fields that decide values, order or identity ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (2, {"RescaleIntercept": None}, r"has slices with the RescaleIntercept -1024 and none \(IM"),
        (0, {"RescaleSlope": None}, "has slices with the RescaleSlope none and 1"),
        (1, {"RescaleSlope": 0}, "has the RescaleSlope 0"),
        (1, {"RescaleSlope": "1e30"}, r"has the RescaleSlope 1e30"),
        (3, {"PatientID": "P2"}, "with the PatientID 'P1' and 'P2'"),
        (3, {"PatientID": ""}, "with the PatientID 'P1' and ''"),
        (3, {"StudyInstanceUID": "1.2.3"}, r"with the StudyInstanceUID '[\d.]+' and '1\.2\.3'"),
        (3, {"FrameOfReferenceUID": "1.2.3"}, "with the FrameOfReferenceUID"),
        (3, {"RescaleType": "US"}, "with the RescaleType '' and 'US'"),
    ],
)
def test_a_slice_that_does_not_belong_to_the_others_is_refused(
    number: int, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_series(tmp_path, voxels(), slices={number: fields})
    (case,) = only(tmp_path).cases()
    for read in (case.read_geometry, case.read_image):
        with pytest.raises(SourceError, match=message):
            read()


@pytest.mark.parametrize(
    ("tag", "value", "length"),
    [("ImagePositionPatient", "nan", 3), ("PixelSpacing", "inf", 2), ("SliceThickness", "nan", 1)],
)
def test_a_number_that_is_none_is_refused(tag: str, value: str, length: int, tmp_path: Path) -> None:
    """NaN would scramble the slices: every comparison with it is false."""
    paths = write_series(tmp_path, voxels())
    with pydicom.config.disable_value_validation():
        header = dcmread(paths[2])
        setattr(header, tag, [value] * length if length > 1 else value)
        header.save_as(paths[2], enforce_file_format=True)
    (case,) = only(tmp_path).cases()
    with pytest.raises(SourceError, match=rf"has the {tag} {value}"):
        case.read_image()


def test_slices_that_lost_their_file_header_are_named_and_not_passed_over(tmp_path: Path) -> None:
    """Without every second slice a series looks whole."""
    paths = write_series(tmp_path, voxels(6))
    for path in paths[1::2]:
        path.write_bytes(path.read_bytes()[132:])
    (case,) = only(tmp_path).cases()
    with pytest.raises(SourceError, match="is DICOM without a file header"):
        case.read_geometry()


@pytest.mark.parametrize("limit", [None, -1900])
def test_declared_padding_is_left_out_of_the_statistics(limit: int | None, tmp_path: Path) -> None:
    array = voxels(6, 40, 40).clip(500)
    outside = np.zeros(array.shape, bool)
    outside[:, 10:20, 10:20] = True
    padded = np.where(outside, -2000, array).astype(np.int16)
    if limit is not None:
        padded[:, 12:14, 12:14] = -1950
    fields = {"PixelPaddingValue": -2000} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    write_series(tmp_path, padded, **fields)
    (case,) = only(tmp_path).cases()
    image, inside = case.read_image(), ~outside.transpose(2, 1, 0)
    assert case.padding == -2000 - 1024
    assert set(np.unique(image[~inside])) == {-3024.0}
    np.testing.assert_array_equal(image[inside], array.transpose(2, 1, 0)[inside] - 1024.0)
    preprocessing = Preprocessing(orientation="PLS", spacing=SPACING)
    expected = np.percentile(image[inside], (0.5, 99.5))
    assert preprocessing.intensity_range(image, padding=case.padding) == pytest.approx(tuple(expected), rel=1e-6)


def test_a_store_of_padded_series_is_that_of_whole_ones_inside(tmp_path: Path) -> None:
    array = voxels(4, 24, 24).clip(500)
    padded = array.copy()
    padded[:, :, :6] = -2000
    for name, pixels, fields in (("whole", array[:, :, 6:], {}), ("padded", padded, {"PixelPaddingValue": -2000})):
        write_series(tmp_path / name, pixels, **fields)
    stores = [aggregate(tmp_path / name, tmp_path / f"store-{name}") for name in ("whole", "padded")]
    whole, cut = (store.cases()[0].intensity for store in stores)
    assert whole == pytest.approx(cut, rel=1e-6)


# Segmentations out ----------------------------------------------------------------------------------------------


def read_back(path: Path, shape: tuple[int, ...], series: Series) -> np.ndarray:
    """The label map of a segmentation, each frame put where the source image that it refers to lies."""
    segmentation = highdicom.seg.segread(path)
    places = {(dcmread(p.path).SOPInstanceUID, p.frame): number for number, p in enumerate(series.stack())}
    mask = np.zeros(shape, np.uint8)
    frames = segmentation.pixel_array.reshape(-1, *shape[1::-1])
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        here = places[source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1)) - 1]
        own = group if "SegmentIdentificationSequence" in group else shared
        mask[..., here][frame.T > 0] = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return mask


def read_by_place(path: Path, geometry: Geometry) -> np.ndarray:
    """The label map of a segmentation by the coordinates alone that highdicom gives its voxels."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    index = np.indices(geometry.shape).reshape(3, -1)
    world = geometry.affine @ np.vstack([index, np.ones(index.shape[1])])
    world[:2] *= -1
    there = np.linalg.solve(volume.affine, world)[:3]
    np.testing.assert_allclose(there, there.round(), atol=1e-4)
    inside = (there.round() >= 0).all(axis=0) & (volume.array.shape > there.round().T).all(axis=1)
    mask = np.zeros(geometry.shape, np.uint8)
    mask[tuple(index[:, inside])] = volume.array[tuple(there[:, inside].round().astype(int))]
    return mask


@pytest.mark.parametrize("kind", ["upright", "oblique", "downwards", "enhanced"])
def test_a_mask_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    if kind == "enhanced":
        write_enhanced(tmp_path / "a.dcm", voxels(5), order=[3, 0, 4, 1, 2])
    else:
        directions = oblique() if kind == "oblique" else UPRIGHT
        places = positions(5, directions)[:: -1 if kind == "downwards" else 1]
        write_series(tmp_path, voxels(), directions=directions, places=places)
    (series,) = list_series(tmp_path)
    mask = np.random.default_rng(0).integers(0, 3, (4, 6, 5)).astype(np.uint8)
    mask[..., 4] = 0
    target = tmp_path / "mask.dcm"
    labels = {1: "left ventricle", 2: "myocardium " * 9}
    write_segmentation(mask, series, target, labels=labels, description="hssl: Cardiac")

    np.testing.assert_array_equal(read_back(target, mask.shape, series), mask)
    np.testing.assert_array_equal(read_by_place(target, series.geometry()), mask)
    written = dcmread(target)
    source = dcmread(series.planes[0].path)
    assert written.Modality == "SEG"
    assert (written.StudyInstanceUID, written.PatientID) == (source.StudyInstanceUID, "P1")
    assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert (written.SeriesDescription, written.SeriesNumber) == ("hssl: Cardiac", 1003)
    assert [s.SegmentLabel for s in written.SegmentSequence] == ["left ventricle", ("myocardium " * 9)[:64].strip()]
    algorithm = written.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("hssl", hssl.__version__)
    referenced = written.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    files = {dcmread(plane.path).SOPInstanceUID for plane in series.planes}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == files
    assert not list(tmp_path.glob(".partial*"))


def test_values_that_skip_numbers_are_segments_in_their_order(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    (series,) = list_series(tmp_path)
    mask = np.random.default_rng(0).choice([0, 2, 7], (4, 6, 5)).astype(np.uint8)
    write_segmentation(mask, series, tmp_path / "mask.dcm", labels={7: "b", 2: "a"}, description="")
    found = read_back(tmp_path / "mask.dcm", mask.shape, series)
    np.testing.assert_array_equal(found, np.select([mask == 2, mask == 7], [1, 2], 0))
    assert [s.SegmentLabel for s in dcmread(tmp_path / "mask.dcm").SegmentSequence] == ["a", "b"]


def test_an_empty_mask_is_written(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    (series,) = list_series(tmp_path)
    mask = np.zeros((4, 6, 5), np.uint8)
    write_segmentation(mask, series, tmp_path / "mask.dcm", labels={1: "a"}, description="")
    np.testing.assert_array_equal(read_back(tmp_path / "mask.dcm", mask.shape, series), mask)


def test_a_mask_of_another_grid_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    (series,) = list_series(tmp_path)
    with pytest.raises(SourceError, match=r"has the shape \(4, 6, 5\), its mask \(6, 4, 5\)"):
        write_segmentation(np.zeros((6, 4, 5), np.uint8), series, tmp_path / "x.dcm", labels={1: "a"}, description="")
    assert not (tmp_path / "x.dcm").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"SpecificCharacterSet": ""},
        {"SpecificCharacterSet": "GB2312x"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "A^B"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "José"},
        {"slices": {1: {"ImageOrientationPatient": [1, 1e-7, 0, 0, 1, 0]}}},
        {"slices": {1: {"PixelSpacing": [0.7500001, 0.5]}}},
        {"SliceThickness": None},
        {"SliceThickness": ""},
        {"slices": {1: {"SliceThickness": 2.4999}}},
        {"SeriesNumber": 2**31 - 1},
        {"SeriesNumber": None},
        {"PatientBirthDate": "1970-01-01", "StudyTime": "25:61"},
        {"PatientSex": "female"},
        {"SliceThickness": 0},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_series_that_is_read_gets_its_segmentation(fields: dict[str, Any], tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        write_series(tmp_path, voxels(), **fields)
    (series,) = list_series(tmp_path)
    check_source(series)
    mask = np.random.default_rng(0).integers(0, 3, (4, 6, 5)).astype(np.uint8)
    labels = {1: "Lëber 肝", 2: "a\\b"}
    write_segmentation(mask, series, tmp_path / "mask.dcm", labels=labels, description="")
    np.testing.assert_array_equal(read_back(tmp_path / "mask.dcm", mask.shape, series), mask)
    written = dcmread(tmp_path / "mask.dcm")
    assert [item.SegmentLabel for item in written.SegmentSequence] == ["Lëber 肝", "a/b"]
    if "José" in fields.values():
        assert written.PatientName == "José"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"FrameOfReferenceUID": None}, "has no FrameOfReferenceUID"),
        ({"SOPInstanceUID": None}, "has no SOPInstanceUID"),
        ({"SOPClassUID": "1.2.840.113619.4.2"}, r"cannot have a segmentation: KeyError: '1\.2\.840"),
    ],
)
def test_a_series_without_a_segmentation_is_named_before_there_is_a_mask(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_series(tmp_path, voxels(), **fields)
    (series,) = list_series(tmp_path)
    series.image()
    with pytest.raises(SourceError, match=message):
        check_source(series)


# Prediction -----------------------------------------------------------------------------------------------------


class ByIntensity(nn.Module):
    """Reads the class off the intensity: 0, 1/2 and 1 are 0, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return -((x - self.levels) ** 2)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Preprocessing(orientation="PLS", spacing=(0.75, 0.5), window=(0, 80))
    info = TaskInfo(
        name="T",
        modality="CT",
        labels={1: "one", 2: "two"},
        preprocessing=plan,
        layout="dicom",
        origin="",
        fingerprint="",
    )
    info_of_run = SimpleNamespace(components=ComponentRule())
    run = SimpleNamespace(config=FinetuneConfig(task="T", patch_size=16, precision="32"), info=info_of_run)
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, info))


@pytest.mark.usefixtures("network")
def test_every_series_gets_a_segmentation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = [np.random.default_rng(seed).integers(0, 3, (5, 6, 4)) for seed in range(2)]
    for number, mask in enumerate(masks):
        write_series(tmp_path / "raw" / "a", mask * 40 + 1024, SeriesNumber=number, uid=f"1.2.3.{number}")
    write_series(tmp_path / "raw", voxels(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=9)
    write_series(tmp_path / "raw", voxels(1), ImagePositionPatient=None, SeriesNumber=8)
    paths = predict("run", [tmp_path / "raw"], tmp_path / "out", device="cpu")
    found = list_series(tmp_path / "raw" / "a")
    assert [path.name for path in paths] == [f"{series.id}.dcm" for series in found]
    for path, series, mask in zip(paths, found, masks, strict=True):
        np.testing.assert_array_equal(read_back(path, (4, 6, 5), series), mask.transpose(2, 1, 0))
    assert [s.SegmentLabel for s in dcmread(paths[0]).SegmentSequence] == ["one", "two"]
    assert dcmread(paths[0]).SeriesDescription == "hssl: T"
    for number, what in ((9, "is a localizer"), (8, "has no ImagePositionPatient")):
        assert re.search(rf"series {number} 'thorax' of patient 'P1' \(\S+\) {what} and is left out", caplog.text)
    assert "was learnt from" not in caplog.text


@pytest.mark.usefixtures("network")
def test_segmentations_that_were_predicted_can_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [np.random.default_rng(seed).integers(0, 3, (5, 6, 4)) for seed in range(4)]
    for number, mask in enumerate(masks):
        folder = tmp_path / "raw" / f"p{number}"
        write_series(folder, mask * 40 + 1024, uid=f"1.2.3.{number}", PatientID=f"p{number}")
        (series,) = list_series(folder)
        labels = {1: "one", 2: "two"}
        write_segmentation(mask.transpose(2, 1, 0), series, folder / "mask.dcm", labels=labels, description="")
    store = aggregate(tmp_path / "raw", tmp_path / "store", window=(0, 80))
    (task,) = store.tasks.values()
    info = SimpleNamespace(provenance={"store_path": str(store.path)})
    (tmp_path / "run").mkdir()
    run = SimpleNamespace(path=tmp_path / "run", task=task, info=info, seen=lambda *_: set())
    monkeypatch.setattr("hssl.evaluation.Run.open", lambda _: run)
    test = {case.id for case in store.cases(part="test")}
    predict("run", [tmp_path / "raw"], tmp_path / "out", device="cpu")
    result = evaluate("run", predictions=tmp_path / "out")
    assert {row.case for row in result.scores} == test
    assert [row.dice for row in result.scores] == [1.0] * (2 * len(test))
    one = next(path for path in (tmp_path / "out").iterdir() if path.stem in test)
    other = next(path for path in (tmp_path / "out").iterdir() if path.stem not in test)
    shutil.copy(other, one)
    with pytest.raises(SourceError, match=rf"{one}: is of the series 1.2.3.\d, not of series"):
        evaluate("run", predictions=tmp_path / "out")


@pytest.mark.usefixtures("network")
def test_a_series_of_another_modality_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "raw", voxels(), Modality="MR")
    predict("run", [tmp_path / "raw"], tmp_path / "out", device="cpu")
    assert "is MR, and 'T' was learnt from CT" in caplog.text


@pytest.mark.usefixtures("network")
def test_a_folder_of_series_and_pictures_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "raw", voxels())
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "raw" / "preview.png")
    with pytest.raises(SourceError, match=r"holds DICOM series and preview\.png"):
        predict("run", [tmp_path / "raw"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("network")
def test_bad_series_are_named_before_anything_is_predicted(tmp_path: Path) -> None:
    write_series(tmp_path / "good", voxels())
    write_series(tmp_path / "tilted", voxels(), places=positions(5) + np.arange(5)[:, None] * [0, 1, 0])
    write_series(tmp_path / "lost", voxels(), FrameOfReferenceUID=None)
    write_series(tmp_path / "odd", voxels(), SeriesNumber=1)
    write_series(tmp_path / "odd", voxels(), SeriesNumber=2, slices={2: {"PixelSpacing": None}})
    write_series(tmp_path / "scout", voxels(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for folder, message in [
        ("tilted", "gantry tilted"),
        ("lost", "has no FrameOfReferenceUID"),
        ("scout", "is a localizer"),
        ("odd", "series 2 .* has no PixelSpacing"),
    ]:
        with pytest.raises(SourceError, match=message):
            predict("run", [tmp_path / "good", tmp_path / folder], tmp_path / "out")
    with pytest.raises(ConfigError, match="masks of the same name"):
        predict("run", [tmp_path / "good", tmp_path / "good"], tmp_path / "out")
    with pytest.raises(ConfigError, match="names a file"):
        predict("run", [tmp_path / "good"], tmp_path / "mask.dcm")
    assert not (tmp_path / "out").exists()
