from __future__ import annotations

import pytest

from hssl.palette import distinct_colours, label_colours


@pytest.mark.parametrize("count", [0, 1, 10, 20, 21, 117])
def test_no_two_colours_are_the_same(count: int) -> None:
    colours = distinct_colours(count)
    assert len(set(colours)) == count
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours)


def test_a_label_has_the_colour_of_its_rank() -> None:
    assert label_colours([255, 3]) == {3: "#d62728", 255: "#1f77b4"}
    assert distinct_colours(20)[:7] == distinct_colours(7)
