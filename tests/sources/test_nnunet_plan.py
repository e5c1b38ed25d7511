from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hssl.cli import main
from hssl.errors import ConfigError
from hssl.sources.nnunet_plan import options_like_nnunet
from hssl.store import Store

RAS, LAS = np.diag([1.5, 1.5, 5.0, 1.0]), np.diag([-1.5, 1.5, 5.0, 1.0])
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset042_Name",
    "transpose_forward": [0, 1, 2],
    "configurations": {"2d": {"spacing": [0.75, 1.25], "normalization_schemes": ["CTNormalization"], "batch_size": 9}},
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 1.0, "percentile_00_5": -100.0, "percentile_99_5": 240.0}
    },
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Six cases of five persons, as nnU-Net has them."""
    folder = tmp_path / "Dataset042_Name"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, case in enumerate(("p1_t1", "p1_t2", "p2", "p3", "p4", "p 5")):
        pixels = np.random.default_rng(number).normal(40, 60, (20, 24, 4)).astype(np.float32)
        nib.save(nib.Nifti1Image(pixels, RAS), folder / "imagesTr" / f"{case}_0000.nii.gz")
        mask = (pixels > 60).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, RAS), folder / "labelsTr" / f"{case}.nii.gz")
    listing = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**listing, "numTraining": 6}))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(changes: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "preprocessed"
        folder.mkdir(exist_ok=True)
        (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS | (changes or {})))
        folds = [{"train": ["p2", "p3"], "val": ["p1_t1", "p 5"]}, {"train": ["p1_t1"], "val": ["p1_t2", "p4"]}]
        (folder / "splits_final.json").write_text(json.dumps(folds))
        return folder / "nnUNetPlans.json"

    return write


def test_spacing_window_and_orientation_of_the_plan(raw: Path, write: Callable[..., Path]) -> None:
    assert options_like_nnunet(write(), raw) == {
        "spacing": (0.75, 1.25),
        "window": (-100.0, 240.0),
        "orientation": "ARS",
    }


@pytest.mark.parametrize(
    ("transpose", "affine", "expected"),
    [((0, 1, 2), LAS, "ALS"), ((1, 0, 2), RAS, "SRA"), ((2, 0, 1), RAS, "SAR"), ((2, 1, 0), RAS, "ASR")],
)
def test_the_orientation_follows_the_files_and_the_order_of_axes(
    raw: Path, write: Callable[..., Path], transpose: tuple[int, ...], affine: np.ndarray, expected: str
) -> None:
    for path in (raw / "imagesTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
    plans = write({"transpose_forward": transpose})
    assert options_like_nnunet(plans, raw)["orientation"] == expected


def test_files_that_lie_otherwise_are_named(
    raw: Path, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = raw / "imagesTr" / "p3_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.asanyarray(nib.load(path).dataobj), LAS), path)
    assert options_like_nnunet(write(), raw)["orientation"] == "ARS"
    assert "1 of 6 files do not lie as the others (RAS), such as" in caplog.text
    assert "p3_0000.nii.gz" in caplog.text


def test_an_mr_keeps_its_percentiles(raw: Path, write: Callable[..., Path]) -> None:
    plans = write({"configurations": {"2d": {"spacing": [1, 1], "normalization_schemes": ["ZScoreNormalization"]}}})
    assert "window" not in options_like_nnunet(plans, raw)


def test_a_fold_is_the_split_and_each_case_a_subject(raw: Path, write: Callable[..., Path]) -> None:
    options = options_like_nnunet(write(), raw, fold=1)
    assert options["subject"] == ".+"
    assert options["splits"] == {"Dataset042_Name": {"test": ["p1_t2", "p4"]}}
    assert options_like_nnunet(write(), raw, fold=0)["splits"] == {"Dataset042_Name": {"test": ["p1_t1", "p_5"]}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"configurations": {}}, "holds no configuration '2d'.*nnUNetv2_plan_and_preprocess"),
        ({"configurations": {"2d": {"spacing": [1, 1, 1]}}}, "is not a file of nnU-Net: spacing"),
        ({"configurations": {"2d": 3}}, "is not a file of nnU-Net"),
        ({"transpose_forward": [0, 1]}, "is not a file of nnU-Net: transpose_forward"),
        ({"transpose_forward": [0, 0, 2]}, "'transpose_forward' is not an order"),
        ({"foreground_intensity_properties_per_channel": {}}, "is not a file of nnU-Net"),
    ],
)
def test_plans_that_say_too_little_are_named(
    raw: Path, write: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        options_like_nnunet(write(changes), raw)
    assert "nnUNetPlans.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folds_that_are_not_there_are_named(raw: Path, write: Callable[..., Path]) -> None:
    plans = write()
    with pytest.raises(ConfigError, match=r"splits_final\.json: has no fold 2 \(folds are 0 to 1\)"):
        options_like_nnunet(plans, raw, fold=2)
    (plans.parent / "splits_final.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"splits_final\.json: is not a file of nnU-Net"):
        options_like_nnunet(plans, raw, fold=0)
    (plans.parent / "splits_final.json").unlink()
    with pytest.raises(ConfigError, match=r"splits_final\.json: there is no such file \(nnU-Net writes it when"):
        options_like_nnunet(plans, raw, fold=0)
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        options_like_nnunet(plans.parent / "none.json", raw)


def test_the_command_stores_what_nnunet_will_see(raw: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    command = ["aggregate", str(raw), "-o", str(tmp_path / "store"), "--like-nnunet", str(write()), "--fold", "0"]
    assert main(command) == 0
    store = Store.open(tmp_path / "store")
    (name,) = store.tasks
    preprocessing = store.tasks[name].preprocessing
    assert (preprocessing.spacing, preprocessing.window) == ((0.75, 1.25), (-100.0, 240.0))
    assert preprocessing.orientation == "ARS"
    assert store.split(name).test == ["p1_t1", "p_5"]
    # Another scan of the same person is a subject of its own, as nnU-Net has it.
    assert "p1_t2" in store.split(name).train + store.split(name).val


def test_an_option_that_is_given_goes_over_the_plan(raw: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    command = ["aggregate", str(raw), "-o", str(tmp_path / "store"), "--like-nnunet", str(write())]
    assert main([*command, "--window", "-50", "150"]) == 0
    (task,) = Store.open(tmp_path / "store").tasks.values()
    assert (task.preprocessing.window, task.preprocessing.spacing) == ((-50.0, 150.0), (0.75, 1.25))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--fold", "0"], "--fold needs --like-nnunet"),
        (["--like-nnunet", "PLANS", "--fold", "0", "--splits", "s.yaml"], "--fold and --splits both"),
        (["other", "--like-nnunet", "PLANS"], "--like-nnunet is for one source"),
    ],
)
def test_options_that_do_not_go_together(
    raw: Path,
    write: Callable[..., Path],
    tmp_path: Path,
    more: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [str(write()) if each == "PLANS" else each for each in more]
    assert main(["aggregate", str(raw), "-o", str(tmp_path / "store"), *more]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
