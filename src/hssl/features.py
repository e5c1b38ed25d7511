"""Pooled features of slices: what groups, maps, probes and suggestions look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from hssl.networks import UNet, grid_pool
from hssl.store import CaseRecord, Store

GRID = 3
"""Cells per axis: instance normalisation fixes the mean of a channel, so pooling over the whole map says nothing."""
SIDE = 96
"""Pixels that a slice is brought to, about."""
THUMBNAIL = 12
"""Side of the picture that describes a slice where there is no network."""
_AT_ONCE = 64  # bounds the memory of slices that have been read


def spread_slices(cases: Sequence[CaseRecord], count: int) -> list[tuple[CaseRecord, int]]:
    """Chooses slices at even steps through all slices of some cases.

    Args:
        cases: The cases, in order.
        count: Slices to choose; all where there are fewer.

    Returns:
        Case and number of each slice.
    """
    slices = [(case, number) for case in cases for number in range(case.shape[0])]
    steps = np.linspace(0, max(len(slices) - 1, 0), min(count, len(slices)))
    return [slices[index] for index in np.unique(steps.round().astype(int))]


@torch.inference_mode()
def pooled_features(
    network: UNet, slices: Sequence[NDArray[np.floating]], *, side: int = SIDE, batch_size: int = 32
) -> NDArray[np.float64]:
    """Deepest features of each slice, pooled on a coarse grid.

    Args:
        network: Any network, in evaluation mode or not; instance normalisation does not know the difference.
        slices: Images ``[rows, columns]`` in [0, 1], of any size; each is brought to `side` x `side` pixels, or the
            nearest size that the network takes.
        side: Pixels.
        batch_size: Slices in one call of the network.

    Returns:
        float64 ``[slices, channels * GRID**2]``.
    """
    # No fewer than leave each cell of the grid a pixel of its own.
    size = [max(side // divisor, GRID) * divisor for divisor in network.divisor]
    device = next(network.parameters()).device
    rows = []
    for start in range(0, len(slices), batch_size):
        pictures = [_resized(image, size) for image in slices[start : start + batch_size]]
        rows.append(grid_pool(network.encode(torch.cat(pictures).to(device))[-1].float(), GRID).double().cpu())
    features: NDArray[np.float64] = torch.cat(rows).numpy()
    return features


def slice_features(
    store: Store, slices: Sequence[tuple[CaseRecord, int]], network: UNet | None = None
) -> NDArray[np.float64]:
    """Features of slices of a store.

    Args:
        store: The store.
        slices: Case and number of each.
        network: Gives :func:`pooled_features`; None takes the brightness of a small picture of each slice.

    Returns:
        float64 ``[slices, features]``.

    Raises:
        StoreError: A slice cannot be read.
    """
    parts = []
    for start in range(0, len(slices), _AT_ONCE):
        images = [store.image_slice(case, number) for case, number in slices[start : start + _AT_ONCE]]
        if network is not None:
            parts.append(pooled_features(network, images))
        else:
            small = [_resized(image, (THUMBNAIL, THUMBNAIL)) for image in images]
            parts.append(torch.cat(small).flatten(1).double().numpy())
    return np.concatenate(parts)


def standardised(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features of slices, ``[slices, features]``, each with mean 0 and standard deviation 1."""
    scaled: NDArray[np.float64] = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return scaled


def to_plane(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places slices on a map by their features: 30 dimensions by PCA, then two by t-SNE.

    Args:
        features: ``[slices, features]``, of four slices or more.

    Returns:
        float ``[slices, 2]``.
    """
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    small = PCA(min(30, *features.shape), random_state=0).fit_transform(features)
    perplexity = min(30, (len(small) - 1) / 3)
    points: NDArray[np.float64] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(small)
    return points


def distances(features: NDArray[np.float64], subjects: Sequence[str]) -> NDArray[np.float64]:
    """Distance of each slice from each slice of another subject, ``[slices, slices]``; infinite within a subject."""
    named = np.array(subjects)
    distance: NDArray[np.float64] = cdist(features, features)
    distance[named[:, None] == named[None]] = np.inf
    return distance


def _resized(image: NDArray[np.floating], size: Sequence[int]) -> torch.Tensor:
    picture = torch.from_numpy(image.astype(np.float32))[None, None]
    return F.interpolate(picture, size=list(size), mode="bilinear", align_corners=False, antialias=True)
