from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hssl.errors import ConfigError, RunError, StoreError
from hssl.probing import _ReadOut, _samples, _summary, probe
from hssl.store import Split, Store
from hssl.training.pretrain import pretrain

MakeStore = Callable[..., Store]


def test_bright_squares_are_read_off_any_network(make_store: MakeStore) -> None:
    result = probe("scratch", make_store(shape=(5, 40, 48)), repeats=3)
    assert [(score.task, score.label) for score in result.scores] == [("Blobs", "square"), ("Blobs", "mean")]
    square, mean = result.scores
    assert square.linear == pytest.approx(mean.linear)
    # A guess at random has a Dice of 0.06.
    assert square.linear > 0.4
    assert square.neighbours > 0.4
    assert square.low is not None
    assert square.high is not None
    assert 0 <= square.low <= square.linear <= square.high <= 1
    assert len(square.samples) == 3


def test_the_same_seed_gives_the_same_figures(make_store: MakeStore) -> None:
    store = make_store()
    first, again = (probe("scratch", store, repeats=2, seed=3) for _ in range(2))
    assert first == again
    assert probe("scratch", store, repeats=2, seed=4) != first


def test_only_masks_of_training_and_validation_subjects_are_read(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = make_store(), set()
    label_slice = Store.label_slice
    monkeypatch.setattr(
        Store, "label_slice", lambda self, case, index: read.add(case.subject) or label_slice(self, case, index)
    )
    probe("scratch", store, repeats=10)
    split = store.split("Blobs")
    assert read == {*split.train, *split.val}


def test_a_run_is_probed(make_store: MakeStore, pretrain_config: Any, tmp_path: Any) -> None:
    store = make_store({"A": 5, "B": 5})
    run = pretrain(store, tmp_path / "run", config=pretrain_config(steps=1))
    result = probe(run.path, store, tasks=["B"], repeats=2)
    assert {score.task for score in result.scores} == {"B"}
    with pytest.raises(RunError, match="not a run folder"):
        probe(tmp_path / "nowhere", store)


def test_samples_are_different_and_no_more_than_there_are(make_store: MakeStore) -> None:
    store = make_store({"A": 6})
    single = _samples(store, "A", 1, 10, 0)
    assert sorted(single) == [(f"a{index}",) for index in range(4)]
    pairs = _samples(store, "A", 2, 3, 0)
    assert len(set(pairs)) == 3
    assert all(len(set(pair)) == 2 and list(pair) == sorted(pair) for pair in pairs)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tasks": ["Z"]}, StoreError, "has no task 'Z'"),
        ({"subjects": 5}, StoreError, "has too few masks to probe with 5 labelled subjects"),
        ({"subjects": 0}, ConfigError, "at least 1"),
        ({"repeats": 0}, ConfigError, "at least 1"),
        ({"device": "nowhere"}, ConfigError, "device 'nowhere' cannot be used"),
    ],
)
def test_what_cannot_be_probed(make_store: MakeStore, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe("scratch", make_store(), **{"tasks": ["Blobs"], **given})


def test_tasks_without_masks_are_left_out(make_store: MakeStore) -> None:
    splits = {"B": Split(train=["b0", "b1"], val=[], test=["b2"])}
    result = probe("scratch", make_store({"A": 5, "B": 3}, splits=splits), repeats=1)
    assert {score.task for score in result.scores} == {"A"}
    assert result.scores[0].low is None


def test_read_outs_separate_what_can_be_separated() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(300) % 3
    centres = 4 * torch.eye(3, 8)
    features = centres[classes] + torch.randn(300, 8, generator=generator)
    read_out = _ReadOut(features[:200], classes[:200], 3)
    assert (read_out.classify(features[200:]) == classes[200:]).float().mean() > 0.9
    assert (read_out.vote(features[200:]) == classes[200:]).float().mean() > 0.9


def test_the_interval_is_that_of_the_t_distribution() -> None:
    score = _summary("A", "mean", np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3]))
    assert (score.linear, score.neighbours) == pytest.approx((0.5, 0.2))
    # t with 2 degrees of freedom is 4.303; the standard error is 0.1 / sqrt(3).
    assert score.low == pytest.approx(0.5 - 4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert score.high == pytest.approx(0.5 + 4.303 * 0.1 / 3**0.5, abs=1e-4)
    wide = _summary("A", "mean", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert (wide.low, wide.high) == (0, 1)  # a Dice lies in [0, 1]
