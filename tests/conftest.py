from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hssl.config import FinetuneConfig, NetworkConfig, PretrainConfig
from hssl.phantoms import write_phantoms
from hssl.store import CaseRecord, Preprocessing, Split, Store, TaskInfo
from hssl.store.splits import Splits
from hssl.store.store import INDEX, SPLITS, Index, array_path

Shape = tuple[int, int, int]
MakeStore = Callable[..., Store]
NETWORK = NetworkConfig(features=(4, 8, 8))
SHORT = {
    "patch_size": 16,
    "window_size": 24,
    "steps": 6,
    "warmup": 2,
    "log_every": 1,
    "checkpoint_every": 2,
    "precision": "32",
    "accelerator": "cpu",
}
MakeRecord = Callable[..., dict[str, Any]]
ORIGIN: dict[str, Any] = {
    "init_weights": None,
    "store_hash": "a" * 64,
    "split_hash": "b" * 64,
    "versions": {"hssl": "0"},
    "git": None,
    "machine": "one",
    "started": "2026-01-01T00:00:00Z",
    "seconds": 1.0,
}
DICE: dict[str, Any] = {"dice": 0.5, "hd95": 3.0, "nsd": 0.5}
RESULT: dict[str, Any] = {
    **ORIGIN,
    **DICE,
    "part": "test",
    "space": "store",
    "tolerance": 2.0,
    "labelled": ["s9"],
    "steps": 2,
    "loss": 0.5,
    "training_seconds": 0.5,
    "scores": [{"case": "c", "subject": "s", "label": 1, "name": "organ", **DICE}],
}


@pytest.fixture(autouse=True)
def _messages_reach_caplog() -> None:
    """The command line sends messages to stderr alone, for the rest of a process: each test begins without that."""
    log = logging.getLogger("hssl")
    log.handlers, log.propagate = [], True


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real challenges: HSSL_DATA, or ../shared/data beside the repository."""
    path = Path(os.environ.get("HSSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set HSSL_DATA")
    return path


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small phantom challenges, four subjects each, as Medical Segmentation Decathlon folders. Read only."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, seed=0, subjects=4, size=32, slices=6)
    return root


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Writes a store of bright squares: subject N of a task is case N, its mask the square in `value`."""

    def make(
        tasks: Mapping[str, int] | None = None,
        *,
        name: str = "store",
        shape: Shape = (5, 28, 32),
        shapes: Mapping[str, Shape] | None = None,
        unlabelled: Mapping[str, tuple[int, ...]] | None = None,
        splits: Mapping[str, Split] | None = None,
        images: Mapping[str, NDArray[np.float16]] | None = None,
        value: int = 1,
    ) -> Store:
        path = tmp_path / name
        records, infos, parts = [], {}, {}
        for number, (task, subjects) in enumerate((tasks or {"Blobs": 6}).items()):
            ids = [f"{task.lower()}{index}" for index in range(subjects)]
            infos[task] = TaskInfo(
                name=task,
                modality="MRI",
                labels={value: "square"},
                preprocessing=Preprocessing(orientation="PLS", spacing=(1.0, 1.0)),
                layout="msd",
                origin="nowhere",
                fingerprint="none",
            )
            parts[task] = Split(train=ids[:-2], val=ids[-2:-1], test=ids[-1:])
            for index, case in enumerate(ids):
                size = (shapes or {}).get(task, shape)
                image, label = square(size, seed=1000 * number + index, level=0.5 + 0.1 * number)
                image = (images or {}).get(case, image)
                label *= np.uint8(value)
                has_label = index not in (unlabelled or {}).get(task, ())
                for kind, array in (("images", image), ("labels", label)):
                    if kind == "images" or has_label:
                        file = array_path(path, kind, task, case)
                        file.parent.mkdir(parents=True, exist_ok=True)
                        np.save(file, array)
                records.append(
                    CaseRecord(
                        id=case,
                        task=task,
                        subject=case,
                        image_path=f"{case}.nii.gz",
                        label_path=None,
                        shape=image.shape,
                        source_shape=image.shape,
                        source_affine=tuple(tuple(row) for row in np.eye(4).tolist()),
                        source_ndim=3,
                        intensity=(0.0, 1.0),
                        label_voxels=None,
                        image_sha256="0",
                        label_sha256=None,
                        stored_image_sha256="0",
                        stored_label_sha256="0" if has_label else None,
                    )
                )
        (path / INDEX).write_text(Index(tasks=infos, cases=records).model_dump_json())
        splits_ = Splits(seed=0, fractions=(0.6, 0.15, 0.25), tasks=parts | dict(splits or {}))
        (path / SPLITS).write_text(splits_.model_dump_json())
        return Store.open(path)

    return make


def square(shape: Shape, *, seed: int, level: float) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    top, left = rng.integers(2, min(shape[1:]) // 2, 2)
    label[:, top : top + 8, left : left + 8] = 1
    image = 0.1 + level * label + rng.normal(0, 0.05, shape)
    return np.clip(image, 0, 1).astype(np.float16), label


@pytest.fixture
def pretrain_config() -> Callable[..., PretrainConfig]:
    """A pre-training of seconds; keywords override."""

    def make(**given: object) -> PretrainConfig:
        options = {"task_stage": 2, "position_stage": 1, "local_stage": 1, "local_points": 8, "projection": 8}
        values = {**SHORT, "network": NETWORK, "batch_size": 4, "options": options, **given}
        return PretrainConfig.model_validate(values)

    return make


@pytest.fixture
def finetune_config() -> Callable[..., FinetuneConfig]:
    """A fine-tuning of seconds; keywords override."""

    def make(**given: object) -> FinetuneConfig:
        values = {
            **SHORT,
            "task": "Blobs",
            "network": NETWORK,
            "batch_size": 2,
            "label_budget": 2,
            "validate_every": 2,
            **given,
        }
        return FinetuneConfig.model_validate(values)

    return make


@pytest.fixture(scope="session")
def make_outcome() -> MakeRecord:
    """What a fine-tuning leaves in ``outcome.json``; keywords override."""
    return lambda **given: {**RESULT, **given}


@pytest.fixture(scope="session")
def make_row() -> MakeRecord:
    """A line of ``ledger.jsonl``; keywords override."""
    place = {"arm": "a", "task": "T", "label_budget": "5%", "fraction": 0.05, "seed": 0}
    return lambda **given: {**place, "config_hash": "0", "pretrain_hash": None, **RESULT, **given}


@pytest.fixture(scope="session")
def make_pretraining() -> MakeRecord:
    """A line of ``pretraining.jsonl``; keywords override."""
    made = {"objective": "hierarchical", "tasks": ["A", "B"], "steps": 9, "losses": {"loss": 1.0}, "groups": None}
    return lambda **given: {"config_hash": "0", "init_hash": None, **made, **ORIGIN, **given}
