"""Segmentations and contours in a tree are the masks of the series that they refer to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hssl.errors import SourceError
from hssl.prediction.dicom_seg import write_segmentation
from hssl.sources import find_sources
from hssl.sources.dicom import list_series
from hssl.sources.dicom_series import Series
from hssl.store import aggregate

pytest.importorskip("pydicom", reason="needs the dicom extra: pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the dicom extra: pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

spec = importlib.util.spec_from_file_location("series_for_masks", Path(__file__).with_name("test_dicom.py"))
assert spec is not None
assert spec.loader is not None
dicom = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dicom)

SHAPE = (20, 24, 5)  # columns, rows, slices


def write_scan(folder: Path, **options: Any) -> Series:
    dicom.write_series(folder / "scan", dicom.voxels(5, 24, 20), **options)
    (series,) = [one for one in list_series(folder) if one.folder == folder / "scan"]
    return series


def write_contours(path: Path, series: Series, rois: dict[str, list[np.ndarray]], **types: str) -> Path:
    """Writes an RTSTRUCT; contours are voxel indices ``[n, 3]`` of the series."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.SeriesInstanceUID = "RTSTRUCT", "P1", generate_uid()
    reference, study, frame = Dataset(), Dataset(), Dataset()
    reference.SeriesInstanceUID = series.uid
    study.RTReferencedSeriesSequence = [reference]
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        observed.ReferencedROINumber, observed.RTROIInterpretedType = number, types.get(name, "ORGAN")
        for indices in contours:
            world = series.geometry().affine @ np.column_stack([indices, np.ones(len(indices))]).T
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.ContourData = [f"{value:.6g}" for value in (world[:3].T * (-1, -1, 1)).ravel()]
            contour.NumberOfContourPoints = len(indices)
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(observed)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def box(low: tuple[float, float], high: tuple[float, float], place: float) -> np.ndarray:
    (left, top), (right, bottom) = low, high
    return np.array([[left, top, place], [right, top, place], [right, bottom, place], [left, bottom, place]])


@pytest.mark.parametrize("directions", [dicom.UPRIGHT, dicom.oblique(), (0, 1, 0, 0, 0, -1)])
def test_a_segmentation_is_the_mask_of_its_series(directions: tuple[float, ...], tmp_path: Path) -> None:
    series = write_scan(tmp_path, directions=directions)
    mask = np.random.default_rng(0).choice([0, 2, 7], SHAPE).astype(np.uint8)
    mask[..., 1] = 0  # an empty slice has no frame
    (tmp_path / "masks").mkdir()
    write_segmentation(mask, series, tmp_path / "masks/a.dcm", labels={2: "spleen", 7: "liver"}, description="")
    (source,) = find_sources(tmp_path)
    (case,) = source.cases()
    assert dict(source.labels) == {1: "liver", 2: "spleen"}  # by name: all files of a task agree
    assert case.label_path == tmp_path / "masks" / "a.dcm"
    assert case.read_label is not None
    np.testing.assert_array_equal(case.read_label(), np.select([mask == 7, mask == 2], [1, 2], 0))


def test_contours_are_filled_where_pixels_have_their_centres(tmp_path: Path) -> None:
    series = write_scan(tmp_path, directions=dicom.oblique())
    rois = {
        "ring": [box((2.5, 3.5), (9.5, 10.5), 1), box((4.5, 5.5), (6.5, 8.5), 1)],  # the inner one is a hole
        "bar": [box((12.4, 1.6), (15.4, 20.6), 3), box((12.4, 1.6), (15.4, 20.6), 4)],
        "body": [box((0.5, 0.5), (18.5, 22.5), place) for place in range(5)],
    }
    write_contours(tmp_path / "rt" / "plan.dcm", series, rois, body="EXTERNAL")
    (source,) = find_sources(tmp_path)
    (case,) = source.cases()
    expected = np.zeros(SHAPE, np.uint8)
    expected[3:10, 4:11, 1] = 2
    expected[5:7, 6:9, 1] = 0
    expected[13:16, 2:21, 3:] = 1
    assert dict(source.labels) == {1: "bar", 2: "ring"}
    assert case.read_label is not None
    np.testing.assert_array_equal(case.read_label(), expected)


def test_overlap_is_refused_until_somebody_says_what_counts(tmp_path: Path) -> None:
    series = write_scan(tmp_path)
    rois = {"organ": [box((2.5, 2.5), (9.5, 9.5), 2)], "lesion": [box((4.5, 4.5), (6.5, 6.5), 2)]}
    path = write_contours(tmp_path / "rt.dcm", series, rois)
    (case,) = find_sources(tmp_path)[0].cases()
    assert case.read_label is not None
    with pytest.raises(SourceError, match=r"'lesion' and 'organ' overlap .*labels\.json") as raised:
        case.read_label()
    assert raised.value.path == path
    (tmp_path / "labels.json").write_text(json.dumps({"lesion": 4}))
    (source,) = find_sources(tmp_path)
    assert dict(source.labels) == {4: "lesion"}
    (case,) = source.cases()
    assert case.read_label is not None
    assert np.unique(case.read_label(), return_counts=True)[1].tolist() == [20 * 24 * 5 - 4, 4]


@pytest.mark.parametrize("place", [1.5, 5.0, -1.0])
def test_contours_between_or_beyond_the_slices_are_refused(place: float, tmp_path: Path) -> None:
    series = write_scan(tmp_path)
    write_contours(tmp_path / "rt.dcm", series, {"a": [box((2.5, 2.5), (9.5, 9.5), place)]})
    (case,) = find_sources(tmp_path)[0].cases()
    assert case.read_label is not None
    with pytest.raises(SourceError, match="does not lie on the slices of series 3"):
        case.read_label()


@pytest.mark.parametrize(
    ("keyword", "change", "message"),
    [
        ("PixelSpacing", lambda value: [2 * number for number in value], "on another grid than series 3"),
        ("ImageOrientationPatient", lambda value: [0, 1, 0, 1, 0, 0], "on another grid than series 3"),
        ("ImagePositionPatient", lambda value: [value[0] + 3, *value[1:]], "not lie on the slices of series 3"),
    ],
)
def test_a_segmentation_on_another_grid_is_refused(keyword: str, change: Any, message: str, tmp_path: Path) -> None:
    series = write_scan(tmp_path)
    path = tmp_path / "mask.dcm"
    write_segmentation(np.ones(SHAPE, np.uint8), series, path, labels={1: "a"}, description="")
    dataset = dcmread(path)
    for element in dataset.iterall():
        if element.keyword == keyword:
            element.value = change([float(number) for number in element.value])
    dataset.save_as(path)
    (case,) = find_sources(tmp_path)[0].cases()
    assert case.read_label is not None
    with pytest.raises(SourceError, match=message):
        case.read_label()


def test_a_second_mask_of_a_series_is_named_and_masks_of_others_do_not_count(tmp_path: Path) -> None:
    series = write_scan(tmp_path)
    write_contours(tmp_path / "a.dcm", series, {"a": [box((2.5, 2.5), (9.5, 9.5), 1)]})
    write_contours(tmp_path / "b.dcm", series, {"a": [box((2.5, 2.5), (9.5, 9.5), 1)]})
    (case,) = find_sources(tmp_path)[0].cases()
    assert case.read_label is not None
    with pytest.raises(SourceError, match=r"a second mask of series 3 .*, beside .*a\.dcm"):
        case.read_label()
    for path in (tmp_path / "a.dcm", tmp_path / "b.dcm"):
        dataset = dcmread(path)
        series_of = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        series_of.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
        dataset.save_as(path)
    (source,) = find_sources(tmp_path)
    assert [(case.label_path, case.read_label) for case in source.cases()] == [(None, None)]
    assert dict(source.labels) == {}


def test_a_store_of_series_has_their_masks(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 4:12, 1:4] = 1
    for number in range(3):
        folder = tmp_path / "raw" / str(number)
        dicom.write_series(folder, dicom.voxels(5, 24, 20, seed=number), PatientID=f"P{number}", uid=f"1.2.{number}")
        (series,) = list_series(folder)
        write_segmentation(mask, series, folder / "mask.dcm", labels={1: "liver"}, description="")
    store = aggregate(tmp_path / "raw", tmp_path / "store")
    assert [case.label_voxels for case in store.cases()] == [{1: 6 * 8 * 3}] * 3
    assert all(np.count_nonzero(store.label(case)) == 6 * 8 * 3 for case in store.cases())
