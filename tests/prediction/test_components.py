from __future__ import annotations

import numpy as np
import pytest

from hssl.prediction.components import ComponentRule, keep_largest, learn_rule


def volume() -> np.ndarray:
    """Two labels that touch, each a single block."""
    mask = np.zeros((4, 12, 12), np.uint8)
    mask[1:3, 2:6, 2:6] = 1
    mask[1:3, 6:9, 2:6] = 2
    return mask


def test_what_is_always_one_component_is_a_rule() -> None:
    assert learn_rule([volume(), volume()[:, ::-1]], [1, 2]) == ComponentRule(foreground=True, labels=(1, 2))


def test_a_label_in_two_pieces_has_no_rule() -> None:
    other = volume()
    other[1, 11, 8:12] = 2
    assert learn_rule([volume(), other], [1, 2]) == ComponentRule(foreground=False, labels=(1,))


def test_a_label_that_no_mask_shows_has_no_rule() -> None:
    assert learn_rule([volume()], [1, 2, 3]).labels == (1, 2)


def test_one_label_needs_no_rule_for_the_foreground() -> None:
    assert learn_rule([(volume() > 0).astype(np.uint8)], [1]) == ComponentRule(foreground=False, labels=(1,))


def test_single_voxels_that_an_annotator_left_do_not_count() -> None:
    mask = np.zeros((4, 30, 30), np.uint8)
    mask[:, :20, :20] = 1
    mask[0, 29, 29] = 1
    assert learn_rule([mask], [1]).labels == (1,)
    mask[0, 28:, 25:] = 1
    mask[1, 28:, 25:] = 1
    assert learn_rule([mask], [1]).labels == ()


def test_neighbours_may_touch_by_a_corner() -> None:
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert learn_rule([mask], [1]).labels == (1,)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (ComponentRule(), {"far 1", "near 2"}),
        (ComponentRule(labels=(1,)), {"near 2"}),
        (ComponentRule(labels=(2,)), {"far 1"}),
        (ComponentRule(labels=(1, 2)), set()),
        (ComponentRule(foreground=True), {"near 2"}),
        (ComponentRule(foreground=True, labels=(2,)), set()),
    ],
)
def test_islands_that_contradict_the_rule_are_removed(rule: ComponentRule, kept: set[str]) -> None:
    mask = volume()
    mask[3, 11, 11] = 1  # far from everything
    mask[1, 2, 6:8] = 2  # beside label 1, apart from the rest of label 2
    before = mask.copy()
    cleaned = keep_largest(mask, rule)
    assert np.array_equal(mask, before)
    expected = volume()
    if "far 1" in kept:
        expected[3, 11, 11] = 1
    if "near 2" in kept:
        expected[1, 2, 6:8] = 2
    np.testing.assert_array_equal(cleaned, expected)


def test_an_empty_mask_stays_empty() -> None:
    empty = np.zeros((3, 5, 5), np.uint8)
    np.testing.assert_array_equal(keep_largest(empty, ComponentRule(foreground=True, labels=(1,))), empty)


def test_the_rule_in_words() -> None:
    names = {1: "liver", 2: "spleen"}
    assert ComponentRule(foreground=True, labels=(2,)).describe(names) == "the whole foreground, spleen"
    assert ComponentRule().describe(names) == ""
