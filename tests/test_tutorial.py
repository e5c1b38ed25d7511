"""The tutorial does what it says: its commands are run, in order and as they stand on the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_block_of_the_page_is_found() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(found) == text.count("```") // 2  # none in another language, which would not be run
    commands = ["phantoms", "aggregate", "inspect", "pretrain", "finetune", "evaluate", "predict"]
    assert re.findall(r"^hssl (\w+)", "".join(found), re.MULTILINE) == commands


@pytest.mark.skipif(shutil.which("bash") is None, reason="the page is written for bash")
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    script = "".join(blocks(PAGE.read_text(encoding="utf-8")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HSSL_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tutorial"]
    folder = tmp_path / "tutorial"
    for picture in ("store.png", "few.png", "joint/progress.png"):
        assert (folder / picture).stat().st_size > 10_000
    assert list((folder / "joint" / "tensorboard").glob("*tfevents*"))
    assert "surface Dice" in done.stdout
    (raw,) = folder.glob("raw/*01*")  # the task that the page takes
    scans = sorted(path.name for path in (raw / "imagesTr").iterdir())
    assert len(scans) == 6
    assert sorted(path.name for path in (folder / "masks").iterdir()) == scans
    for name in scans:
        scan, mask = nib.load(raw / "imagesTr" / name), nib.load(folder / "masks" / name)
        assert mask.shape == scan.shape
        assert np.array_equal(mask.affine, scan.affine)
