"""Fine-tuned networks, loaded once: arrays in, label values and probabilities out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hssl.errors import RunError
from hssl.networks import to_device
from hssl.prediction.components import keep_largest
from hssl.prediction.masks import class_planes, join_planes, restored_probabilities
from hssl.prediction.tiling import BATCH_SIZE, OVERLAP, predict_slabs
from hssl.runs import ComponentRule, load_segmentation
from hssl.sources.base import Geometry

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prediction(NamedTuple):
    """What a network, or several, say of one image.

    Attributes:
        mask: Label values, uint8 ``[slices, rows, columns]`` on the store's grid, or of the shape of a file.
        probabilities: Probability of each class, float16 ``[classes, ...]`` of the same shape; None unless requested.
    """

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float16] | None = None

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Entropy of the class probabilities over its largest value, in [0, 1]; None without probabilities."""
        if self.probabilities is None:
            return None
        p = self.probabilities.astype(np.float32)
        entropy: NDArray[np.float32] = -(p * np.log(np.maximum(p, 1e-7))).sum(0) / np.log(len(p))
        return entropy.clip(0, 1)


class Predictor:
    """A fine-tuned network, or several whose probabilities are averaged, loaded once.

    Args:
        runs: Folder of a fine-tuning run, or several of one task.
        overlap: As for :func:`hssl.prediction.tiling.predict_volume`.
        batch_size: As for :func:`hssl.prediction.tiling.predict_volume`.
        device: As torch names it; None is a GPU where there is one.
        components: Remove what contradicts the rule that the first run learned from its labelled masks.

    Attributes:
        run: The (first) run, opened.
        task: Its task, with labels and preprocessing.

    Raises:
        RunError: One is not a complete fine-tuning run, or the runs have different labels or preprocessing.
        ConfigError: There is no such device.
    """

    def __init__(
        self,
        runs: Path | str | Sequence[Path | str],
        *,
        overlap: float = OVERLAP,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
        components: bool = True,
    ) -> None:
        paths = [runs] if isinstance(runs, Path | str) else runs
        loaded = [load_segmentation(path) for path in paths]
        _, self.run, self.task = loaded[0]
        for _, run, task in loaded[1:]:
            if (task.labels, task.preprocessing) != (self.task.labels, self.task.preprocessing):
                hint = "average runs of one task of one store"
                raise RunError(f"has other labels or preprocessing than {self.run.path}", path=run.path, hint=hint)
        self._networks = [(to_device(network, device), run.config) for network, run, _ in loaded]
        self._overlap, self._batch_size = overlap, batch_size
        self._rule = self.run.info.components if components else ComponentRule()

    def mask(self, image: NDArray[np.floating], geometry: Geometry | None = None) -> NDArray[np.uint8]:
        """Label values of an image.

        Args:
            image: ``[slices, rows, columns]`` on the store's grid, intensities in [0, 1].
            geometry: The grid of a file; None stays on the store's.

        Returns:
            The mask, ``[slices, rows, columns]``, or of the shape of `geometry`.
        """
        (mask,) = self.masks([(image, geometry)])
        return mask

    def masks(self, images: Iterable[tuple[NDArray[np.floating], Geometry | None]]) -> Iterator[NDArray[np.uint8]]:
        """The same for one image after the other: the network sees some slices while the last ones become a mask."""
        for prediction in self.predictions(images):
            yield prediction.mask

    def predictions(
        self, images: Iterable[tuple[NDArray[np.floating], Geometry | None]], *, probabilities: bool = False
    ) -> Iterator[Prediction]:
        """Masks and, if requested, the probability of each class, for one image after the other.

        Args:
            images: As for :meth:`mask`.
            probabilities: Give them too; an image then takes ``2 * classes`` bytes a voxel.
        """

        def scored() -> Iterator[tuple[Geometry | None, bool, NDArray[np.float32]]]:
            for image, geometry in images:
                left = len(image)
                for scores in self._slabs(image):
                    left -= scores.shape[1]
                    yield geometry, left == 0, scores

        def classed(part: tuple[Geometry | None, bool, NDArray[np.float32]]) -> _Slab:
            geometry, last, scores = part
            planes = class_planes(self.task, scores, geometry)
            found = restored_probabilities(self.task, scores, geometry) if probabilities else None
            return _Slab(geometry, last, planes, found)

        slabs: list[_Slab] = []
        with ThreadPoolExecutor(1) as pool:
            for slab in ahead(pool, classed, scored()):
                slabs.append(slab)
                if slab.last:
                    yield self._joined(slabs)
                    slabs = []

    def _slabs(self, image: NDArray[np.floating]) -> Iterator[NDArray[np.float32]]:
        """Scores of some slices at a time: logits of one network, logarithms of mean probabilities of several."""
        streams = [
            predict_slabs(
                network,
                image,
                patch_size=config.patch_size,
                overlap=self._overlap,
                batch_size=self._batch_size,
                amp=None if config.precision == "auto" else config.precision == "bf16",
                mirror=(config.view.flip[0] > 0, config.view.flip[1] > 0),
            )
            for network, config in self._networks
        ]
        if len(streams) == 1:
            yield from streams[0]
            return
        for parts in zip(*streams, strict=True):
            mean = np.mean([softmax(part, axis=0) for part in parts], axis=0)
            yield np.log(np.maximum(mean, 1e-12)).astype(np.float32)

    def _joined(self, slabs: list[_Slab]) -> Prediction:
        geometry = slabs[0].geometry
        mask = keep_largest(join_planes(self.task, [slab.planes for slab in slabs], geometry), self._rule)
        parts = [slab.probabilities for slab in slabs if slab.probabilities is not None]
        if not parts:
            return Prediction(mask)
        whole = np.concatenate(parts, axis=1)
        if geometry is not None:
            whole = np.stack([self.task.preprocessing.restore_axes(part, geometry) for part in whole])
        return Prediction(mask, whole)


class _Slab(NamedTuple):
    """Some slices of an image: classes of its pixels and, if requested, their probabilities."""

    geometry: Geometry | None
    last: bool
    planes: NDArray[np.uint8]
    probabilities: NDArray[np.float16] | None


def ahead(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields ``function(item)`` of each item in order, while the next one is being worked on in `pool`.

    Where `items` fail, what came before is yielded first.
    """
    pending: deque[Future[Result]] = deque()
    failure: Exception | None = None
    rest = iter(items)
    while True:
        try:
            item = next(rest)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        pending.append(pool.submit(function, item))
        if len(pending) > 1:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
    if failure is not None:
        raise failure
