"""One DICOM series of slices: headers to planes, planes to a straight, even stack; needs the ``dicom`` extra.

Slices are ordered by where they lie along their normal. Voxels are what the scanner measured: the rescale slope and
intercept are applied, so that CT is in HU. What decides values, order or identity is finite and the same in all slices,
or the series is named in an error, never bent into a stack.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from hssl.errors import HsslError, SourceError, install, name_bad_file
from hssl.sources.base import Geometry
from hssl.sources.folder import safe_name

_REPRESENTATIONS = (b"CS", b"DA", b"LO", b"OB", b"SH", b"SQ", b"TM", b"UI", b"UL")  # of the first elements
_LONGEST_FIRST = 64  # bytes
TAGS = (
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PatientID", "Modality", "ImageType"),
    *(
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "NumberOfFrames",
        "PixelSpacing",
        "SliceThickness",
    ),
    *("SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "RescaleType", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "SOPClassUID"),
)
_DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
_SAME = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "RescaleType")  # in one series
_NUMBERS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_MACROS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    "PixelValueTransformationSequence",
)

SAME_DIRECTION = 1e-3  # of unit vectors; scanners round them to four digits or more
SAME_PIXELS = 1e-3  # relative
_SAME_PLACE = 0.01  # mm
_EVEN = 0.1  # of the distance between slices
_UPRIGHT = 1.0  # degrees
_SLOPES = 1e-9, 1e9  # what a rescale slope can be


class Problem(NamedTuple):
    """Why a slice cannot be used.

    Attributes:
        what: What is wrong.
        hint: What to do about it.
        kind: Whether it says that the slice only served to plan the scan, or is a picture: a screenshot, a radiograph.
    """

    what: str
    hint: str
    kind: Literal["localizer", "picture", "other"] = "other"


@dataclass(frozen=True)
class Plane:
    """The header of one slice.

    Attributes:
        path: Its file.
        frame: Index in a file that holds several.
        size: Rows and columns.
        position: Centre of its first pixel, ``[x, y, z]`` in mm, to the patient's left, back and head (LPS).
        directions: Where columns count up to, then rows; two unit vectors in LPS.
        spacing: Distance in mm from row to row and from column to column.
        thickness: Distance in mm to the next slice as the header has it, for a slice that stands alone.
        slope: What stored values are multiplied by, None where the header does not say,
        intercept: and what is added to them then, to give HU or another unit.
        padding: Lowest and highest stored value of pixels that were not measured; None where none is declared.
        same: The fields that all slices of a series share, as text, in the order of ``_SAME``.
        problem: Why it cannot be used; None if it can.
    """

    path: Path
    frame: int
    size: tuple[int, int]
    position: tuple[float, ...] = (0, 0, 0)
    directions: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    spacing: tuple[float, ...] = (1, 1)
    thickness: float = 1
    slope: float | None = None
    intercept: float | None = None
    padding: tuple[int, int] | None = None
    same: tuple[str, ...] = ()
    problem: Problem | None = None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slice, in LPS."""
        return np.cross(self.directions[:3], self.directions[3:])

    def rescaled(self, stored: NDArray[np.generic] | int) -> NDArray[np.float64]:
        """Stored values in the unit of the scan."""
        slope = 1.0 if self.slope is None else self.slope
        return np.asarray(stored, np.float64) * slope + (self.intercept or 0.0)


@dataclass(frozen=True)
class Series:
    """One series: a case.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID; empty where it was removed.
        number: SeriesNumber; 0 where there is none.
        description: SeriesDescription, or empty.
        modality: Modality as DICOM abbreviates it, ``CT``, ``MR``, ``PT``.
        planes: Its slices in the order of their files.
        damage: What is wrong with a file that may belong to it, for what a damaged file shows nobody can tell.
    """

    uid: str
    patient: str
    number: int
    description: str
    modality: str
    planes: tuple[Plane, ...] = field(repr=False)
    damage: HsslError | None = field(repr=False, default=None)

    def __str__(self) -> str:
        described = f" '{self.description}'" if self.description else ""
        return f"series {self.number}{described} of patient '{self.patient}' ({self.uid})"

    @property
    def id(self) -> str:
        """Patient, series number and eight digits that stand for the SeriesInstanceUID."""
        return safe_name(
            f"{self.patient or 'unknown'}_{self.number}_{hashlib.sha256(self.uid.encode()).hexdigest()[:8]}"
        )

    @property
    def folder(self) -> Path:
        """The folder that its files lie in, or that their folders lie in."""
        return Path(os.path.commonpath([plane.path.parent for plane in self.planes]))

    @property
    def is_localizer(self) -> bool:
        """Whether it only served to plan the scan."""
        return any(plane.problem is not None and plane.problem.kind == "localizer" for plane in self.planes)

    @property
    def is_picture(self) -> bool:
        """Whether it shows no slices of a body: a screenshot, a radiograph, a report as an image."""
        return all(plane.problem is not None and plane.problem.kind == "picture" for plane in self.planes)

    def stack(self) -> list[Plane]:
        """The slices in the order of where they lie along their normal.

        Raises:
            SourceError: They are no straight, even stack of grey slices that can be decoded, or a file beside them is
                damaged.
        """
        if self.damage is not None:
            raise self.damage
        first = self.planes[0]
        for plane in self.planes:
            if plane.problem:
                self._refuse(plane.problem.what, plane.problem.hint)
            if plane.size != first.size:
                self._refuse(f"has slices of {_by(first.size)} and of {_by(plane.size)} pixels", "keep one size")
            if not np.allclose(plane.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
                self._refuse("has slices in several directions, as a localizer has", "keep one direction")
            if not np.allclose(plane.spacing, first.spacing, rtol=SAME_PIXELS):
                self._refuse(f"has pixels of {_by(first.spacing)} and of {_by(plane.spacing)} mm", "keep one size")
            self._check_same(first, plane)
        several = len({plane.path for plane in self.planes})
        if 1 < several < len(self.planes):
            self._refuse(f"is split over {several} multi-frame files", "convert it to NIfTI, for example with dcm2niix")
        planes = sorted(self.planes, key=lambda plane: float(np.dot(plane.position, first.normal)))
        if len(planes) > 1:
            self._check_even(planes, first.normal)
        return planes

    def geometry(self) -> Geometry:
        """The grid ``[columns, rows, slices]``; the affine takes voxel centres to mm in RAS+.

        Raises:
            SourceError: As :meth:`stack`.
        """
        planes = self.stack()
        first, count = planes[0], len(planes)
        across = np.subtract(planes[-1].position, first.position) / (count - 1) if count > 1 else None
        affine = np.eye(4)
        affine[:3, 0] = np.multiply(first.directions[:3], first.spacing[1])
        affine[:3, 1] = np.multiply(first.directions[3:], first.spacing[0])
        affine[:3, 2] = first.normal * first.thickness if across is None else across
        affine[:3, 3] = first.position
        affine[:2] *= -1  # DICOM's axes point to the left and back, NIfTI's to the right and front
        rows, columns = first.size
        return Geometry((columns, rows, count), affine)

    def image(self) -> NDArray[np.float32]:
        """Reads the voxels as float32 ``[columns, rows, slices]``, rescaled (CT: HU).

        Raises:
            SourceError: As :meth:`stack`, or a file is truncated or damaged.
        """
        planes = self.stack()
        slices: list[NDArray[np.float32]] = []
        read: tuple[Path | None, NDArray[np.generic]] = (None, np.empty(0))
        for plane in planes:
            with name_bad_file(plane.path):
                if read[0] != plane.path:
                    pixels = read_file(plane.path).pixel_array
                    read = plane.path, pixels.reshape(-1, *plane.size)
                stored = read[1][plane.frame]
                values = plane.rescaled(stored).astype(np.float32)
                if plane.padding and self.padding is not None:
                    low, high = plane.padding
                    values[(stored >= low) & (stored <= high)] = self.padding
                slices.append(values)
        return np.stack(slices).transpose(2, 1, 0)

    @property
    def padding(self) -> float | None:
        """Value in :meth:`image` of pixels that were not measured; None where no header declares any."""
        return next((float(plane.rescaled(plane.padding[0])) for plane in self.planes if plane.padding), None)

    def _check_same(self, first: Plane, plane: Plane) -> None:
        """Checks the fields that decide what the values of a slice mean and which patient they show."""
        for keyword, one, other in zip(_SAME, first.same, plane.same, strict=True):
            if one != other:
                hint = "one series shows one patient in one scan; sort its files, or export it again"
                self._refuse(f"has slices with the {keyword} '{one}' and '{other}' ({plane.path.name})", hint)
        for keyword, own, others in (
            ("RescaleSlope", first.slope, plane.slope),
            ("RescaleIntercept", first.intercept, plane.intercept),
        ):
            if (own is None) != (others is None):  # numbers that differ are read as each slice has them, as of PET
                said = " and ".join("none" if value is None else f"{value:g}" for value in (own, others))
                hint = "export it again, complete"
                self._refuse(f"has slices with the {keyword} {said} ({plane.path.name})", hint)

    def _check_even(self, planes: Sequence[Plane], normal: NDArray[np.float64]) -> None:
        positions = np.array([plane.position for plane in planes])
        gaps = np.diff(positions @ normal)
        if gaps.min() < _SAME_PLACE:
            count = int((gaps < _SAME_PLACE).sum())
            self._refuse(
                f"has {count} slices where another one lies already, such as {_pair(planes, int(gaps.argmin()))}",
                "echoes, time points or copies in one series: keep one of them in the folder",
            )
        shift = positions[-1] - positions[0]
        across = float(shift @ normal)
        tilt = float(np.degrees(np.arctan2(np.linalg.norm(shift - across * normal), across)))
        if tilt > _UPRIGHT:
            self._refuse(
                f"was taken with the gantry tilted by {tilt:.1f} degrees",
                "resample it to an upright grid, for example with dcm2niix, and give the NIfTI file",
            )
        step = float(np.median(gaps))
        if np.abs(gaps - step).max() > _EVEN * step:
            steps, here = gaps / step, _pair(planes, int(gaps.argmax()))
            missing = int(np.round(steps - 1).sum())
            if missing and np.abs(steps - np.round(steps)).max() < _EVEN:
                self._refuse(f"lacks {missing} of its slices, such as between {here}", "export it again, complete")
            self._refuse(
                f"has slices {gaps.min():.2f} to {gaps.max():.2f} mm apart, the widest gap being between {here}",
                "export it again, complete, or resample it to even slices",
            )
        straight = positions[0] + np.linspace(0, 1, len(planes))[:, None] * shift
        if (bend := float(np.linalg.norm(positions - straight, axis=1).max())) > max(step, *planes[0].spacing) / 2:
            self._refuse(f"has slices up to {bend:.1f} mm off a straight line", "resample it to a straight grid")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise SourceError(f"{self} {what}", path=self.folder, hint=hint)


def read_header(path: Path, **options: Any) -> Any:
    """The data set of a DICOM file without its pixels.

    Args:
        path: The file.
        options: Of ``pydicom.dcmread``.

    Raises:
        SourceError: pydicom is not installed, or the file is no DICOM file or is damaged.
    """
    pydicom = require_pydicom()
    with name_bad_file(path):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, **options)
            _check_complete(header)
            return header
        except pydicom.errors.InvalidDicomError as error:
            if lacks_header(path):
                hint = "add one, for example with dcmconv, or move the file away"
                raise SourceError("is DICOM without a file header", path=path, hint=hint) from error
            raise SourceError("has the name of a DICOM file, but is not one", path=path, hint="move it away") from error


def read_file(path: Path) -> Any:
    """The data set of a DICOM file with its pixels.

    Raises:
        SourceError: As :func:`read_header`.
    """
    pydicom = require_pydicom()
    with name_bad_file(path):
        return pydicom.dcmread(path)


def require_pydicom() -> Any:
    """The package that reads DICOM.

    Raises:
        SourceError: It is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise SourceError("DICOM cannot be read without pydicom", hint=install("dicom")) from error
    return pydicom


def _check_complete(header: Any) -> None:
    """Refuses an image whose header ends before its rows: pydicom reads what is there, and it would look like a report.

    What is no image says so twice, before the data set and in it. Of a damaged header one of the two is gone.

    Raises:
        SourceError: It does.
    """
    kind = str(header.file_meta.get("MediaStorageSOPClassUID") or "")
    if "Rows" in header or kind == _DIRECTORY:
        return
    said = str(header.get("SOPClassUID") or "")
    if not kind or said != kind or "Image Storage" in require_pydicom().uid.UID(kind).name:
        raise SourceError("is truncated or damaged: its header lacks Rows", hint="get it again from where it came")


def lacks_header(path: Path) -> bool:
    """Whether a file begins with the data elements of DICOM, where the header should be."""
    with path.open("rb") as stream:
        start = stream.read(8)
    group, implicit = int.from_bytes(start[:2], "little"), int.from_bytes(start[4:], "little")
    return len(start) == 8 and group in (2, 8) and (start[4:6] in _REPRESENTATIONS or implicit <= _LONGEST_FIRST)


def read_planes(header: Any, path: Path) -> list[Plane]:
    """The slices of one file: one, or those of an Enhanced image, each with its functional groups.

    Args:
        header: The file's header, with all of :data:`TAGS`.
        path: The file.
    """
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [_plane(header, _values(header), path, 0)]
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    planes = []
    for number, group in enumerate(groups):
        fields: dict[str, Any] = {}
        for macro in _MACROS:
            for item in group.get(macro) or shared.get(macro) or []:
                fields |= _values(item)
        planes.append(_plane(header, fields, path, number))
    return planes


def _values(dataset: Any) -> dict[str, Any]:
    return {element.keyword: element.value for element in dataset}


def _plane(header: Any, fields: dict[str, Any], path: Path, frame: int) -> Plane:
    size = int(header.Rows), int(header.Columns)
    problem = _problem(header, fields)
    if problem:
        return Plane(path, frame, size, problem=problem)
    thickness = _number(fields.get("SpacingBetweenSlices")) or _number(fields.get("SliceThickness"))
    slope, intercept = _number(fields.get("RescaleSlope")), _number(fields.get("RescaleIntercept"))
    return Plane(
        path,
        frame,
        size,
        position=tuple(map(float, fields["ImagePositionPatient"])),
        directions=tuple(map(float, fields["ImageOrientationPatient"])),
        spacing=tuple(map(float, fields["PixelSpacing"])),
        thickness=abs(thickness) if thickness else 1.0,
        slope=slope,
        intercept=intercept,
        padding=_padding(header),
        same=tuple(str(header.get(keyword) or fields.get(keyword) or "").strip() for keyword in _SAME),
    )


def _number(value: Any) -> float | None:
    """A header's number; None where there is none, and an error where it is something else."""
    return None if value is None or value == "" else float(value)


def _padding(header: Any) -> tuple[int, int] | None:
    """The stored values of pixels that were not measured."""
    signed = bool(header.get("PixelRepresentation"))
    ends = [
        int.from_bytes(value, "little", signed=signed) if isinstance(value, bytes) else int(value)
        for value in (header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit"))
        if value is not None and value != ""
    ]
    return (min(ends), max(ends)) if header.get("PixelPaddingValue") is not None and ends else None


def _problem(header: Any, fields: dict[str, Any]) -> Problem | None:
    """Why a slice cannot be used; None if it can."""
    if "LOCALIZER" in (header.get("ImageType") or []):
        return Problem("is a localizer", "move its files away", "localizer")
    if "MOSAIC" in (header.get("ImageType") or []):
        return Problem("holds the slices of a volume side by side in one (MOSAIC)", "convert it with dcm2niix")
    photometric = str(header.get("PhotometricInterpretation") or "")
    if int(header.get("SamplesPerPixel") or 1) != 1 or photometric == "PALETTE COLOR":
        return Problem("is in colours", "leave it out: it is no scan", "picture")
    if photometric == "MONOCHROME1":
        return Problem("stores bright as dark (MONOCHROME1)", "convert it to MONOCHROME2 or NIfTI")
    frames = int(header.get("NumberOfFrames") or 1)
    for keyword, count in _NUMBERS.items():
        if len(fields.get(keyword) or []) != count:
            several = f" of its {frames} frames" if frames > 1 else ""
            hint = "only stacks of slices are read; convert others to NIfTI or PNG"
            return Problem(f"has no {keyword}{several}", hint, "picture")
    if problem := _odd_number(fields):
        return problem
    if frames > 1 and not header.get("PerFrameFunctionalGroupsSequence"):
        return Problem(f"holds {frames} frames and one place for all of them", "convert it to NIfTI")
    columns, rows = np.reshape(np.array(fields["ImageOrientationPatient"], float), (2, 3))
    if not np.allclose([columns @ columns, rows @ rows, columns @ rows], [1, 1, 0], atol=SAME_DIRECTION):
        return Problem("has rows and columns that are not at right angles", "correct its ImageOrientationPatient")
    if min(map(float, fields["PixelSpacing"])) <= 0:
        return Problem(f"has pixels of {_by(fields['PixelSpacing'])} mm", "correct its PixelSpacing")
    if header.get("ModalityLUTSequence"):
        return Problem("has a table of values instead of slope and intercept", "convert it to NIfTI")
    return _undecodable(str(header.file_meta.get("TransferSyntaxUID") or ""))


def _odd_number(fields: dict[str, Any]) -> Problem | None:
    """A number that decides values or order and cannot be one."""
    for keyword in (*_NUMBERS, "RescaleSlope", "RescaleIntercept", "SpacingBetweenSlices", "SliceThickness"):
        value = fields.get(keyword)
        values = value if keyword in _NUMBERS else [value]
        try:
            numbers = [_number(one) for one in values or []]
        except (TypeError, ValueError):
            numbers = [math.nan]
        known = [number for number in numbers if number is not None]
        usable = all(map(math.isfinite, known)) and (keyword not in _NUMBERS or len(known) == len(numbers))
        if keyword == "RescaleSlope":
            usable = usable and all(_SLOPES[0] <= abs(number) <= _SLOPES[1] for number in known)
        if not usable:
            said = "\\".join(map(str, values or []))
            return Problem(f"has the {keyword} {said}", "correct the header, or export the series again")
    return None


@cache
def _undecodable(syntax: str) -> Problem | None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        available = not syntax or get_decoder(UID(syntax)).is_available
    except NotImplementedError:  # not a way to store pixels that pydicom knows
        available = False
    if available:
        return None
    hint = "install a decoder (pylibjpeg-libjpeg, pylibjpeg-openjpeg or python-gdcm), or decompress with gdcmconv --raw"
    return Problem(f"is compressed as '{UID(syntax).name}', which cannot be decoded here", hint)


def _by(lengths: Sequence[float]) -> str:
    return " × ".join(f"{float(length):g}" for length in lengths)


def _pair(planes: Sequence[Plane], number: int) -> str:
    """Names a slice and the next one."""
    one_file = len({plane.path for plane in planes}) == 1
    pair = planes[number : number + 2]
    return " and ".join(f"frame {plane.frame + 1}" if one_file else plane.path.name for plane in pair)
