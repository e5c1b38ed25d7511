"""Files that the page is given, and what a run predicts of them: bounded, and checked like any other input."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hssl.errors import HsslError, SourceError, name_bad_file
from hssl.palette import label_colours
from hssl.prediction import predict
from hssl.runs import Run
from hssl.sources.base import Geometry
from hssl.sources.files import NIFTI, channel_count, read_geometry, read_image, stem
from hssl.viewer.volumes import LabelEntry, Layer, to_nifti

MAX_BYTES = 512 * 2**20
"""Of an uploaded file."""
MAX_VOXELS = 2**28
"""Of an uploaded volume; its probabilities take two bytes a class and voxel."""
KEPT = 4
"""Uploads that are kept; the oldest goes."""
logger = logging.getLogger(__name__)


class TooLargeError(HsslError):
    """An upload is larger than the page takes."""


@dataclass
class Job:
    """One file, and what becomes of it.

    Attributes:
        id: What its addresses call it.
        folder: Its own.
        file: The upload.
        run: Who predicts.
        channel: Index along the fourth axis of a 4D file; None for one channel, or the run's own.
        state: Where it is.
        error: One line of what is wrong, once it has failed.
        scene: What the page draws, once it is done.
    """

    id: str
    folder: Path
    file: Path
    run: Run
    channel: int | None
    state: Literal["waiting", "working", "done", "failed"] = "waiting"
    error: str = ""
    scene: dict[str, Any] | None = None

    @property
    def mask(self) -> Path:
        """The predicted mask, of the name of its image."""
        return self.folder / "masks" / self.file.name

    @property
    def uncertainty(self) -> Path:
        """The map of uncertainty."""
        return self.folder / "masks" / f"{stem(self.file)}_uncertainty.nii.gz"

    @property
    def frame(self) -> int | None:
        """Index along the fourth axis that is predicted; None where there is none."""
        if channel_count(self.file) == 1:
            return None
        own = self.run.task.channel
        return self.channel if self.channel is not None or not isinstance(own, int) else own

    @property
    def geometry(self) -> Geometry:
        """The grid of the upload."""
        return read_geometry(self.file, self.frame)

    def array(self, layer: Literal["image", "mask", "uncertainty"]) -> NDArray[Any]:
        """Voxels in the axes of the upload."""
        if layer == "image":
            return read_image(self.file, self.frame)
        path = {"mask": self.mask, "uncertainty": self.uncertainty}[layer]
        return np.asarray(nib.load(path).dataobj).reshape(self.geometry.shape)  # type: ignore[attr-defined]

    def volume(self, layer: Literal["image", "mask", "uncertainty"]) -> bytes:
        """A layer as NIfTI for the page: with a header that says one thing, which not every upload's does."""
        return to_nifti(self.array(layer).transpose(2, 1, 0), self.geometry.affine[:, [2, 1, 0, 3]])


class Uploads:
    """The files that were given, the latest ones; one is predicted at a time.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self._lock, self._working = threading.Lock(), threading.Lock()

    def find(self, id: str) -> Job | None:
        """A job that is still kept."""
        return self._jobs.get(id)

    async def receive(
        self, name: str, run: Run, channel: int | None, length: int | None, body: AsyncIterator[bytes]
    ) -> Job:
        """Takes a file in.

        Args:
            name: As its owner calls it.
            run: Who is to predict it.
            channel: Index along the fourth axis.
            length: As the request states it.
            body: Its bytes.

        Raises:
            SourceError: The name is none of a NIfTI file.
            TooLargeError: There are too many bytes, whatever was stated.
        """
        check_upload_name(name)
        if length is not None and length > MAX_BYTES:
            raise _too_large(name)
        folder = self.folder / uuid4().hex
        job = Job(folder.name, folder, folder / name, run, channel)
        folder.mkdir(parents=True)
        try:
            received = 0
            with job.file.open("wb") as file:
                async for part in body:
                    received += len(part)
                    if received > MAX_BYTES:
                        raise _too_large(name)
                    file.write(part)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._jobs[job.id] = job
            done = [each for each in self._jobs.values() if each.state in ("done", "failed")]
            for old in done[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old.id]
                shutil.rmtree(old.folder, ignore_errors=True)
        return job

    def begin(self, job: Job, root: str) -> None:
        """Predicts in a thread of its own.

        Args:
            job: The file.
            root: The first part of every address.
        """
        threading.Thread(target=self._work, args=(job, root), daemon=True).start()

    def _work(self, job: Job, root: str) -> None:
        with self._working:
            job.state = "working"
            try:
                check_size(job.file)
                predict(job.run.path, [job.file], job.mask.parent, channel=job.channel, uncertainty=True)
                job.scene = _scene(job, root)
                job.state = "done"
            except HsslError as error:
                # The folder is ours and says nothing to whoever gave the file.
                job.error, job.state = str(error).replace(f"{job.folder}/", ""), "failed"
            except Exception:
                logger.exception("%s cannot be predicted", job.file.name)
                job.error, job.state = (
                    "this failed by a fault of the program; its traceback is in the terminal",
                    "failed",
                )


def check_upload_name(name: str) -> None:
    """Refuses a name that is none of a NIfTI file, or that would lead elsewhere.

    Raises:
        SourceError: It is one.
    """
    plain = name == Path(name).name and not name.startswith(".") and name.isprintable() and len(name.encode()) <= 200
    if not plain or not name.lower().endswith(NIFTI):
        shown = name.encode("unicode_escape").decode()[:80]
        raise SourceError(f"'{shown}' is no name of a NIfTI file", hint="give a file NAME.nii or NAME.nii.gz")


def check_size(path: Path) -> None:
    """Refuses a volume whose prediction would take too much memory, by its header alone.

    Raises:
        SourceError: It has too many voxels, or its header cannot be read.
    """
    with name_bad_file(path):
        shape = nib.load(path).shape  # type: ignore[attr-defined]
        if np.prod([max(int(length), 1) for length in shape], dtype=np.float64) > MAX_VOXELS:
            what = f"has {' x '.join(map(str, shape))} voxels, more than the page takes"
            raise SourceError(what, hint="use 'hssl predict'")


def _too_large(name: str) -> TooLargeError:
    return TooLargeError(f"{name} is larger than {MAX_BYTES // 2**20} MiB", hint="use 'hssl predict'")


def _scene(job: Job, root: str) -> dict[str, Any]:
    """What the page draws: the file, its mask and the uncertainty, all on the grid of the file."""
    task, address = job.run.task, f"{root}/predict/{job.id}"
    geometry, mask = job.geometry, job.array("mask")
    counts = np.bincount(mask.ravel(), minlength=256)
    voxel = abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000
    colours = label_colours(task.labels)
    labels = [
        LabelEntry(value=value, name=name, colour=colours[value], ml=float(counts[value] * voxel))
        for value, name in sorted(task.labels.items())
    ]
    layers = [
        Layer(name="image", url=f"{address}/image.nii", kind="image"),
        Layer(name="mask", url=f"{address}/mask.nii", kind="mask", labels=labels),
        Layer(
            name="uncertainty",
            url=f"{address}/uncertainty.nii",
            kind="map",
            shown=False,
            note="Entropy of the class probabilities over its largest value: 0 is sure, 1 is not at all.",
        ),
    ]
    middle = [length // 2 for length in geometry.shape]
    if mask.any():
        inside = np.argwhere(mask)
        middle = inside[len(inside) // 2].tolist()
    return {
        "layers": [layer.model_dump() for layer in layers],
        "affine": geometry.affine.tolist(),
        "shape": geometry.shape,
        "window": None,
        "keys": [0, 1, 2],
        "start": middle,
    }
