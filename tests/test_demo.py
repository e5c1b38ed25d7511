"""The demo from end to end, at a size that says nothing about the method."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from hssl import demo
from hssl.benchmark.run.ledger import Ledger
from hssl.benchmark.run.runner import LEDGER
from hssl.prediction import predict
from hssl.runs import Run


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(demo.write_phantoms, size=32, slices=4)
    for name, value in {
        "write_phantoms": small,
        "SUBJECTS": 4,
        "PATCH_SIZE": 32,
        "PRETRAIN_STEPS": 2,
        "FINETUNE_STEPS": 2,
        "WARMUP": 1,
    }.items():
        monkeypatch.setattr(demo, name, value)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda self, title, **_: titles.append(title))
    result = demo.run_demo(tmp_path, seed=1)
    rows = {(row["task"], row["arm"]): row for row in Ledger(tmp_path / "benchmark" / LEDGER).rows()}
    assert [row["task"] for row in result.rows] == list(demo.TASKS)
    for row in result.rows:
        pair = [rows[row["task"], arm] for arm in ("scratch", "HSSL")]
        assert [row["scratch"], row["HSSL"]] == [each["dice"] for each in pair]
        assert math.isclose(row["gain"], row["HSSL"] - row["scratch"], abs_tol=1e-9)
        assert all(each["part"] == "test" for each in pair)
        # The comparison is fair: the arms differ in their start alone (and with it in the pretext losses that go on).
        first, second = (Run.open(tmp_path / "benchmark" / "runs" / each["config_hash"]) for each in pair)
        assert first.config.model_dump(exclude={"init"}) == second.config.model_dump(exclude={"init"})
        assert first.info.masks_seen == second.info.masks_seen
        assert len(first.info.masks_seen[row["task"]]) == 1
    with Image.open(result.picture) as picture:
        assert picture.width > picture.height > 300
    for title in ("groups", "truth", "scratch", "HSSL"):
        assert any(title in each for each in titles), title
    assert "HSSL" in result.report.read_text(encoding="utf-8")
    # A network of the demo segments a scan, as any other.
    scan = next((tmp_path / "raw" / demo.TASKS[0] / "imagesTr").glob("*.nii.gz"))
    assert predict(second.path.parent / rows[demo.TASKS[0], "HSSL"]["config_hash"], [scan], tmp_path / "masks")

    again = demo.run_demo(tmp_path, seed=1)
    assert again.rows == result.rows
