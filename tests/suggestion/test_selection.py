from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from hssl.suggestion.selection import distances_between, select, stands_for

# Two crowds on a line, around 1 and 11, and one point far from both.
LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0], [13.0], [40.0]])
DISTANCES = cdist(LINE, LINE)


def test_k_medoids_takes_the_middle_of_what_nothing_taken_stands_for() -> None:
    everyone = range(len(LINE))
    # Sums of distances: 10 is nearest to all; then 40, which alone costs most; then the middle of the other crowd.
    assert select(DISTANCES, [], everyone, 3) == [3, 7, 1]
    assert select(DISTANCES, [7], everyone, 2) == [3, 1]
    assert select(DISTANCES, [3], everyone, 1) == [7]


def test_k_center_takes_the_farthest() -> None:
    assert select(DISTANCES, [0], range(len(LINE)), 3, by="k-center") == [7, 6, 3]
    assert select(DISTANCES, [], range(len(LINE)), 2, by="k-center") == [3, 7]  # the first as k-medoids does


def test_points_that_need_more_count_for_more() -> None:
    need = np.array([1.0, 1, 1, 1, 1, 1, 1, 0])
    assert select(DISTANCES, [4], range(8), 1, need=need) == [1]
    assert select(DISTANCES, [4], range(8), 1, by="k-center", need=need) == [0]


@pytest.mark.parametrize("by", ["k-medoids", "k-center"])
def test_only_candidates_are_taken_each_once(by: str) -> None:
    assert sorted(select(DISTANCES, [3], [1, 3, 5], 9, by=by)) == [1, 5]
    equal = np.zeros((3, 3))
    assert select(equal, [], [2, 0, 1], 2, by=by) == [2, 0]  # of equals the first


def test_each_point_stands_for_those_nearest_to_it() -> None:
    assert stands_for(DISTANCES, [1, 4, 7]) == [3, 4, 1]


def test_every_feature_counts_the_same_and_constant_ones_do_not() -> None:
    features = np.array([[0.0, 0, 5], [1, 0, 5], [0, 1000, 5], [1, 1000, 5]])
    distances = distances_between(features)
    assert distances[0, 1] == pytest.approx(distances[0, 2])
    # Standardised values are -1 and 1; two features of three differ.
    assert distances[0, 3] == pytest.approx(np.sqrt((4 + 4) / 3))
