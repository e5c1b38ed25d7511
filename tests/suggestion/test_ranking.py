from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hssl.errors import ConfigError, RunError, StoreError
from hssl.store import Store
from hssl.suggestion import suggest
from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain

MakeStore = Callable[..., Store]
SHAPE = (5, 24, 24)


@pytest.fixture
def crowds(make_store: MakeStore) -> Store:
    """Eight training subjects of flat stripes: 0 to 4 are upright, 5 and 6 lie, 7 is a board; the first is drawn."""
    rows, columns = np.mgrid[:24, :24]
    patterns = [columns // 4 % 2] * 5 + [rows // 4 % 2] * 2 + [(rows // 8 + columns // 8) % 2] + [rows * 0] * 2
    rng = np.random.default_rng(0)
    images = {
        f"blobs{number}": np.clip(0.6 * pattern + 0.2 + rng.normal(0, 0.01, SHAPE), 0, 1).astype(np.float16)
        for number, pattern in enumerate(patterns)
    }
    return make_store({"Blobs": 10}, shape=SHAPE, images=images, unlabelled={"Blobs": tuple(range(1, 8))})


def test_subjects_that_look_like_nothing_drawn_come_first(crowds: Store) -> None:
    found = suggest(crowds, task="Blobs", count=2)
    assert (found.drawn, found.compared, found.features) == (["blobs0"], 8, "brightness")
    assert {item.subject for item in found.items} == {"blobs7", found.items[0].subject}
    assert found.items[0].subject in ("blobs5", "blobs6")  # two look like it, and like the board one alone
    assert [item.stands_for for item in found.items] == [2, 1]
    assert [item.rank for item in found.items] == [1, 2]
    assert found == suggest(crowds, task="Blobs", count=2)


def test_only_training_subjects_without_a_mask_are_suggested(crowds: Store) -> None:
    everyone = suggest(crowds, task="Blobs", count=99)
    assert sorted(item.subject for item in everyone.items) == [f"blobs{number}" for number in range(1, 8)]
    assert sorted(item.subject for item in suggest(crowds, task="Blobs", count=99, by="k-center").items) == sorted(
        item.subject for item in everyone.items
    )


def test_before_anything_is_drawn_the_most_typical_comes_first(make_store: MakeStore, crowds: Store) -> None:
    images = {case.id: np.array(crowds.image(case)) for case in crowds.cases()}
    store = make_store({"Blobs": 10}, name="none", shape=SHAPE, images=images, unlabelled={"Blobs": tuple(range(10))})
    found = suggest(store, task="Blobs", count=1)
    assert found.drawn == []
    assert found.items[0].subject in {f"blobs{number}" for number in range(5)}


def test_a_label_budget_stands_for_what_is_drawn(make_store: MakeStore) -> None:
    store = make_store({"Blobs": 6})
    with pytest.raises(StoreError, match="nothing is left to draw"):
        suggest(store, task="Blobs")
    found = suggest(store, task="Blobs", labels=1, seed=3)
    assert found.drawn == store.labelled("Blobs", 1, 3)
    assert {item.subject for item in found.items} == set(store.split("Blobs").train) - set(found.drawn)


def test_slices_that_are_drawn_or_show_nothing_are_left_out(make_store: MakeStore) -> None:
    image = np.random.default_rng(0).random((6, 24, 24)).astype(np.float16)
    image[2] = 0.5
    store = make_store({"Blobs": 4}, shape=(6, 24, 24), images={"blobs1": image}, unlabelled={"Blobs": (1,)})
    found = suggest(store, task="Blobs", count=99, slices=True)
    assert sorted((item.cases[0], item.slice) for item in found.items) == [("blobs1", n) for n in (0, 1, 3, 4, 5)]
    # Of six slices two that are evenly spread count as drawn: the middles of two halves.
    found = suggest(store, task="Blobs", count=99, slices=True, labels="blobs0@2")
    assert {item.slice for item in found.items if item.subject == "blobs0"} == {0, 2, 3, 5}


def test_features_of_a_run_and_uncertainty_of_a_fine_tuned_one(
    make_store: MakeStore, pretrain_config: Any, finetune_config: Any, tmp_path: Path
) -> None:
    store = make_store({"Blobs": 6, "Others": 6})
    before = pretrain(store, tmp_path / "before", config=pretrain_config(steps=1)).path
    found = suggest(store, task="Blobs", labels=1, run=before)
    assert (found.features, found.items[0].uncertainty) == (str(before), None)
    config = finetune_config(label_budget=1, steps=2, validation=False)
    run = finetune(store, tmp_path / "run", config=config).path
    other = finetune(store, tmp_path / "other", config=config.model_copy(update={"seed": 1})).path
    sheet = tmp_path / "sheet.png"
    found = suggest(store, task="Blobs", labels=1, run=run, sheet=sheet)
    unsure = [item.uncertainty for item in found.items]
    assert len(unsure) == 3
    assert all(value is not None and 0 < value <= 1 for value in unsure)
    assert Image.open(sheet).width > 500
    both = suggest(store, task="Blobs", labels=1, run=[run, other])
    assert {item.uncertainty for item in both.items}.isdisjoint(unsure)
    slices = suggest(store, task="Blobs", labels=1, run=run, slices=True, count=99)
    assert len({item.uncertainty for item in slices.items}) == len(slices.items) == 15
    with pytest.raises(RunError, match="was fine-tuned on 'Blobs'"):
        suggest(store, task="Others", labels=1, run=run)
    with pytest.raises(ConfigError, match="several pre-trained runs"):
        suggest(store, task="Blobs", labels=1, run=[before, before])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"task": "Z"}, StoreError, "has no task 'Z'"),
        ({"count": 0}, ConfigError, "nothing is to be suggested"),
        ({"run": "nowhere"}, RunError, "nowhere"),
        ({"labels": 99}, StoreError, "99 labelled subjects requested"),
    ],
)
def test_what_cannot_be_suggested(make_store: MakeStore, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        suggest(make_store(), **{"task": "Blobs", "labels": 1, **given})
