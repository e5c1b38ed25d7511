"""Masks of DICOM series: segmentations (SEG) and contours (RTSTRUCT) that refer to a series; needs the ``dicom`` extra.

A mask lies on the slices of its series. One on another grid, contours between slices and segments that overlap are
named in an error, never moved or decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hssl.errors import SourceError, name_bad_file
from hssl.sources.dicom_series import SAME_DIRECTION, SAME_PIXELS, Series, read_file, read_header, read_planes

MASKS = ("SEG", "RTSTRUCT")  # modalities
_ON_SLICE = 0.25  # of the distance between slices
_OUTLINE = "EXTERNAL"  # the type of the contour of the whole body, which contains all others


def referenced_series(path: Path) -> str | None:
    """SeriesInstanceUID of the series that a mask is of; None where it names none.

    Raises:
        SourceError: The file is damaged.
    """
    header = read_header(path)
    with name_bad_file(path):
        for item in header.get("ReferencedSeriesSequence") or []:
            return str(item.SeriesInstanceUID)
        for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
            for study in frame.get("RTReferencedStudySequence") or []:
                for item in study.get("RTReferencedSeriesSequence") or []:
                    return str(item.SeriesInstanceUID)
    return None


def segment_names(path: Path) -> list[str]:
    """Names of the segments of a mask, or of its contours without that of the whole body, in the order of the file.

    Raises:
        SourceError: The file is damaged, or a segment has no name.
    """
    header = read_header(path)
    with name_bad_file(path):
        return list(dict.fromkeys(_names(header).values()))


def read_mask(path: Path, series: Series, labels: Mapping[int, str]) -> NDArray[np.uint8]:
    """Reads a mask as label values ``[columns, rows, slices]``, on the grid of :meth:`Series.geometry`.

    Args:
        path: A segmentation or a set of contours.
        series: The series that it is of.
        labels: Name of each label value; segments that are not among them are left out.

    Raises:
        SourceError: The file is damaged, lies on another grid, or two of its segments overlap.
    """
    values = {name: value for value, name in labels.items()}
    header = read_header(path)
    with name_bad_file(path):
        contours = header.Modality == "RTSTRUCT"
        segments = _contoured(header, series, values) if contours else _framed(path, series, values)
        mask = np.zeros(series.geometry().shape, np.uint8)
        for place, inside, value in segments:
            taken = mask[..., place][inside]
            if other := sorted({*np.unique(taken).tolist()} - {0, value}):
                raise SourceError(
                    f"'{labels[value]}' and '{labels[other[0]]}' overlap",
                    path=path,
                    hint='list those that you want in a labels.json in the folder given, as {"liver": 1}',
                )
            mask[..., place][inside] = value
        return mask


Part = tuple[int, NDArray[np.bool_], int]  # slice, which of its pixels [columns, rows], label value


def _names(header: Any) -> dict[int, str]:
    """Name of each segment by its number."""
    if header.Modality == "RTSTRUCT":
        types = {
            int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "")
            for item in header.get("RTROIObservationsSequence") or []
        }
        rois = ((int(roi.ROINumber), str(roi.ROIName)) for roi in header.StructureSetROISequence)
        return {number: name for number, name in rois if types.get(number) != _OUTLINE}
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in header.SegmentSequence}


def _framed(path: Path, series: Series, values: Mapping[str, int]) -> Iterable[Part]:
    """The frames of a segmentation."""
    dataset = read_file(path)
    kind, names = str(dataset.SegmentationType), _names(dataset)
    planes = read_planes(dataset, path)
    frames = dataset.pixel_array.reshape(len(planes), *planes[0].size)
    if kind == "FRACTIONAL":
        full = int(dataset.MaximumFractionalValue)
        if not np.isin(frames, (0, full)).all():
            raise SourceError("holds fractions, not a mask", path=path, hint="export it as a binary segmentation")
    first = series.stack()[0]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [{}] * len(planes)
    for plane, frame, group in zip(planes, frames, groups, strict=True):
        if plane.problem is not None:
            raise SourceError(plane.problem.what, path=path, hint=plane.problem.hint)
        alike = plane.size == first.size and np.allclose(plane.spacing, first.spacing, rtol=SAME_PIXELS)
        if not alike or not np.allclose(plane.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
            raise SourceError(f"lies on another grid than {series}", path=path, hint="resample it to the series")
        place = _slice_of(np.array([plane.position]), series, path, corner=True)
        if kind == "LABELMAP":
            numbers = {number: frame == number for number in np.unique(frame).tolist() if number in names}
        else:
            items = group.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
            numbers = {int(items[0].ReferencedSegmentNumber): frame > 0}
        for number, inside in numbers.items():
            if names[number] in values:
                yield place, inside.T, values[names[number]]


def _contoured(header: Any, series: Series, values: Mapping[str, int]) -> Iterable[Part]:
    """The slices of each set of contours, a contour inside another one being a hole."""
    names, shape = _names(header), series.geometry().shape
    path = Path(str(header.filename))
    for roi in header.get("ROIContourSequence") or []:
        value = values.get(names.get(int(roi.ReferencedROINumber), ""))
        slices: dict[int, NDArray[np.bool_]] = {}
        for contour in (roi.get("ContourSequence") or []) if value is not None else ():
            if not str(contour.ContourGeometricType).startswith("CLOSED_PLANAR"):
                continue
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            place = _slice_of(points, series, path)
            inside = _inside(_indices(points, series)[:, :2], shape[:2])
            slices[place] = slices.get(place, np.zeros(shape[:2], np.bool_)) ^ inside
        for place, inside in slices.items():
            if value is not None:
                yield place, inside, value


def _indices(points: NDArray[np.float64], series: Series) -> NDArray[np.float64]:
    """Voxel indices of points in mm, to the patient's left, back and head: ``[n, 3]`` both."""
    world = np.column_stack([points * (-1, -1, 1), np.ones(len(points))])
    return np.asarray(np.linalg.solve(series.geometry().affine, world.T)[:3].T, np.float64)


def _slice_of(points: NDArray[np.float64], series: Series, path: Path, *, corner: bool = False) -> int:
    """The slice that points lie on; a frame's first pixel must be that of the slice, too."""
    indices = _indices(points, series)
    place = round(float(indices[:, 2].mean()))
    off = np.abs(indices[:, 2] - place).max()
    if corner:
        off = max(off, np.abs(indices[:, :2]).max())
    if not off <= _ON_SLICE or not 0 <= place < series.geometry().shape[2]:
        raise SourceError(f"does not lie on the slices of {series}", path=path, hint="resample it to the series")
    return place


def _inside(outline: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Which pixels have their centre inside a closed outline, in pixels: ``[columns, rows]``."""
    from matplotlib.path import Path as Outline  # slow to import, and needed here only

    found = np.zeros(tuple(shape), np.bool_)
    low = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(outline.max(axis=0)) + 1, shape).astype(int)
    if (high <= low).any():
        return found
    centres = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
    closed = Outline(np.vstack([outline, outline[:1]]), closed=True)
    inside = closed.contains_points(centres.reshape(-1, 2)).reshape(centres.shape[:2])
    found[low[0] : high[0], low[1] : high[1]] = inside
    return found
