from __future__ import annotations

from hssl.config import PretrainConfig


def test_groups_may_have_numbers_for_names():
    assert PretrainConfig.checked({"groups": {"A": 0, "B": "1"}}).groups == {"A": "0", "B": "1"}
    assert PretrainConfig.checked({"groups": 2}).groups == 2
