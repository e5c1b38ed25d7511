from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

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


@pytest.fixture
def make_outcome() -> MakeRecord:
    """What a fine-tuning leaves in ``outcome.json``; keywords override."""
    return lambda **given: {**RESULT, **given}


@pytest.fixture
def make_row() -> MakeRecord:
    """A line of ``ledger.jsonl``; keywords override."""
    place = {"arm": "a", "task": "T", "label_budget": "5%", "fraction": 0.05, "seed": 0}
    return lambda **given: {**place, "config_hash": "0", "pretrain_hash": None, **RESULT, **given}


@pytest.fixture
def make_pretraining() -> MakeRecord:
    """A line of ``pretraining.jsonl``; keywords override."""
    made = {"objective": "hierarchical", "tasks": ["A", "B"], "steps": 9, "losses": {"loss": 1.0}, "groups": None}
    return lambda **given: {"config_hash": "0", "init_hash": None, **made, **ORIGIN, **given}
