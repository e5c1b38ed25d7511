from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hssl.benchmark import Experiment
from hssl.config import AggregateConfig
from hssl.store import Store, aggregate

MakeExperiment = Callable[..., Experiment]
NETWORK = {"features": [4, 8, 8, 8]}


@pytest.fixture(scope="session")
def store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    sources = sorted(path for path in phantom_root.iterdir() if path.is_dir())[:2]
    return aggregate(sources, tmp_path_factory.mktemp("bench") / "store", config=AggregateConfig(workers=1))


@pytest.fixture
def make_experiment(store: Store) -> MakeExperiment:
    def make(**changes: Any) -> Experiment:
        values: dict[str, Any] = {
            "store": str(store.path),
            "tasks": [next(iter(store.tasks))],
            "label_budgets": ["50%"],
            "seeds": [0],
            "arms": {"scratch": {"domains": "none"}, "joint": {"domains": "joint"}},
            "pretrain": {"steps": 2, "patch_size": 16, "batch_size": 4, "network": NETWORK},
            "finetune": {"steps": 2, "patch_size": 16, "batch_size": 2, "validation": False},
            "scoring": {"part": "test", "space": "store"},
        }
        return Experiment.checked(values | changes)

    return make
