"""The probe of ``tools/probe.py``: a frozen network's features against the labels of one subject."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hssl.store import Store

PROBE = Path(__file__).parents[1] / "tools" / "probe.py"


def test_probe_reads_what_brightness_tells(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"Blobs": 8})
    monkeypatch.setattr(sys, "argv", ["probe.py", str(store.path), "scratch", "--stages", "0", "1"])
    runpy.run_path(str(PROBE), run_name="__main__")
    task, *dice = capsys.readouterr().out.split()
    assert task == "Blobs"
    # One figure a seed. The blobs are brighter than all around them: even random features tell.
    assert len(dice) == 2
    assert all(float(each) > 0.5 for each in dice)
