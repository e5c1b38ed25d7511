"""The scripts of ``tools/``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hssl.config import NetworkConfig, PretrainConfig
from hssl.objectives import OBJECTIVES
from hssl.store import Store
from hssl.training.pretrain import pretrain

TOOLS = Path(__file__).parents[1] / "tools"


def test_a_packed_store_travels_in_parts(
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = make_store({"Blobs": 4, "Bars": 4}, unlabelled={"Blobs": (0,)}, shapes={"Bars": (600, 30, 8)})
    monkeypatch.setattr(sys, "argv", ["pack.py", "pack", str(store.path), str(tmp_path / "parts"), "--mib", "0.2"])
    runpy.run_path(str(TOOLS / "pack.py"), run_name="__main__")
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 1
    assert all(part.stat().st_size <= 0.2 * 2**20 for part in parts)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [str(part) for part in parts]

    unpack = ["pack.py", "unpack", str(tmp_path / "parts"), str(tmp_path / "there")]
    monkeypatch.setattr(sys, "argv", unpack)
    runpy.run_path(str(TOOLS / "pack.py"), run_name="__main__")
    there = Store.open(tmp_path / "there")
    there.verify()
    assert there.split_hash == store.split_hash
    assert [case.id for case in there.cases()] == [case.id for case in store.cases()]
    for case, packed in zip(store.cases(), there.cases(), strict=True):
        # Half a grey level, and the rounding of float16.
        assert np.abs(store.image(case).astype(float) - there.image(packed)).max() < 0.5 / 255 + 0.0005
        assert packed.has_label == case.has_label
        if case.has_label:
            assert (store.label(case) == there.label(packed)).all()

    parts[-1].unlink()
    monkeypatch.setattr(sys, "argv", [*unpack[:-1], str(tmp_path / "again")])
    with pytest.raises(SystemExit, match=r"parts: lacks 'images/.*bring all parts"):
        runpy.run_path(str(TOOLS / "pack.py"), run_name="__main__")
    assert not (tmp_path / "again" / "index.json").exists()


@pytest.mark.parametrize(
    ("shape", "mib", "message"),
    [
        ((40, 28, 32), "0.02", r"case .* alone takes a file of 0.0 MiB \(--mib 1\)"),
        ((1, 6, 16_384), "54", r"have 6 x 16384 pixels: WebP has 16383"),
        ((1, 16_384, 6), "54", r"have 16384 x 6 pixels: WebP has 16383"),
    ],
)
def test_what_does_not_fit_a_part_is_one_line(
    shape: tuple[int, int, int],
    mib: str,
    message: str,
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make_store({"Blobs": 3}, shape=shape)
    monkeypatch.setattr(sys, "argv", ["pack.py", "pack", str(store.path), str(tmp_path / "parts"), "--mib", mib])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(TOOLS / "pack.py"), run_name="__main__")


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
