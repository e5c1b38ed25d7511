"""The scripts of ``tools/``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hssl.config import NetworkConfig, PretrainConfig
from hssl.objectives import OBJECTIVES
from hssl.store import Store
from hssl.training import pretrain

TOOLS = Path(__file__).parents[1] / "tools"


def test_probe_reads_what_brightness_tells(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"Blobs": 8})
    monkeypatch.setattr(sys, "argv", ["probe.py", str(store.path), "scratch", "--stages", "0", "1"])
    runpy.run_path(str(TOOLS / "probe.py"), run_name="__main__")
    task, *dice = capsys.readouterr().out.split()
    assert task == "Blobs"
    # One figure a seed. The blobs are brighter than all around them: even random features tell.
    assert len(dice) == 2
    assert all(float(each) > 0.5 for each in dice)


def test_scales_weighs_every_objective(
    make_store: Callable[..., Store],
    pretrain_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = make_store()
    network = NetworkConfig(features=(2,) * 5)
    config = pretrain_config(steps=1, network=network, objective="masked", options={}, patch_size=32, window_size=40)
    run = pretrain(store, tmp_path / "run", config=config)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["scales.py", str(store.path), "Blobs", str(run.path), "1"])
    runpy.run_path(str(TOOLS / "scales.py"), run_name="__main__")
    rows = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert [*rows] == ["Dice + cross-entropy", *(f"0.3 of {name}" for name in OBJECTIVES)]
    assert all(float(norm) > 0 for norm in rows.values())
