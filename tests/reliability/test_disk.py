"""A disk that is full, or may not be written to: a small one in memory, where this process may mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hssl.cli import main
from hssl.config import FinetuneConfig
from hssl.runs import Run
from hssl.store import Store
from hssl.training.finetune import finetune

pytestmark = pytest.mark.slow
SMALL = ["--patch-size", "16", "--batch-size", "4", "--steps", "2", "--set", "network={features: [16, 16, 32, 32]}"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def test_a_run_on_a_full_disk_says_what_it_needs_and_goes_on_with_more_room(
    make_store: Callable[..., Store], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"A": 4, "B": 4})
    arguments = ["pretrain", str(store.path), "-o", str(disk / "run"), *SMALL]
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "safetensors: cannot be written: No space left on device; it needs " in said
    assert said.endswith("(free some space on this disk, and give the same command again)")
    assert not list(disk.rglob(".partial-*"))
    remount(disk, "size=16m")
    assert main(arguments) == 0
    assert Run.open(disk / "run").info.complete


def test_a_store_that_does_not_fit_leaves_nothing(
    make_store: Callable[..., Store], phantom_root: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "other").write_bytes(bytes(200_000))
    assert main(["aggregate", str(phantom_root / "Task01_AbdomenCT"), "-o", str(disk / "store")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "store: needs " in said or "store: cannot be written: No space left on device" in said
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_disk_that_may_only_be_read_is_one_line_of_every_command(
    make_store: Callable[..., Store], phantom_root: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"A": 4, "B": 4})
    few = FinetuneConfig(
        task="A",
        label_budget=1,
        validation=False,
        patch_size=16,
        batch_size=2,
        steps=1,
        network={"features": (4, 8, 8, 8)},
    )
    run = finetune(store, tmp_path / "fine", config=few)
    remount(disk, "ro")
    image = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 4), np.float32), np.eye(4)), image)
    for arguments in (
        ["phantoms", "-o", str(disk / "raw")],
        ["aggregate", str(phantom_root), "-o", str(disk / "store")],
        ["inspect", str(store.path), "--sheet", str(disk / "sheet.png")],
        ["pretrain", str(store.path), "-o", str(disk / "run"), *SMALL],
        ["predict", str(run.path), str(image), "-o", str(disk / "masks"), "--device", "cpu"],
        ["export", str(run.path), "--to", "nnunet", "-o", str(disk / "x.pth")],
        ["report", str(disk)],
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("hssl: error: "), arguments
        assert str(disk) in said, said
        assert "Read-only file system (check the rights" in said or arguments[0] == "report", said
