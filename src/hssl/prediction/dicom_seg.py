"""A mask as a DICOM segmentation that refers to the series it was made from; needs the ``dicom`` extra.

It stands beside the reader of series, not among the exports of a run: prediction writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hssl import __version__
from hssl.errors import SourceError, first_line, install, name_bad_file
from hssl.files import replacing
from hssl.sources.dicom_masks import read_mask, referenced_series, segment_names
from hssl.sources.dicom_series import Series, read_header

ENDING = ".dcm"

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_MAY_BE_EMPTY = (  # must be there all the same; whoever removes names from files may have taken them out
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_SEXES = ("M", "F", "O")
_LONGEST_LABEL = 64  # characters of a long string in DICOM
_LARGEST_NUMBER = 2**31 - 1  # of an integer string in DICOM
_UTF8 = "ISO_IR 192"
_SERIES_NUMBER = 1000  # added to that of the series, so that a viewer lists masks after scans


def check_source(series: Series) -> None:
    """Checks, before there is a mask, that one can be written: an empty one of the first file is made.

    Raises:
        SourceError: highdicom is not installed, the series lacks an identifier that a segmentation refers to, or is of
            a kind that highdicom does not know.
    """
    _highdicom()
    first = series.planes[0]
    header = _header(series, first.path)
    frames = sum(plane.path == first.path for plane in series.planes)
    _segmentation([header], np.zeros((frames, *first.size), np.uint8), series, {1: "label"}, "")


def write_segmentation(
    mask: NDArray[np.integer], series: Series, target: Path, *, labels: Mapping[int, str], description: str
) -> None:
    """Writes a binary DICOM segmentation, in one step, with one segment for each label.

    Segments are numbered from 1 in the order of the label values. All are coded as tissue of an organ: what a
    label means is in its name alone.

    Args:
        mask: Label values ``[columns, rows, slices]``, on the grid of :meth:`Series.geometry`.
        series: The series that the mask was made from.
        target: The file to write.
        labels: Name of each label value, without background.
        description: What the new series is called, up to 64 characters.

    Raises:
        SourceError: As :func:`check_source`, or the mask is not on the grid of the series.
    """
    _highdicom()
    planes = series.stack()
    if mask.shape != (shape := series.geometry().shape):
        raise SourceError(
            f"{series} has the shape {shape}, its mask {mask.shape}",
            path=series.folder,
            hint="predict the series again",
        )
    slices = mask.transpose(2, 1, 0)
    segments = np.zeros(slices.shape, np.uint8)
    for number, value in enumerate(sorted(labels), start=1):
        segments[slices == value] = number
    if len({plane.path for plane in planes}) < len(planes):  # frames have the order that the file has
        segments = segments[np.argsort([plane.frame for plane in planes])]
    headers = [_header(series, path) for path in dict.fromkeys(plane.path for plane in planes)]
    segmentation = _segmentation(headers, segments, series, labels, description)
    with replacing(target) as partial:
        segmentation.save_as(partial)


def read_segmentation(path: Path, series: Series, labels: Mapping[int, str]) -> NDArray[np.uint8]:
    """Reads a segmentation that :func:`write_segmentation` has written, or another one with the same names.

    Args:
        path: The file.
        series: The series that it is of.
        labels: Name of each label value, without background.

    Returns:
        Label values ``[columns, rows, slices]``, on the grid of :meth:`Series.geometry`.

    Raises:
        SourceError: The file is damaged, is of another series or grid, or has segments of other names.
    """
    if (of := referenced_series(path)) != series.uid:
        raise SourceError(f"is of the series {of}, not of {series}", path=path, hint="put it beside its own series")
    named = {value: _label(name, value) for value, name in labels.items()}
    known = sorted(named.values())
    if unknown := [name for name in segment_names(path) if name not in known]:
        hint = "name the segments as the labels, or give the masks of this task"
        raise SourceError(f"has a segment '{unknown[0]}', and the labels are {', '.join(known)}", path=path, hint=hint)
    if twice := next((name for name in known if known.count(name) > 1), None):
        what = f"cannot tell two labels apart that are both called '{twice}' in DICOM"
        raise SourceError(what, path=path, hint="give masks as NIfTI")
    return read_mask(path, series, named)


def _segmentation(
    headers: Sequence[Any], segments: NDArray[np.uint8], series: Series, labels: Mapping[int, str], description: str
) -> Any:
    """The data set of a segmentation.

    Args:
        headers: Of the files of the series, in the order of `segments`.
        segments: Number of the segment of each pixel, ``[slices, rows, columns]``.
        series: The series.
        labels: Name of each label value.
        description: What the new series is called.
    """
    highdicom = _highdicom()
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=segments,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(labels),
            series_instance_uid=highdicom.UID(),
            series_number=min(series.number + _SERIES_NUMBER, _LARGEST_NUMBER),
            series_description=_label(description, 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="hssl",
            manufacturer_model_name="hssl",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            omit_empty_frames=bool(segments.any()),
        )
    except Exception as error:  # highdicom raises almost anything where a header is not as it should be
        what = f"{series} cannot have a segmentation: {type(error).__name__}: {first_line(error)}"
        raise SourceError(what, path=series.folder, hint="convert it to NIfTI, for example with dcm2niix") from error
    segmentation.SpecificCharacterSet = _UTF8
    return segmentation


def _descriptions(labels: Mapping[int, str]) -> list[Any]:
    """What each segment is, in the order of the label values."""
    highdicom = _highdicom()
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="hssl", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_label(labels[value], value),
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(sorted(labels), start=1)
    ]


def _label(text: str, value: int) -> str:
    """A name as a long string of DICOM, in which a backslash would part two of them."""
    return text.replace("\\", "/").strip()[:_LONGEST_LABEL] or f"label {value}"


def _header(series: Series, path: Path) -> Any:
    """The header of one file of the series, with all that a segmentation copies from it."""
    header = read_header(path)
    for keyword in _NEEDED:
        if not header.get(keyword):
            raise SourceError(
                f"{series} has no {keyword}, to which a segmentation must refer",
                path=path,
                hint="export the series again, or convert it to NIfTI",
            )
    with name_bad_file(path):
        _make_regular(header, series)
    return header


def _make_regular(header: Any, series: Series) -> None:
    """Corrects in a header what the reader accepts and highdicom does not."""
    from pydicom.valuerep import DA, TM

    header.decode()
    header.SpecificCharacterSet = _UTF8  # whatever it was called, and for the names of labels
    for keyword in _MAY_BE_EMPTY:
        try:
            value = header.get(keyword)
            if keyword == "PatientSex" and value not in _SEXES:
                value = None
            if value and (keyword.endswith(("Date", "Time"))):
                (DA if keyword.endswith("Date") else TM)(value)
        except ValueError:
            value = None
        setattr(header, keyword, value or None)
    if "PerFrameFunctionalGroupsSequence" not in header:
        first = series.planes[0]  # scanners round each slice's numbers by themselves
        header.ImageOrientationPatient, header.PixelSpacing = list(first.directions), list(first.spacing)
        header.SliceThickness = header.get("SliceThickness") or round(series.geometry().spacing[2], 6)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        hint = install("dicom")
        raise SourceError("masks of DICOM series cannot be written without highdicom", hint=hint) from error
    return highdicom
