"""Features of slices: scaled, compared between subjects, and put on a map."""

from __future__ import annotations

import numpy as np

from hssl.features import distances, standardised, to_plane


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    features = np.random.default_rng(0).normal(5, 3, (20, 4))
    features[:, 3] = 7  # what is the same everywhere tells nothing, and stays finite
    scaled = standardised(features)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled[:, :3].std(0), 1, atol=1e-5)
    assert (scaled[:, 3] == 0).all()


def test_a_slice_is_infinitely_far_from_those_of_its_subject() -> None:
    features = np.array([[0.0, 0], [3, 4], [0, 1]])
    found = distances(features, ["a", "b", "a"])
    np.testing.assert_allclose(found, [[np.inf, 5, np.inf], [5, np.inf, np.sqrt(18)], [np.inf, np.sqrt(18), np.inf]])


def test_the_map_keeps_two_clouds_apart() -> None:
    rng = np.random.default_rng(0)
    points = to_plane(np.concatenate([rng.normal(0, 1, (20, 8)), rng.normal(30, 1, (20, 8))]))
    assert points.shape == (40, 2)
    first, second = points[:20], points[20:]
    gap = np.linalg.norm(first.mean(0) - second.mean(0))
    assert gap > 2 * max(first.std(), second.std())
