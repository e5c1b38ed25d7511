"""Reads one image or mask file: NIfTI volumes and 2D pictures (PNG, TIFF, JPEG).

Whatever is wrong with a file becomes a :class:`~hssl.errors.SourceError` that names it.
"""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hssl.errors import SourceError, name_bad_file
from hssl.sources.base import Geometry

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_MM_PER_UNIT = {3: 10.0}  # TIFF ResolutionUnit: centimetre; dots per inch are for printers
_MM_PER_NIFTI_UNIT = {"meter": 1000.0, "micron": 0.001}
_TIFF_X_RESOLUTION, _TIFF_Y_RESOLUTION, _TIFF_RESOLUTION_UNIT = 282, 283, 296
_ORIENTATION = 274  # of EXIF and TIFF; from 5 on rows and columns change places
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_CHUNK = 1 << 20
_DEFLATE = 1032  # to 1 is the most that gzip compresses
_BEHIND = 1 << 24  # bytes behind the voxels that a file may have, for extensions and padding


def stem(path: Path) -> str:
    """File name without its ending, ``.nii.gz`` being one ending."""
    name = path.name
    for ending in (*NIFTI, *PICTURES):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def list_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Sorted files of a folder that end in one of `endings`; hidden files are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings) and not path.name.startswith(".") and path.is_file()
    )


def check_name(path: Path) -> None:
    """Refuses a path that no JSON file and not every terminal can hold.

    Raises:
        SourceError: It is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SourceError("the name is not UTF-8", path=path, hint="rename the file or folder") from error


def walk_files(folder: Path) -> Iterator[list[Path]]:
    """Files of each folder of a tree, sorted; what is hidden is left out, a broken link is not."""
    seen = set()  # links are followed, but not in circles
    for where, children, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not child.startswith("."))
        yield [Path(where, name) for name in sorted(names) if not name.startswith(".")]


def read_geometry(path: Path, channel: int | None = None) -> Geometry:
    """Reads the grid from the header alone.

    Args:
        path: A NIfTI file or a picture.
        channel: Index along the fourth axis of a 4D NIfTI; None for a file with one channel.

    Raises:
        SourceError: The file is missing or damaged, or has other dimensions than requested.
    """
    with name_bad_file(path):
        if _is_nifti(path):
            return _nifti_geometry(_open_nifti(path, channel), path)
        with _opened_picture(path) as picture:
            (height, width), orientation = _picture_spacing(picture), _orientation(picture)
            upright = _upright(picture)
            spacing = (width, height) if orientation >= 5 else (height, width)
            return Geometry((upright.height, upright.width, 1), np.diag([*spacing, 1.0, 1.0]), ndim=2)


def read_image(path: Path, channel: int | None = None) -> NDArray[np.float32]:
    """Reads the voxels as float32 ``[x, y, z]``, in the file's own units and axis order.

    NIfTI slope and intercept are applied. Colour pictures become luminance; a picture is ``[rows, columns, 1]``,
    upright as its EXIF or TIFF orientation says. A compressed file is read to its end, where its checksum is.
    Arguments and errors as in :func:`read_geometry`.
    """
    with name_bad_file(path):
        if _is_nifti(path):
            return _nifti_array(_open_nifti(path, channel), path, channel).astype(np.float32, copy=False)
        return _read_picture(path)[..., None]


def read_label(path: Path) -> NDArray[np.integer]:
    """Reads a mask as integers ``[x, y, z]``, in the file's own axis order.

    Raises:
        SourceError: The file is missing or damaged, a colour picture, compressed with loss, or holds values that are
            not whole numbers of 32 bits.
    """
    with name_bad_file(path):
        values = _nifti_array(_open_nifti(path, None), path, None) if _is_nifti(path) else _read_mask(path)
        return _whole(values, path)


def read_white_label(path: Path) -> NDArray[np.integer]:
    """Reads a black and white mask: as :func:`read_label`, with 255 as 1."""
    values = read_label(path)
    return np.where(values == 255, values.dtype.type(1), values)


def check_same_place(label_path: Path, geometry: Geometry) -> None:
    """Checks that a NIfTI mask lies where its image does; other files do not say where they lie.

    Args:
        label_path: The mask, of the shape of `geometry`.
        geometry: The grid of the image.

    Raises:
        SourceError: The mask's header puts a corner more than half a voxel away from the image's.
    """
    if not _is_nifti(label_path):
        return
    corners = np.array([*product(*((0.0, length - 1.0) for length in geometry.shape), [1.0])]).T
    moved = np.linalg.solve(geometry.affine, read_geometry(label_path).affine @ corners)
    if (distance := np.abs(moved - corners).max()) > 0.5:
        raise SourceError(
            f"the mask's affine puts it {distance:.1f} voxels away from its image",
            path=label_path,
            hint="bring the mask to the grid of its image, or copy the image's header if only the header is wrong",
        )


def channel_count(path: Path) -> int:
    """Number of channels (volumes along the fourth axis) of a file, from its header.

    Raises:
        SourceError: The file is missing or damaged.
    """
    if not _is_nifti(path):
        return 1
    with name_bad_file(path):
        return _channels(_load_nifti(path))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def _load_nifti(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise SourceError(f"not a NIfTI file but {type(image).__name__}", path=path, hint="convert it to NIfTI")
    if np.dtype(image.get_data_dtype()).fields is not None:  # type: ignore[no-untyped-call]
        raise SourceError("holds colour voxels", path=path, hint="store one number a voxel")
    if np.dtype(image.get_data_dtype()).kind == "c":  # type: ignore[no-untyped-call]
        raise SourceError("holds complex voxels", path=path, hint="store one number a voxel, as the magnitude")
    return image


def _channels(image: nib.Nifti1Image) -> int:
    return int(np.prod(image.shape[3:], dtype=int))


def _open_nifti(path: Path, channel: int | None) -> nib.Nifti1Image:
    image = _load_nifti(path)
    shape, count = image.shape, _channels(image)
    if len(shape) < 2 or min(shape) < 1:
        raise SourceError(
            f"shape {shape} is neither a volume nor a slice", path=path, hint="convert it again from where it came"
        )
    if channel is None and count > 1:
        raise SourceError(
            f"shape {shape} has {count} channels where one is expected",
            path=path,
            hint="choose one with --channel, or split the file; a mask has one channel",
        )
    if channel is not None and channel >= count:
        raise SourceError(
            f"shape {shape} has {count} channels, number {channel} is missing",
            path=path,
            hint="give all images the same channels, or leave this one out",
        )
    _check_size(image, path)
    return image


def _check_size(image: nib.Nifti1Image, path: Path) -> None:
    """Refuses a header that claims more voxels than the file or the memory can hold, before any is allocated."""
    proxy, size = cast(Any, image.dataobj), path.stat().st_size
    claimed = int(proxy.offset) + math.prod(image.shape) * proxy.dtype.itemsize
    if claimed > (size * _DEFLATE if _is_gzip(path) else size):
        raise SourceError(
            f"is truncated or damaged: its header claims {claimed:,} bytes, which a file of {size:,} cannot hold",
            path=path,
            hint="download or export it again",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (needed := 4 * math.prod(image.shape[:3])) > memory:
        raise SourceError(f"needs {needed:,} bytes of memory, and there are {memory:,}", path=path, hint="crop it")


def _nifti_geometry(image: nib.Nifti1Image, path: Path) -> Geometry:
    affine = np.array(image.affine, dtype=np.float64)
    try:
        unit = image.header.get_xyzt_units()[0]  # type: ignore[no-untyped-call]
    except KeyError as error:
        raise SourceError(
            f"has a unit of length that NIfTI does not know: {error}",
            path=path,
            hint="correct xyzt_units in its header",
        ) from error
    mm = _MM_PER_NIFTI_UNIT.get(unit, 1.0)
    affine[:3] *= mm
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    # Beside the volume that its axes would span at right angles, whatever the unit.
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sizes.prod():
        raise SourceError("the affine in the header has no inverse", path=path, hint="correct its spacing")
    # Some converters leave a nominal sform beside the scanner's spacing (ACDC does): the spacing is what was measured.
    zooms = sizes.copy()  # a file of two axes has two
    own = image.header.get_zooms()[:3]  # type: ignore[no-untyped-call]
    zooms[: len(own)] = mm * np.array(own, dtype=np.float64)
    if (zooms > 0).all() and not np.allclose(zooms, sizes, rtol=0.01):
        affine[:3, :3] *= zooms / sizes
    x, y, z = (*image.shape[:3], 1)[:3]
    return Geometry((x, y, z), affine)


def _nifti_array(image: nib.Nifti1Image, path: Path, channel: int | None) -> NDArray[np.generic]:
    """Voxels of one channel as ``[x, y, z]``, scaled by the header's slope and intercept.

    nibabel reads as many bytes as there are voxels, and so never meets the checksum at the end of a gzip file.
    """
    proxy = cast(Any, image.dataobj)
    shape = (*image.shape[:3], 1)[:3]
    size = math.prod(shape) * proxy.dtype.itemsize
    start = int(proxy.offset) + (channel or 0) * size  # the first axis runs fastest: channels lie one after another
    content = bytearray(size)
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as stream:
        _skip(stream, start, path)
        view, filled = memoryview(content), 0
        while filled < size:
            read = stream.readinto(view[filled : filled + _CHUNK])
            if not read:
                raise SourceError(
                    f"ends after {filled:,} of {size:,} bytes of voxels", path=path, hint="download or copy it again"
                )
            filled += read
        if _is_gzip(path):
            behind = math.prod(image.shape) * proxy.dtype.itemsize - (start - int(proxy.offset)) - size + _BEHIND
            _skip(stream, behind, path, to_the_end=True)
    values = np.frombuffer(content, proxy.dtype).reshape(shape, order="F")
    return np.asarray(nib.volumeutils.apply_read_scaling(values, proxy.slope, proxy.inter))


def _skip(stream: io.BufferedIOBase, count: int, path: Path, *, to_the_end: bool = False) -> None:
    """Reads `count` bytes, or up to so many `to_the_end` of the stream."""
    while count > 0:
        if not (read := len(stream.read(min(count, _CHUNK)))):
            if to_the_end:
                return
            raise SourceError("ends before its voxels", path=path, hint="download or copy it again")
        count -= read
    if to_the_end and stream.read(1):
        raise SourceError("holds far more than its header says", path=path, hint="check the file")


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _picture_spacing(picture: Image.Image) -> tuple[float, float]:
    """Size of a pixel in mm along rows and columns: from the resolution tags of a TIFF, otherwise 1 mm."""
    tags = getattr(picture, "tag_v2", {})
    mm = _MM_PER_UNIT.get(tags.get(_TIFF_RESOLUTION_UNIT, 1))
    x, y = float(tags.get(_TIFF_X_RESOLUTION, 0)), float(tags.get(_TIFF_Y_RESOLUTION, 0))
    return (mm / y, mm / x) if mm and x > 0 and y > 0 else (1.0, 1.0)


def _orientation(picture: Image.Image) -> int:
    """How a viewer turns the picture, 1 to 8 as EXIF counts; other values mean nothing."""
    if picture.format in ("JPEG", "MPO", "TIFF") or "exif" in picture.info:
        found = picture.getexif().get(_ORIENTATION, 1)
        return found if found in range(1, 9) else 1
    return 1


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as a viewer turns it."""
    if _orientation(picture) == 1:
        return picture
    if picture.format == "TIFF":
        picture.load()  # turns it
        return picture
    return ImageOps.exif_transpose(picture)


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of one page, not loaded yet."""
    # Not by its name: Pillow maps a file that it can name, and scrambles an uncompressed TIFF that has to be turned.
    with path.open("rb") as stream, Image.open(stream) as picture:
        if (pages := getattr(picture, "n_frames", 1)) > 1:
            raise SourceError(f"holds {pages} pages", path=path, hint="store stacks as NIfTI")
        yield picture


def _read_picture(path: Path) -> NDArray[np.float32]:
    with _opened_picture(path) as picture:
        upright = _upright(picture)
        if upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            upright = upright.convert("RGB")
        pixels = np.asarray(upright).astype(np.float32)
    if pixels.ndim == 2:
        return pixels
    return pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3] @ _LUMINANCE  # alpha says nothing


def _read_mask(path: Path) -> NDArray[np.generic]:
    """Pixels of a mask as ``[rows, columns, 1]``; of a palette picture the indices."""
    with _opened_picture(path) as picture:
        if picture.format in _LOSSY or picture.info.get("compression") == "jpeg":
            what = f"a mask as {picture.format}, compressed with loss, which changes label numbers"
            raise SourceError(what, path=path, hint="store it as PNG, from the original and not from this file")
        pixels = np.asarray(_upright(picture))
    if pixels.ndim == 3:
        colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]  # without alpha
        if (colours != colours[..., :1]).any():
            raise SourceError("a mask in colours", path=path, hint="store label numbers, one channel")
        pixels = colours[..., 0]
    return pixels[..., None]


def _whole(values: NDArray[np.generic], path: Path) -> NDArray[np.integer]:
    if values.dtype.kind in "iu":
        return values  # type: ignore[return-value]
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    whole = np.rint(values)
    if not np.isfinite(whole).all() or (wrong := whole != values).any():
        found = np.unique(values[~np.isfinite(values)] if not np.isfinite(whole).all() else values[wrong])
        listed = ", ".join(f"{value:g}" for value in found[:3].tolist())
        raise SourceError(
            f"the mask holds values that are not whole numbers, such as {listed}",
            path=path,
            hint="store label numbers, resampled by the nearest neighbour",
        )
    if (largest := float(np.abs(whole).max(initial=0))) >= 2**31:
        raise SourceError(f"the mask holds {largest:g}, which is not a label", path=path, hint="renumber the mask")
    return np.asarray(whole).astype(np.int32)
