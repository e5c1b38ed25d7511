"""Image files in, mask files out, each on its image's own grid."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from hssl.errors import ConfigError, HsslError, SourceError, attempt, name_bad_file
from hssl.files import replacing
from hssl.prediction import dicom_seg
from hssl.prediction.predictor import Prediction, Predictor, ahead
from hssl.prediction.tiling import BATCH_SIZE, OVERLAP
from hssl.sources import dicom
from hssl.sources.base import Geometry, is_ct
from hssl.sources.dicom_series import Series
from hssl.sources.files import NIFTI, PICTURES, channel_count, check_name, list_files, read_geometry, read_image, stem
from hssl.sources.plain import image_folders, masks_beside
from hssl.store.preprocessing import Preprocessing, check_geometry
from hssl.store.store import TaskInfo

logger = logging.getLogger(__name__)


def predict(
    run: Path | str | Sequence[Path | str],
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    channel: int | None = None,
    overlap: float = OVERLAP,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    components: bool = True,
    probabilities: bool = False,
    uncertainty: bool = False,
    skip_bad: bool = False,
) -> list[Path]:
    """Writes a mask for each image, on the image's own grid.

    A NIfTI mask has the name, shape, affine and header of its image, and type uint8; the mask of a picture is
    a PNG with its rows and columns; the mask of a DICOM series is a DICOM segmentation that refers to it, named
    by the series' id (:attr:`hssl.sources.Series.id`). Localizers and pictures beside other
    series are left out, and a warning names them and each series that is no CT where the task was one, or the other way
    round. Every header is checked before the first image is predicted. Masks appear one by one, each complete; one that
    already exists is replaced.

    Args:
        run: Folder of a fine-tuning run, or several of one task, whose probabilities are averaged.
        inputs: Image files, and folders whose image files, or trees of folders whose DICOM series, are all predicted.
        output: Folder for the masks, made if it is missing.
        channel: Index along the fourth axis, for 4D images; None for the one the task was made from.
        overlap: Share of a tile that neighbours share at least, in [0, 1).
        batch_size: Tiles in one call of the network.
        device: As torch names it; None is a GPU where there is one.
        components: Keep only the largest component of what is a single one in all labelled masks of the run.
        probabilities: Write ``NAME_probabilities.npz`` beside each mask: float16 ``[classes, ...]`` on its grid,
            under ``probabilities``, and the label value of each class under ``labels``.
        uncertainty: Write ``NAME_uncertainty.nii.gz`` (a PNG for a picture) beside each mask: entropy of the class
            probabilities over its largest value, 0 (sure) to 1; in a PNG 255 is 1.
        skip_bad: Leave bad images out, each with a warning, and raise an error about them when all others are done.

    Returns:
        The masks, in the order of the inputs.

    Raises:
        RunError: `run` is not a complete fine-tuning run.
        SourceError: An input is missing, damaged or of another kind, holds values that are not finite, or
            shows nothing.
        ConfigError: Two inputs have one name, or a mask would replace an image.
    """
    predictor = Predictor(run, overlap=overlap, batch_size=batch_size, device=device, components=components)
    if channel is None and isinstance(predictor.task.channel, int):
        channel = predictor.task.channel
    preprocessing = predictor.task.preprocessing
    bad = _BadImages(skip_bad)
    images = []
    for given in [inputs] if isinstance(inputs, Path | str) else inputs:
        for source in _listed(Path(given), predictor.task):
            checked = attempt(partial(_checked, channel=channel, preprocessing=preprocessing), source)
            if isinstance(checked, HsslError):
                bad.add(checked)
            else:
                images.append(checked)
    output = Path(output)
    _check_targets(images, output)
    _warn_of_modality(images, predictor.task)
    output.mkdir(parents=True, exist_ok=True)
    job = _Job(predictor, images, output, bad, probabilities=probabilities, uncertainty=uncertainty)
    written = list(track(job.run(), "predict", total=len(images)))
    bad.report(len(written))
    return written


@dataclass
class _BadImages:
    """The images that cannot be predicted; the first one stops the command unless they are to be skipped."""

    skip: bool
    errors: list[HsslError] = field(default_factory=list)

    def add(self, error: HsslError) -> None:
        if not self.skip or isinstance(error, ConfigError):  # a full disk is no bad image
            raise error
        logger.warning("left out: %s", error)
        self.errors.append(error)

    def report(self, done: int) -> None:
        """Raises the first error, with how many there are."""
        if self.errors:
            first = self.errors[0]
            count = f"{len(self.errors)} of {len(self.errors) + done} images were left out, this one first"
            raise SourceError(
                f"{first.what} ({count}; the masks of the others are written)", path=first.path, hint=first.hint
            )


@dataclass
class _Job:
    """Images on their way: read one ahead, predicted, and written while the next one is predicted."""

    predictor: Predictor
    images: list[_Input]
    output: Path
    bad: _BadImages
    probabilities: bool
    uncertainty: bool

    def run(self) -> Iterator[Path]:
        """Yields the mask of each image that is written."""
        begun: deque[_Input] = deque()
        with ThreadPoolExecutor(2) as pool:  # reads the next image and writes the last mask

            def usable() -> Iterator[tuple[NDArray[np.float16], Geometry]]:
                read = ahead(pool, partial(attempt, self._load), self.images)
                for image, pixels in zip(self.images, read, strict=True):
                    if isinstance(pixels, HsslError):
                        self.bad.add(pixels)
                    else:
                        begun.append(image)
                        yield pixels, image.geometry

            found = self.predictor.predictions(usable(), probabilities=self.probabilities or self.uncertainty)
            pairs = ((begun.popleft(), prediction) for prediction in found)
            for written in ahead(pool, partial(attempt, self._write), pairs):
                if isinstance(written, HsslError):
                    self.bad.add(written)
                else:
                    yield written

    def _load(self, image: _Input) -> NDArray[np.float16]:
        with name_bad_file(image.path):
            pixels = image.series.image() if image.series else read_image(image.path, image.channel)
            padding = image.series.padding if image.series else None
            return self.predictor.task.preprocessing.prepare_image(pixels, image.geometry, padding=padding)

    def _write(self, result: tuple[_Input, Prediction]) -> Path:
        image, found = result
        target, task = image.target(self.output), self.predictor.task
        if self.probabilities and found.probabilities is not None:
            _write_probabilities(found.probabilities, task, target)
        if self.uncertainty and found.uncertainty is not None:
            _write_uncertainty(found.uncertainty, image, target)
        return _write_mask(found.mask, image, target, task)


@dataclass(frozen=True)
class _Input:
    """One image to predict, its header read. The path of a DICOM series is its folder."""

    path: Path
    channel: int | None
    geometry: Geometry
    series: Series | None = None

    @property
    def files(self) -> list[Path]:
        """The files it is read from."""
        return [plane.path for plane in self.series.planes] if self.series else [self.path]

    def target(self, output: Path) -> Path:
        """The file that its mask goes to."""
        if self.series is not None:
            return output / f"{self.series.id}{dicom_seg.ENDING}"
        return output / (self.path.name if self.path.name.lower().endswith(NIFTI) else f"{stem(self.path)}.png")


def _listed(path: Path, task: TaskInfo) -> Sequence[Path | Series]:
    """The images that an input stands for."""
    if not path.exists():
        raise SourceError("no such file or folder", path=path, hint="check the name, and that its disk is there")
    found = list_files(path, (*NIFTI, *PICTURES))
    series = dicom.holds_series(path)
    if found and series:
        raise SourceError(
            f"holds DICOM series and {found[0].name}", path=path, hint="keep one kind in a folder, or name the files"
        )
    if found:
        return _images(found, path, task)
    if series:
        return _scans(path)
    if path.is_dir():
        inner = [child for child in image_folders(path) if list_files(child, (*NIFTI, *PICTURES))]
        if inner:
            what = f"holds no images; they are in {' and '.join(f'{child.name}/' for child in inner)}"
            raise SourceError(what, path=path, hint=f"give {' or '.join(map(str, inner))}")
        raise SourceError("holds no images", path=path, hint="give the folder that the files are in")
    if not path.name.lower().endswith((*NIFTI, *PICTURES)):
        raise SourceError(
            "is not an image that can be predicted", path=path, hint="give NIfTI, PNG, TIFF, JPEG or DICOM"
        )
    return [path]


def _images(files: list[Path], folder: Path, task: TaskInfo) -> list[Path]:
    """Those of the files in a folder that are images, all of one channel."""
    channels = {found[1] for file in files if (found := re.search(r"_(\d{4})$", stem(file)))}
    if task.layout == "nnunet" and len(channels) > 1:
        hint = f"name the files of the channel of '{task.name}'"
        raise SourceError("holds files of several channels, as nnU-Net numbers them", path=folder, hint=hint)
    masks = masks_beside(files)
    if masks:
        logger.warning("%s: %s and other files named as masks are left out", folder, next(iter(masks)).name)
    return [file for file in files if file not in masks]


def _scans(path: Path) -> list[Series]:
    """The DICOM series below a folder; localizers and pictures lie beside most of them, and are left out there."""
    found = dicom.list_series(path)
    scans = [series for series in found if not (series.is_localizer or series.is_picture)]
    if scans:
        for series in found:
            if series not in scans:
                problem = next(plane.problem for plane in series.planes if plane.problem)
                logger.warning("%s %s and is left out", series, problem.what)
    return scans or found


def _checked(source: Path | Series, channel: int | None, preprocessing: Preprocessing) -> _Input:
    """Reads the header; raises what is wrong with it."""
    if isinstance(source, Series):
        dicom_seg.check_source(source)
        image = _Input(source.folder, None, source.geometry(), source)
    else:
        count = channel_count(source)
        if count > 1 and channel is None:
            raise SourceError(f"has {count} channels", path=source, hint="choose one with --channel")
        channel = None if count == 1 else channel
        with name_bad_file(source):
            image = _Input(source, channel, read_geometry(source, channel))
    with name_bad_file(image.path):
        check_name(image.path)
        check_geometry(image.geometry)
        preprocessing.check_scale(image.geometry)
    return image


def _check_targets(images: list[_Input], output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError("is not a folder", path=output, hint="masks are written into a folder, under their names")
    if output.name.lower().endswith((*NIFTI, *PICTURES, dicom_seg.ENDING)):
        raise ConfigError("names a file", path=output, hint="masks are written into a folder, under their names")
    files = {path.resolve() for image in images for path in image.files}
    taken: dict[Path, Path] = {}
    for image in images:
        target = image.target(output)
        if target.resolve() in files:
            raise ConfigError("the mask would replace an image", path=target, hint="choose another output folder")
        if target in taken:
            raise ConfigError(
                f"{taken[target]} and {image.path} give masks of the same name",
                path=target,
                hint="predict them separately",
            )
        taken[target] = image.path


def _warn_of_modality(images: list[_Input], task: TaskInfo) -> None:
    """Says which series are no CT where the task is one, or the other way round; files of other kinds do not say."""
    for series in (image.series for image in images):
        if series is not None and task.modality and is_ct(series.modality) != is_ct(task.modality):
            logger.warning("%s is %s, and '%s' was learnt from %s", series, series.modality, task.name, task.modality)


def _write_mask(mask: NDArray[np.uint8], image: _Input, target: Path, task: TaskInfo) -> Path:
    """Writes a mask beside its final name and moves it there."""
    if image.series is not None:
        dicom_seg.write_segmentation(mask, image.series, target, labels=task.labels, description=f"hssl: {task.name}")
        return target
    with replacing(target) as partial:
        if image.path.name.lower().endswith(NIFTI):
            nib.save(_nifti_mask(mask, image), partial)
        else:
            Image.fromarray(mask[:, :, 0]).save(partial)
    return target


def _write_probabilities(probabilities: NDArray[np.float16], task: TaskInfo, target: Path) -> None:
    with replacing(target.with_name(f"{stem(target)}_probabilities.npz")) as partial, partial.open("wb") as file:
        np.savez_compressed(file, probabilities=probabilities, labels=task.values)


def _write_uncertainty(uncertainty: NDArray[np.float32], image: _Input, target: Path) -> None:
    if image.series is None and not image.path.name.lower().endswith(NIFTI):
        with replacing(target.with_name(f"{stem(target)}_uncertainty.png")) as partial:
            Image.fromarray((255 * uncertainty[:, :, 0]).round().astype(np.uint8)).save(partial)
        return
    with replacing(target.with_name(f"{stem(target)}_uncertainty.nii.gz")) as partial:
        nib.save(nib.Nifti1Image(uncertainty, image.geometry.affine), partial)  # type: ignore[no-untyped-call]


def _nifti_mask(mask: NDArray[np.uint8], image: _Input) -> nib.Nifti1Image:
    """The mask with the header of its image: qform, sform and their codes, voxel size and units."""
    original = cast(nib.Nifti1Image, nib.load(image.path))
    header = original.header.copy()  # type: ignore[no-untyped-call]
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    # What else a header says is about the scan, and may name the patient.
    header.extensions.clear()
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        if name in header.keys():  # noqa: SIM118 (a header is no mapping); NIfTI-2 has no db_name
            header[name] = b""
    shape = original.shape if image.channel is None else original.shape[:3]
    return type(original)(mask.reshape(shape), original.affine, header)
