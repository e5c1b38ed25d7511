from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from hssl import predict
from hssl.errors import RunError
from hssl.export import export_run

from .conftest import TASK, MakeRun

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Not on the task's grid: another orientation, another spacing, oblique."""
    affine = np.array([[0, -1.1, 0.1, 30], [0.9, 0, 0.1, -12.5], [0, 0, 5, 3], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).normal(40, 30, (30, 37, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_monai_runs_the_bundle_and_gives_the_mask_of_predict(make_run: MakeRun, image: Path, tmp_path: Path) -> None:
    for package in ("monai", "fire"):
        pytest.importorskip(package, reason=f"needs the extra 'monai' ({package})")
    run = make_run(task=TASK)
    (expected,) = predict(run, [image], tmp_path / "expected", device="cpu")
    bundle = export_run(run, "monai-bundle", tmp_path / "bundle")
    (run / "weights.safetensors").unlink()  # the bundle has its own
    options = ["--config_file", "configs/inference.json", "--image", str(image), "--device", "cpu"]
    command = [sys.executable, "-m", "monai.bundle", "run", *options]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found, mask = nib.load(bundle / "eval" / "scan.nii.gz"), nib.load(expected)
    values = np.asanyarray(found.dataobj)
    np.testing.assert_array_equal(values, np.asanyarray(mask.dataobj))
    np.testing.assert_array_equal(found.affine, mask.affine)
    assert len(np.unique(values)) > 1


def test_what_a_bundle_holds(make_run: MakeRun, tmp_path: Path) -> None:
    parser = pytest.importorskip("monai.bundle", reason="needs the extra 'monai'").ConfigParser()
    bundle = export_run(make_run(task=TASK), "monai-bundle", tmp_path / "bundle")
    names = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {"configs/metadata.json", "configs/inference.json", "docs/README.md"} < names
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith("# A U-Net that segments Blobs\n")
    assert "python -m monai.bundle run --config_file configs/inference.json" in readme
    assert "| Blobs | 3 | 1 |" in readme
    assert "hf://" not in readme  # it lies in a folder, not on the hub
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [16, 16]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def")
    assert network(torch.rand(1, 1, 16, 16)).shape == (1, 3, 16, 16)


def test_a_pretrained_run_makes_no_bundle(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="predicts no masks"):
        export_run(make_run(), "monai-bundle", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_written_without_monai(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "monai":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("hssl.export.monai_bundle.version", version)
    bundle = export_run(make_run(task=TASK), "monai-bundle", tmp_path / "bundle")
    tested = re.search(r"^monai==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert tested is not None
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["monai_version"] == tested[1]
