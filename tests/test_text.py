from __future__ import annotations

import pytest

from hssl.text import markdown


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
