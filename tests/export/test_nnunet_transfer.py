"""Released nnU-Net plans, loads and trains what we export, in an environment of its own (``make test-transfer``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hssl.export import export_run
from hssl.networks.plans import read_plans
from hssl.phantoms import write_phantoms
from hssl.runs import load_unet

from .conftest import MakeRun

pytestmark = pytest.mark.transfer
PYTHON = Path(os.environ.get("HSSL_TRANSFER", Path(__file__).parents[2] / ".venv-transfer")) / "bin" / "python"
CHECKS = Path(__file__).parent
PLANS = [("nnUNetPlans", "plain"), ("nnUNetResEncUNetMPlans", "residual")]


def nnunet(root: Path, *command: str | Path) -> None:
    """Runs one of nnU-Net's programs, or a script in its environment, on the folders below `root`."""
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    quiet = {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(PYTHON.parent / command[0]), *map(str, command[1:])],
        env=os.environ | folders | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom challenge as nnU-Net's data set 42, planned for the plain and the residual network."""
    if not PYTHON.exists():
        pytest.skip(f"no environment with nnU-Net at {PYTHON.parents[1]}; run 'make test-transfer'")
    root = tmp_path_factory.mktemp("nnunet")
    (source,) = write_phantoms(root / "phantoms", subjects=3, size=48, slices=5, tasks=["Task02_HeartMR"])
    target = root / "raw" / "Dataset042_Phantom"
    for folder, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        (target / folder).mkdir(parents=True)
        for path in (source / folder).glob("*.nii.gz"):
            shutil.copy(path, target / folder / path.name.replace(".nii.gz", f"{suffix}.nii.gz"))
    described = json.loads((source / "dataset.json").read_text())
    names = {name: int(value) for value, name in described["labels"].items()}
    listing = {
        "channel_names": {"0": "MRI"},
        "labels": names,
        "numTraining": len(list((target / "labelsTr").iterdir())),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(listing))
    once = ("-d", "42", "-c", "2d", "-np", "1")
    nnunet(root, "nnUNetv2_plan_and_preprocess", *once, "-npfp", "1")
    nnunet(root, "nnUNetv2_plan_experiment", "-d", "42", "-pl", "nnUNetPlannerResEncM")
    nnunet(root, "nnUNetv2_preprocess", *once, "-plans_name", "nnUNetResEncUNetMPlans")
    return root


@pytest.mark.parametrize(("plans", "encoder"), PLANS)
def test_nnunet_loads_computes_and_trains_what_we_export(
    planned: Path, make_run: MakeRun, tmp_path: Path, plans: str, encoder: str
) -> None:
    theirs, features, decoded = both(planned, make_run, tmp_path, plans, encoder)
    for stage, own in enumerate(features):
        np.testing.assert_allclose(theirs[f"encoder_{stage}"], own.numpy(), atol=1e-5)
    np.testing.assert_allclose(theirs["decoder"], decoded.numpy(), atol=1e-5)
    head, bias = (torch.from_numpy(theirs[f"head.{name}"]) for name in ("weight", "bias"))
    logits = torch.nn.functional.conv2d(decoded, head, bias)
    np.testing.assert_allclose(theirs["logits"], logits.numpy(), atol=1e-5)
    assert theirs["moved"].all()


@pytest.mark.parametrize(("plans", "encoder"), PLANS)
def test_nnunets_trainer_for_nnssl_takes_the_encoder(
    planned: Path, make_run: MakeRun, tmp_path: Path, plans: str, encoder: str
) -> None:
    find = (
        "import sys, importlib.util as u; sys.exit(u.find_spec('nnunetv2.training.nnUNetTrainer.pretraining') is None)"
    )
    if subprocess.run([PYTHON, "-c", find], check=False).returncode:
        pytest.skip("this release of nnunetv2 has no trainer for nnssl; set PYTHONPATH to a checkout that has")
    theirs, features, _ = both(planned, make_run, tmp_path, plans, encoder, "--nnssl")
    for stage, own in enumerate(features):
        np.testing.assert_allclose(theirs[f"encoder_{stage}"], own.numpy(), atol=1e-5)
    assert theirs["moved"].all()


def both(
    planned: Path, make_run: MakeRun, tmp_path: Path, plans: str, encoder: str, *options: str
) -> tuple[dict[str, NDArray[Any]], list[Tensor], Tensor]:
    """What nnU-Net shows after loading a random network of ours, and that network's own features of the same images."""
    network, patch = read_plans(planned / "preprocessed" / "Dataset042_Phantom" / f"{plans}.json")
    assert network.encoder == encoder
    run = make_run(network, patch=patch)
    weights = export_run(run, "nnunet", tmp_path / "weights.pth")
    images = torch.rand(2, 1, patch, patch, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "images.npy", images.numpy())
    files = (weights, tmp_path / "images.npy", tmp_path / "theirs.npz")
    nnunet(planned, "python", CHECKS / "transfer_check.py", plans, *files, *options)
    unet, _ = load_unet(run)
    with torch.no_grad():
        features = unet.encode(images)
        decoded = unet.decode(features)[-1]
    with np.load(tmp_path / "theirs.npz") as theirs:
        return dict(theirs), features, decoded
