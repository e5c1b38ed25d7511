from __future__ import annotations

import numpy as np
import pytest
import torch

from hssl.errors import RunError
from hssl.prediction import Predictor
from hssl.prediction.components import keep_largest, learn_rule
from hssl.prediction.tiling import predict_volume
from hssl.runs import ComponentRule, Run
from hssl.training.finetune import finetune


def volume() -> np.ndarray:
    """Two labels that touch, each a single block."""
    mask = np.zeros((4, 12, 12), np.uint8)
    mask[1:3, 2:6, 2:6] = 1
    mask[1:3, 6:9, 2:6] = 2
    return mask


def test_what_is_always_one_component_is_a_rule() -> None:
    assert learn_rule([volume(), volume()[:, ::-1]], [1, 2]) == ComponentRule(foreground=True, labels=(1, 2))


def test_a_label_in_two_pieces_has_no_rule() -> None:
    other = volume()
    other[1, 11, 8:12] = 2
    assert learn_rule([volume(), other], [1, 2]) == ComponentRule(foreground=False, labels=(1,))


def test_a_label_that_no_mask_shows_has_no_rule() -> None:
    assert learn_rule([volume()], [1, 2, 3]).labels == (1, 2)


def test_one_label_needs_no_rule_for_the_foreground() -> None:
    assert learn_rule([(volume() > 0).astype(np.uint8)], [1]) == ComponentRule(foreground=False, labels=(1,))


def test_single_voxels_that_an_annotator_left_do_not_count() -> None:
    mask = np.zeros((4, 30, 30), np.uint8)
    mask[:, :20, :20] = 1
    mask[0, 29, 29] = 1
    assert learn_rule([mask], [1]).labels == (1,)
    mask[0, 28:, 25:] = 1
    mask[1, 28:, 25:] = 1
    assert learn_rule([mask], [1]).labels == ()


def test_neighbours_may_touch_by_a_corner() -> None:
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert learn_rule([mask], [1]).labels == (1,)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (ComponentRule(), {"far 1", "near 2"}),
        (ComponentRule(labels=(1,)), {"near 2"}),
        (ComponentRule(labels=(2,)), {"far 1"}),
        (ComponentRule(labels=(1, 2)), set()),
        (ComponentRule(foreground=True), {"near 2"}),
        (ComponentRule(foreground=True, labels=(2,)), set()),
    ],
)
def test_islands_that_contradict_the_rule_are_removed(rule: ComponentRule, kept: set[str]) -> None:
    mask = volume()
    mask[3, 11, 11] = 1  # far from everything
    mask[1, 2, 6:8] = 2  # beside label 1, apart from the rest of label 2
    before = mask.copy()
    cleaned = keep_largest(mask, rule)
    assert np.array_equal(mask, before)
    expected = volume()
    if "far 1" in kept:
        expected[3, 11, 11] = 1
    if "near 2" in kept:
        expected[1, 2, 6:8] = 2
    np.testing.assert_array_equal(cleaned, expected)


def test_an_empty_mask_stays_empty() -> None:
    empty = np.zeros((3, 5, 5), np.uint8)
    np.testing.assert_array_equal(keep_largest(empty, ComponentRule(foreground=True, labels=(1,))), empty)


def test_the_rule_in_words() -> None:
    names = {1: "liver", 2: "spleen"}
    assert ComponentRule(foreground=True, labels=(2,)).describe(names) == "the whole foreground, spleen"
    assert ComponentRule().describe(names) == ""


# From the labelled masks to the masks that are written


def test_a_run_learns_the_rule_and_prediction_follows_it(make_store, finetune_config, tmp_path) -> None:
    store = make_store()
    run = finetune(store, tmp_path / "run", config=finetune_config(validation=False, steps=1))
    assert run.info.components == Run.open(run.path).info.components == ComponentRule(labels=(1,))
    case = store.cases("Blobs", part="test")[0]
    image = np.array(store.image(case), np.float32)
    island = np.zeros_like(image)
    island[2, 10:16, 10:16] = 1
    island[2, 24:26, 24:26] = 1
    scores = np.stack([0.5 - island, island])
    for components, expected in ((True, 36), (False, 40)):
        predictor = Predictor(run.path, components=components)
        predictor._slabs = lambda _: iter([scores])  # type: ignore[method-assign,assignment,misc]
        assert np.count_nonzero(predictor.mask(image)) == expected


def test_probabilities_add_up_and_agree_with_the_mask(make_store, finetune_config, tmp_path) -> None:
    store = make_store()
    options = {"validation": False, "steps": 20, "learning_rate": 0.02}
    runs = [finetune(store, tmp_path / str(s), config=finetune_config(seed=s, **options)).path for s in (0, 1)]
    case = store.cases("Blobs", part="test")[0]
    image = np.array(store.image(case), np.float32)
    single = [next(Predictor(run, components=False).predictions([(image, None)], probabilities=True)) for run in runs]
    for found in single:
        assert found.probabilities is not None
        assert found.probabilities.dtype == np.float16
        np.testing.assert_allclose(found.probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
        np.testing.assert_array_equal(found.probabilities.argmax(0), found.mask)
        assert found.uncertainty is not None
        assert 0 <= found.uncertainty.min() <= found.uncertainty.max() <= 1
    both = next(Predictor(runs, components=False).predictions([(image, None)], probabilities=True))
    assert both.probabilities is not None
    mean = np.mean([found.probabilities for found in single if found.probabilities is not None], axis=0)
    np.testing.assert_allclose(both.probabilities, mean, atol=3e-3)
    np.testing.assert_array_equal(both.mask, both.probabilities.astype(np.float32).argmax(0))


def test_runs_of_other_labels_are_not_averaged(make_store, finetune_config, tmp_path) -> None:
    options = {"validation": False, "steps": 1}
    runs = [
        finetune(make_store(name=f"s{v}", value=v), tmp_path / str(v), config=finetune_config(**options)).path
        for v in (1, 2)
    ]
    with pytest.raises(RunError, match="has other labels or preprocessing than"):
        Predictor(runs)


def test_mirrored_views_are_averaged_where_training_mirrored() -> None:
    class Left(torch.nn.Module):
        """Scores that depend on the side of the image."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(0, 1, image.shape[-1]).expand_as(image)
            return torch.cat((image, ramp), 1)

    image = np.random.default_rng(0).random((2, 16, 16), np.float32)
    plain = predict_volume(Left(), image, patch_size=16)
    mirrored = predict_volume(Left(), image, patch_size=16, mirror=(False, True))
    np.testing.assert_allclose(mirrored[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(mirrored[1], 0.5, atol=1e-6)
    down = predict_volume(Left(), image, patch_size=16, mirror=(True, False))
    np.testing.assert_allclose(down[1], plain[1], atol=1e-6)
