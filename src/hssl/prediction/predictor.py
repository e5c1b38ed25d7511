"""A fine-tuned network, loaded once: arrays in, label values out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hssl.errors import ConfigError
from hssl.prediction.masks import class_planes, join_planes
from hssl.prediction.tiling import BATCH_SIZE, OVERLAP, predict_slabs
from hssl.runs import load_segmentation
from hssl.sources.base import Geometry

Item = TypeVar("Item")
Result = TypeVar("Result")


class Predictor:
    """A fine-tuned network, loaded once.

    Args:
        run: Folder of a fine-tuning run.
        overlap: As for :func:`hssl.networks.predict_volume`.
        batch_size: As for :func:`hssl.networks.predict_volume`.
        device: As torch names it; None is a GPU where there is one.

    Attributes:
        run: The run, opened.
        task: Its task, with labels and preprocessing.

    Raises:
        RunError: `run` is not a complete fine-tuning run.
        ConfigError: There is no such device.
    """

    def __init__(
        self,
        run: Path | str,
        *,
        overlap: float = OVERLAP,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
    ) -> None:
        network, self.run, self.task = load_segmentation(run)
        try:
            self._network = network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not have
            raise ConfigError(f"device '{device}' cannot be used: {error}") from error
        self._overlap, self._batch_size = overlap, batch_size

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
        config = self.run.config

        def scored() -> Iterator[tuple[Geometry | None, bool, NDArray[np.float32]]]:
            for image, geometry in images:
                left = len(image)
                for scores in predict_slabs(
                    self._network,
                    image,
                    patch_size=config.patch_size,
                    overlap=self._overlap,
                    batch_size=self._batch_size,
                    amp=None if config.precision == "auto" else config.precision == "bf16",
                ):
                    left -= scores.shape[1]
                    yield geometry, left == 0, scores

        def classed(
            part: tuple[Geometry | None, bool, NDArray[np.float32]],
        ) -> tuple[Geometry | None, bool, NDArray[np.uint8]]:
            geometry, last, scores = part
            return geometry, last, class_planes(self.task, scores, geometry)

        planes: list[NDArray[np.uint8]] = []
        with ThreadPoolExecutor(1) as pool:
            for geometry, last, part in ahead(pool, classed, scored()):
                planes.append(part)
                if last:
                    yield join_planes(self.task, planes, geometry)
                    planes = []


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
