from __future__ import annotations

import pytest

from hssl.text import markdown, size


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Task01_Heart", "Task01_Heart"),
        ("a|b", "a\\|b"),
        ("*x* `y` [z](u) <i>", "\\*x\\* \\`y\\` \\[z\\](u) \\<i\\>"),
        ("two\n lines\\", "two lines\\\\"),
    ],
)
def test_a_name_is_no_markup(name: str, shown: str) -> None:
    assert markdown(name) == shown


def test_a_size_has_the_unit_that_suits_it() -> None:
    found = [size(count) for count in (0, 999, 1000, 1_500_000, 2_340_000_000)]
    assert found == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.3 GB"]
