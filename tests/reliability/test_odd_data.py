"""Data at the edge of what makes sense: each has a defined result, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hssl.config import AggregateConfig, NetworkConfig, PretrainConfig
from hssl.errors import ConfigError, StoreError
from hssl.evaluation import evaluate
from hssl.prediction import predict
from hssl.store import Store, aggregate
from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain

SHAPE = (24, 26, 4)
WriteScan = Callable[..., None]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "labels").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def write(raw: Path) -> WriteScan:
    """Writes a scan with a bright square of label 1, or with what is given, and its mask."""

    def write(name: str, *, image: Any = None, label: Any = None) -> None:
        rng = np.random.default_rng(len(list((raw / "images").iterdir())))
        mask = np.zeros(SHAPE, np.uint8)
        mask[6:14, 8:18, 1:3] = 1
        scan = rng.normal(100, 10, SHAPE) + 150 * mask
        for part, array in (("images", scan if image is None else image), ("labels", mask if label is None else label)):
            nib.save(nib.Nifti1Image(np.asarray(array, np.int16), np.eye(4)), raw / part / f"{name}.nii.gz")

    return write


def aggregated(raw: Path, parts: dict[str, list[str]] | None = None, **options: Any) -> Store:
    splits = {raw.name: parts} if parts is not None else None
    return aggregate(raw, raw.parent / "store", config=AggregateConfig(workers=1), splits=splits, task="Odd", **options)


def test_a_constant_scan_is_named(raw: Path, write: WriteScan) -> None:
    for name in "abc":
        write(name)
    write("flat", image=np.full(SHAPE, 7))
    with pytest.raises(StoreError, match=r"flat.*contrast"):
        aggregated(raw)
    assert [case.id for case in aggregated(raw, skip_bad=True).cases()] == ["a", "b", "c"]


def test_an_empty_mask_is_a_case_without_the_label(raw: Path, write: WriteScan, finetune_config: Any) -> None:
    for name in "abcd":
        write(name)
    write("empty", label=np.zeros(SHAPE))
    store = aggregated(raw, {"val": ["c"], "test": ["d", "empty"]})
    run = finetune(store, raw.parent / "run", config=finetune_config(task="Odd", label_budget="100%", steps=2))
    scores = {score.case: score.dice for score in evaluate(run.path, store, space="store").scores}
    assert scores["empty"] in (None, 0.0)  # nothing there: no score where nothing is found, 0 where something is
    assert scores["d"] is not None


def test_masks_that_are_all_empty_are_not_trained_on(raw: Path, write: WriteScan, finetune_config: Any) -> None:
    for name in "abcd":
        write(name, label=np.zeros(SHAPE))
    with pytest.raises(StoreError, match="label"):
        finetune(aggregated(raw), raw.parent / "run", config=finetune_config(task="Odd", label_budget="100%", steps=2))
    assert not (raw.parent / "run").exists()


def test_a_single_case_can_be_learned_and_not_scored(raw: Path, write: WriteScan, finetune_config: Any) -> None:
    write("only")
    store = aggregated(raw)
    assert store.split("Odd").train == ["only"]
    with pytest.raises(ConfigError, match="no validation subject"):
        finetune(store, raw.parent / "run", config=finetune_config(task="Odd", label_budget="100%", steps=2))
    config = finetune_config(task="Odd", label_budget="100%", steps=2, validation=False)
    run = finetune(store, raw.parent / "run", config=config)
    with pytest.raises(StoreError, match="test"):
        evaluate(run.path, store, space="store")
    (mask,) = predict(run.path, [raw / "images" / "only.nii.gz"], raw.parent / "masks")
    assert nib.load(mask).shape == SHAPE


def test_a_single_case_can_be_pretrained_on(raw: Path, write: WriteScan) -> None:
    write("only")
    config = PretrainConfig(
        objective="simclr",
        steps=2,
        patch_size=16,
        batch_size=2,
        network=NetworkConfig(features=(4, 8, 8)),
        accelerator="cpu",
    )
    run = pretrain(aggregated(raw), raw.parent / "run", config=config)
    assert run.info.subjects_seen == {"Odd": ["only"]}


def test_a_label_of_test_subjects_alone_scores_zero(raw: Path, write: WriteScan, finetune_config: Any) -> None:
    for name in "abc":
        write(name)
    rare = np.zeros(SHAPE)
    rare[2:6, 2:6] = 2
    write("rare", label=rare)
    store = aggregated(raw, {"val": ["c"], "test": ["rare"]})
    assert sorted(store.tasks["Odd"].labels) == [1, 2]
    run = finetune(store, raw.parent / "run", config=finetune_config(task="Odd", label_budget="100%", steps=2))
    scores = {score.label: score.dice for score in evaluate(run.path, store, space="store").scores}
    assert scores[2] == pytest.approx(0, abs=0.3)
    assert scores[1] in (None, 0.0)
