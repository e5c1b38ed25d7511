from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def said(caplog) -> Callable[[], str]:
    """What has been logged since the last call."""
    caplog.set_level(logging.INFO, logger="hssl")

    def text() -> str:
        lines = caplog.text
        caplog.clear()
        return lines

    return text
