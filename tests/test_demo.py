"""The demo from end to end, at a size that says nothing about the method."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from hssl import demo
from hssl.evaluation import EvaluationResult
from hssl.runs import Run

TASKS = ("Task02_HeartMR", "Task03_BrainMR", "Task05_ChestXray")
FINETUNED = ("Task02_HeartMR", "Task05_ChestXray")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(demo.write_phantoms, tasks=TASKS, size=32, slices=4)
    for name, value in {
        "write_phantoms": small,
        "SUBJECTS": 4,
        "PATCH_SIZE": 32,
        "PRETRAIN_STEPS": 2,
        "FINETUNE_STEPS": 2,
    }.items():
        monkeypatch.setattr(demo, name, value)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda self, title, **_: titles.append(title))
    result = demo.run_demo(tmp_path, seed=1)
    groups, *columns = titles
    assert "groups" in groups
    assert columns == ["image", "truth", "from scratch", "from HSSL"]
    assert [row["task"] for row in result.rows] == list(FINETUNED)
    for row in result.rows:
        runs = {arm: Run.open(tmp_path / "runs" / f"{row['task']}-{arm}") for arm in demo.ARMS}
        scores = {
            arm: EvaluationResult.load(run.path / "evaluation" / "test.json").mean.dice for arm, run in runs.items()
        }
        assert (row["scratch"], row["HSSL"]) == (scores["scratch"], scores["hssl"])
        assert math.isclose(row["gain, points"], 100 * (row["HSSL"] - row["scratch"]), abs_tol=0.05)
        # The comparison is fair: the arms differ in their start alone (and with it in what can be rehearsed).
        first, second = (run.config.model_dump(exclude={"init"}) for run in runs.values())
        assert first == second
        assert runs["scratch"].info.masks_seen == runs["hssl"].info.masks_seen
        assert len(runs["hssl"].info.masks_seen[row["task"]]) == 1
    with Image.open(result.picture) as picture:
        assert picture.width > picture.height > 300

    again = demo.run_demo(tmp_path, seed=1)
    assert again.rows == result.rows
