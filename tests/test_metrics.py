from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hssl.metrics import IGNORE, dice_by_label, dice_ce_loss, score_labels

SPACING = (0.5, 2.0, 5.0)


def box(shape: tuple[int, ...], *slices: slice, label: int = 1) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[slices] = label
    return mask


def test_dice_hd95_and_surface_dice_of_a_shifted_block_by_hand() -> None:
    # Two single-voxel-thick plates in the plane of axis 0, 4 voxels apart along it: 4 x 0.5 mm = 2 mm, every
    # voxel is surface, and none is shared.
    truth = box((10, 6, 6), slice(2, 3), slice(1, 5), slice(1, 5))
    predicted = box((10, 6, 6), slice(6, 7), slice(1, 5), slice(1, 5))
    at_two = score_labels(truth, predicted, SPACING, [1], tolerance=2.0)[1]
    assert at_two == (16, 16, 0.0, 2.0, 1.0)
    assert score_labels(truth, predicted, SPACING, [1], tolerance=1.9)[1].surface_dice == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_use_the_spacing_of_their_own_axis(axis: int) -> None:
    truth = np.zeros((9, 9, 9), np.uint8)
    truth[3, 3, 3] = 1
    predicted = np.roll(truth, 2, axis=axis)
    assert score_labels(truth, predicted, SPACING, [1])[1].hd95 == 2 * SPACING[axis]


def test_hd95_leaves_out_the_farthest_twentieth() -> None:
    # A line of 101 voxels; the prediction has one voxel more, 10 mm off. The 95th percentile does not see it.
    truth = box((120, 30), slice(5, 106), slice(3, 4))
    predicted = truth.copy()
    predicted[50, 13] = 1
    score = score_labels(truth, predicted, (1.0, 1.0), [1])[1]
    assert score.hd95 == 0.0
    assert score.surface_dice == (101 + 101) / (101 + 102)


def test_inner_voxels_are_no_surface() -> None:
    # A 5x5x5 cube against its own shell: Dice sees the missing inside, the outer surface agrees. The shell's
    # inside wall is within 2 voxels of the cube's surface.
    truth = box((7, 7, 7), *[slice(1, 6)] * 3)
    predicted = truth.copy()
    predicted[2:5, 2:5, 2:5] = 0
    score = score_labels(truth, predicted, (1.0, 1.0, 1.0), [1], tolerance=0.0)[1]
    assert score == (125, 98, 2 * 98 / 223, 0.0, 1.0)


def test_a_label_that_touches_the_edge_of_the_image_has_a_surface_there() -> None:
    whole = np.ones((5, 5), np.uint8)
    predicted = whole.copy()
    predicted[1:4, 1:4] = 0  # the ring, which is also the whole image's surface
    assert score_labels(whole, predicted, (1.0, 1.0), [1], tolerance=0.0)[1].surface_dice == 1.0


def test_a_slice_is_scored_as_a_plane() -> None:
    truth = box((8, 8), slice(1, 7), slice(1, 7))
    predicted = box((8, 8), slice(3, 5), slice(3, 5))
    flat = score_labels(truth, predicted, (1.0, 1.0), [1], tolerance=1.0)[1]
    assert flat.surface_dice == 0.0  # 6x6 ring against 2x2: as voxels of one slice all would be surface
    one_slice = score_labels(truth[:, :, None], predicted[:, :, None], (1.0, 1.0, 4.0), [1], tolerance=1.0)
    assert one_slice[1] == flat


def test_absent_in_both_is_left_out_and_in_one_counts_as_missed() -> None:
    truth = box((4, 5, 6), slice(0, 2), label=1) + box((4, 5, 6), slice(2, 4), label=2)
    predicted = box((4, 5, 6), slice(0, 2), label=1) + box((4, 5, 6), slice(2, 4), label=3)
    scores = score_labels(truth, predicted, (1.0, 2.0, 3.0), [1, 2, 3, 4, 300])
    diagonal = float(np.linalg.norm([4, 10, 18]))
    assert scores[1] == (60, 60, 1.0, 0.0, 1.0)
    assert scores[2] == (60, 0, 0.0, diagonal, 0.0)
    assert scores[3] == (0, 60, 0.0, diagonal, 0.0)
    assert scores[4] == scores[300] == (0, 0, None, None, None)


def test_a_tolerance_survives_the_rounding_of_float32_headers() -> None:
    truth = box((30, 3), slice(0, 1), slice(0, 1))
    predicted = box((30, 3), slice(5, 6), slice(0, 1))
    step = float(np.float32(0.4))  # 5 steps are 2.00000003 mm
    assert score_labels(truth, predicted, (step, 1.0), [1], tolerance=2.0)[1].surface_dice == 1.0


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        score_labels(np.zeros((3, 3), np.uint8), np.zeros((3, 4), np.uint8), (1.0, 1.0), [1])
    with pytest.raises(ValueError, match="do not fit"):
        score_labels(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8), (1.0, 1.0, 1.0), [1])


@pytest.mark.parametrize("shape", [(14, 17, 9), (23, 19)])
def test_equal_to_monai(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    generator = np.random.default_rng(5)
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    maps = []
    for centre in (0.45, 0.55):  # two balls of label 1 and a shell of label 2, with noise
        radius = np.sqrt(sum((axis - centre * n) ** 2 for axis, n in zip(grid, shape, strict=True)))
        labels = np.where(radius < 3, 1, np.where(radius < 5, 2, 0))
        noise = generator.integers(0, 3, shape)
        maps.append(np.where(generator.random(shape) < 0.02, noise, labels).astype(np.uint8))
    truth, predicted = maps
    spacing = (0.7, 1.3, 4.1)[: len(shape)]

    one_hot = [torch.stack([torch.from_numpy(m == k) for k in range(3)])[None] for m in (predicted, truth)]
    one_hot = [maps.float() for maps in one_hot]
    expected_dice = metrics.compute_dice(*one_hot, include_background=False)[0]
    expected_hd95 = metrics.compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)[0]
    expected_surface = metrics.compute_surface_dice(*one_hot, class_thresholds=[1.0, 1.0], spacing=spacing)[0]

    scores = score_labels(truth, predicted, spacing, [1, 2], tolerance=1.0)
    for index, score in enumerate(scores.values()):
        assert score.dice == pytest.approx(float(expected_dice[index]), abs=1e-6)
        assert score.hd95 == pytest.approx(float(expected_hd95[index]), abs=1e-5)
        assert score.surface_dice == pytest.approx(float(expected_surface[index]), abs=1e-6)
        assert 0 < score.surface_dice < 1  # the comparison says something


def test_dice_by_label() -> None:
    prediction = np.array([[1, 1, 2, 0]])
    truth = np.array([[1, 0, 0, 0]])
    one, two, three = dice_by_label(truth, prediction, [1, 2, 3])
    assert (one, two) == (2 / 3, 0)
    assert math.isnan(three)


# The loss


def random_scores(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, classes, 9, 7), generator=generator, requires_grad=True)
    return logits, torch.randint(classes, (2, 9, 7), generator=generator)


def test_the_loss_equals_that_of_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = random_scores()
    other = logits.detach().clone().requires_grad_()
    expected = losses.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(
        other, target[:, None]
    )
    loss = dice_ce_loss(logits, target)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_a_perfect_answer_has_no_loss() -> None:
    _, target = random_scores()
    logits = 100.0 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2)
    assert dice_ce_loss(logits, target).item() == pytest.approx(0, abs=1e-6)


def test_ignored_pixels_have_no_loss_and_no_gradient() -> None:
    logits, target = random_scores()
    target[:, 4:] = IGNORE
    loss = dice_ce_loss(logits, target)
    torch.testing.assert_close(loss, dice_ce_loss(logits[:, :, :4], target[:, :4]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, :, :4].any()
    assert not gradient[:, :, 4:].any()


def test_weights_of_pixels() -> None:
    logits, target = random_scores()
    weight = torch.ones(target.shape)
    torch.testing.assert_close(dice_ce_loss(logits, target, weight), dice_ce_loss(logits, target))
    weight[:, 4:] = 0
    torch.testing.assert_close(dice_ce_loss(logits, target, weight), dice_ce_loss(logits[:, :, :4], target[:, :4]))
    ignored = target.masked_fill(weight == 0, IGNORE)
    torch.testing.assert_close(dice_ce_loss(logits, ignored, torch.ones(target.shape)), dice_ce_loss(logits, ignored))


def test_nothing_to_learn_from_is_no_loss() -> None:
    logits, target = random_scores()
    loss = dice_ce_loss(logits, torch.full_like(target, IGNORE))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()
