"""The notebook of the docs runs: its code cells, in order, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-steps.ipynb"


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # nothing that a later version would not say
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HSSL_")}
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{code}\nprint(result.mean.cases, result.mean.dice)",
        cwd=tmp_path,
        env=environment | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cases, dice = done.stdout.split()[-2:]
    assert int(cases) == 6  # a quarter of 24 subjects
    assert float(dice) > 0.5
    work = tmp_path / "first-steps"
    assert [path.name for path in tmp_path.iterdir()] == ["first-steps"]
    assert (work / "chest.png").stat().st_size > 10_000
    (mask,) = (work / "masks").iterdir()
    (scan,) = work.glob(f"raw/Task05_ChestXray/images*/{mask.name}")
    assert nib.load(mask).shape == nib.load(scan).shape
    assert np.array_equal(nib.load(mask).affine, nib.load(scan).affine)
