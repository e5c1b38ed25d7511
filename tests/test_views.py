from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from hssl.config import ViewConfig
from hssl.views import (
    _affine_grid,
    _blur,
    _smooth,
    change_intensity,
    draw_affine,
    draw_blocks,
    follow,
    make_view,
    map_points,
)

STILL = {"scale": (1.0, 1.0), "rotate": 0.0, "shift": 0.0, "intensity": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still(**given: object) -> ViewConfig:
    return ViewConfig.model_validate({**STILL, **given})


def windows(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 1, size, size), generator=generator(seed))


def dot(size: int, row: int, column: int) -> torch.Tensor:
    image = torch.zeros((1, 1, size, size))
    image[0, 0, row, column] = 1
    return image


def resampled(image: torch.Tensor, theta: torch.Tensor, patch: int) -> torch.Tensor:
    grid = F.affine_grid(theta, [len(image), 1, patch, patch], align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def test_a_still_view_is_the_middle_of_the_window():
    window = windows()
    view = make_view(window, 32, still(), generator())
    assert torch.equal(view.clean, window[:, :, 16:48, 16:48])
    assert not view.occluded.any()
    # Intensities pass through a power with a floor of 1e-4.
    torch.testing.assert_close(view.image, view.clean, atol=1e-4, rtol=0)


def test_a_still_view_of_the_whole_window():
    window = windows(size=32)
    assert torch.equal(make_view(window, 32, still(), generator()).clean, window)


def test_half_precision_windows_become_float32():
    view = make_view(windows().half(), 32, ViewConfig(), generator())
    assert view.image.dtype == view.clean.dtype == view.theta.dtype == view.grid.dtype == torch.float32
    assert view.occluded.dtype == torch.bool
    assert view.image.shape == view.clean.shape == view.occluded.shape == (2, 1, 32, 32)
    assert (view.theta.shape, view.grid.shape) == ((2, 2, 3), (2, 32, 32, 2))


@pytest.mark.parametrize(
    ("flip", "expected"),
    [((0.0, 0.0), (3, 5)), ((1.0, 0.0), (28, 5)), ((0.0, 1.0), (3, 26)), ((1.0, 1.0), (28, 26))],
)
def test_flips(flip, expected):
    view = make_view(dot(32, 3, 5), 32, still(flip=flip), generator())
    assert torch.equal(view.clean, dot(32, *expected))


@pytest.mark.parametrize("seed", range(4))
def test_a_rotation_keeps_the_angle_that_theta_states(seed):
    theta = draw_affine(1, 1.0, still(rotate=180.0), generator(seed))[0]
    angle = math.atan2(theta[1, 0], theta[0, 0])
    torch.testing.assert_close(
        theta[:, :2],
        torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]),
    )
    assert torch.equal(theta[:, 2], torch.zeros(2))


def test_a_quarter_turn(monkeypatch):
    monkeypatch.setattr("hssl.views._uniform", lambda count, low, high, _: torch.full((count,), float(high)))
    view = make_view(dot(32, 3, 5), 32, still(rotate=90.0), generator())
    # Patch (x, y) shows window (-y, x): the pixel at row 3, column 5 is found at row 26, column 3.
    torch.testing.assert_close(view.clean, dot(32, 26, 3), atol=1e-4, rtol=0)


def test_scale_is_relative_to_the_patch():
    theta = draw_affine(500, 0.5, still(scale=(0.5, 2.0)), generator())
    sides = theta[:, 0, 0]
    assert 0.25 <= sides.min() < 0.28
    assert 0.9 < sides.max() <= 1.0
    # Evenly spread in the logarithm: half of them below the geometric mean.
    assert 0.4 < (sides < 0.5).float().mean() < 0.6


def test_half_the_scale_shows_half_the_side():
    window = F.interpolate(windows(size=16), size=64, mode="nearest")
    clean = make_view(window, 32, still(scale=(0.5, 0.5)), generator()).clean
    middle = window[:, :, 24:40, 24:40]
    torch.testing.assert_close(clean[:, :, 1::4, 1::4], middle[:, :, ::2, ::2])


def test_shift_stays_inside_the_window():
    theta = draw_affine(500, 0.5, still(scale=(0.8, 0.8), shift=1.0), generator())
    assert 0.55 < theta[:, :, 2].abs().max() <= 1 - 0.4
    none = draw_affine(500, 1.0, still(scale=(1.2, 1.2), shift=1.0), generator())
    assert torch.equal(none[:, :, 2], torch.zeros(500, 2))


def test_a_shift_of_whole_pixels(monkeypatch):
    monkeypatch.setattr("hssl.views._uniform", lambda count, low, high, _: torch.full((count,), float(high)))
    window = windows()
    assert torch.equal(make_view(window, 32, still(shift=1.0), generator()).clean, window[:, :, 32:, 32:])
    assert torch.equal(make_view(window, 32, still(shift=0.5), generator()).clean, window[:, :, 24:56, 24:56])


def test_beyond_the_window_is_zero():
    clean = make_view(torch.ones(1, 1, 32, 32), 32, still(scale=(2.0, 2.0)), generator()).clean
    assert torch.equal(clean[0, 0, 8:24, 8:24], torch.ones(16, 16))
    assert clean.sum() == 16 * 16


def test_masks_follow_the_image():
    label = torch.zeros(3, 64, 64, dtype=torch.uint8)
    label[:, 20:44, 16:40] = 7
    config = ViewConfig(intensity=0.0, flip=(0.5, 0.5), elastic=0.03, rotate=90)
    view = make_view((label == 7)[:, None].float(), 32, config, generator())
    moved = follow(label, view.grid)
    assert moved.dtype == torch.int64
    assert set(moved.unique().tolist()) == {0, 7}
    image = view.clean[:, 0]
    assert torch.equal(moved[image > 0.99], torch.full_like(moved[image > 0.99], 7))
    assert not moved[image < 0.01].any()
    assert ((moved == 7) != (image > 0.5)).float().mean() < 0.03


def test_a_still_mask_is_the_middle_of_the_mask():
    label = torch.randint(0, 5, (2, 64, 64), generator=generator(), dtype=torch.uint8)
    view = make_view(windows(), 32, still(), generator())
    assert torch.equal(follow(label, view.grid), label[:, 16:48, 16:48].long())
    outside = make_view(windows(size=32), 32, still(scale=(2.0, 2.0)), generator())
    assert not follow(torch.ones(2, 32, 32, dtype=torch.uint8), outside.grid)[:, 0].any()


def test_points_there_and_back():
    config = ViewConfig(rotate=180, flip=(0.5, 0.5))
    first, second = (draw_affine(5, 0.75, config, generator(seed)) for seed in range(2))
    points = torch.rand((5, 9, 2), generator=generator()) * 2 - 1
    there = map_points(points, first, second)
    assert not torch.allclose(there, points, atol=0.1)
    torch.testing.assert_close(map_points(there, second, first), points, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(map_points(points, first, first), points, atol=1e-5, rtol=1e-5)


def test_points_agree_with_the_grids():
    config = ViewConfig(rotate=180, flip=(0.5, 0.5))
    first, second = (make_view(windows(4), 32, config, generator(seed)) for seed in range(2))
    # Centres of pixels of the first view, and where they lie in the window.
    rows, columns = torch.tensor([0, 7, 31]), torch.tensor([30, 2, 16])
    points = (2 * torch.stack((columns, rows), -1) + 1) / 32 - 1
    there = map_points(points.expand(4, -1, -1), first.theta, second.theta)
    back = torch.cat((there, torch.ones(4, 3, 1)), -1) @ second.theta.mT
    torch.testing.assert_close(back, first.grid[:, rows, columns], atol=1e-5, rtol=1e-5)


def test_the_same_point_shows_the_same_pixel():
    smooth = F.interpolate(windows(3, 5), size=64, mode="bicubic").clamp(0, 1)
    first, second = (make_view(smooth, 32, ViewConfig(rotate=90), generator(seed)) for seed in range(2))
    here = torch.rand((3, 200, 2), generator=generator()) * 1.8 - 0.9
    there = map_points(here, first.theta, second.theta)
    both = (there.abs() < 0.95).all(-1)

    def at(view, points):
        return F.grid_sample(view.clean, points[:, None], align_corners=False)[:, 0, 0]

    assert both.sum() > 100
    assert (at(first, here) - at(second, there))[both].abs().max() < 0.08


def test_every_image_draws_its_own():
    window = windows(1).expand(6, -1, -1, -1)
    view = make_view(window, 32, ViewConfig(occlusion_ratio=0.3), generator())
    for part in (view.theta, view.clean, view.occluded.float()):
        assert len({tuple(row.flatten().tolist()) for row in part}) == 6
    changed = change_intensity(window, ViewConfig(intensity=1.0), generator())
    means = changed.mean((1, 2, 3))
    assert len(set(means.tolist())) == 6


def test_a_seed_gives_one_view_and_a_generator_two():
    config = ViewConfig(occlusion_ratio=0.3, elastic=0.02)
    source = generator(5)
    first, second = (make_view(windows(), 32, config, source) for _ in range(2))
    again = make_view(windows(), 32, config, generator(5))
    for name in ("image", "clean", "occluded", "theta", "grid"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(second, name))


def test_torch_s_own_generator_is_not_touched():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    make_view(windows(), 32, ViewConfig(occlusion_ratio=0.3, elastic=0.02), generator())
    assert torch.equal(torch.rand(1), expected)


def test_values_are_finite_and_near_the_range():
    window = windows(32)
    window[:8] = 0
    window[8:16] = 1
    view = make_view(window, 32, ViewConfig(intensity=1.0, noise=0.0, bias_field=0.0), generator())
    assert view.image.min() >= 0
    assert view.image.max() <= 1 + 1e-5
    wild = make_view(window, 32, ViewConfig(intensity=1.0), generator()).image
    assert wild.isfinite().all()
    assert wild.abs().max() < 4
    assert view.clean.min() >= 0
    assert view.clean.max() <= 1


@pytest.mark.parametrize("name", ["contrast", "brightness", "gamma", "bias_field", "blur", "noise"])
def test_each_intensity_change_works_alone(name):
    off = dict.fromkeys(("contrast", "brightness", "gamma", "bias_field", "blur", "noise"), 0.0)
    image = windows(16, 32)
    changed = change_intensity(image, ViewConfig(intensity=1.0, **off | {name: 0.5}), generator())
    # Of blurs between 0 and half a pixel about half are too small to see.
    assert ((changed - image).abs().amax((1, 2, 3)) > 1e-3).float().mean() > (0.3 if name == "blur" else 0.9)
    same = change_intensity(image, ViewConfig(intensity=1.0, **off), generator())
    torch.testing.assert_close(same, image, atol=1e-4, rtol=0)


def test_intensity_is_the_share_of_images_changed():
    image = torch.full((600, 1, 8, 8), 0.5)
    off = {"contrast": 0.0, "gamma": 0.0, "bias_field": 0.0, "blur": 0.0, "noise": 0.0}
    changed = change_intensity(image, ViewConfig(intensity=0.25, brightness=0.2, **off), generator())
    assert abs(((changed - image).abs().amax((1, 2, 3)) > 1e-6).float().mean() - 0.25) < 0.05


def test_blur_is_gaussian_and_keeps_the_sum():
    image = dot(15, 7, 7).repeat(3, 1, 1, 1)
    blurred = _blur(image, torch.tensor([0.0, 0.7, 1.2]).view(-1, 1, 1, 1))
    assert torch.equal(blurred[0], image[0])
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(3))
    for sigma, row in ((0.7, blurred[1]), (1.2, blurred[2])):
        ratio = float(row[0, 7, 8] / row[0, 7, 7])
        assert ratio == pytest.approx(math.exp(-0.5 / sigma**2), rel=1e-4)
    flat = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(_blur(flat, torch.ones(1, 1, 1, 1)), flat)


def test_hidden_blocks():
    config = ViewConfig(occlusion_ratio=0.3, occlusion_size=8)
    hidden = draw_blocks(200, 36, config, generator())
    assert hidden.shape == (200, 1, 36, 36)
    assert abs(hidden.float().mean() - 0.3) < 0.02
    blocks = hidden[:, 0, :32, :32].reshape(200, 4, 8, 4, 8).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    view = make_view(torch.ones(4, 1, 64, 64), 36, ViewConfig(occlusion_ratio=0.3), generator())
    assert not view.image[view.occluded].any()
    assert view.clean[view.occluded].min() > 0.5


@pytest.mark.parametrize("hide", [0.0, 1.0])
def test_all_or_nothing_hidden(hide):
    assert (draw_blocks(3, 16, ViewConfig(occlusion_ratio=hide), generator()) == bool(hide)).all()


def test_elastic_moves_points_by_its_share():
    config = still(elastic=0.05)
    view = make_view(windows(64, 32), 32, config, generator())
    regular = F.affine_grid(view.theta, [64, 1, 32, 32], align_corners=False)
    # In pixels of a view as large as the window: control points have 0.05 * 32; between them it is less.
    moved = (view.grid - regular) * 16
    assert 0.8 < moved.std() < 1.7
    # Smooth: neighbours move together.
    assert (moved[:, 1:] - moved[:, :-1]).std() < 0.35 * moved.std()


def test_no_step_waits_for_the_device():
    """On the meta device no value can be read, so anything that would synchronise fails."""

    class Draws:
        device = torch.device("meta")

    def drawn(*shape, generator=None, **_):
        return torch.empty(shape[0] if isinstance(shape[0], tuple | torch.Size) else shape, device="meta")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", drawn)
        patch.setattr(torch, "randn", drawn)
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none on that device
        view = make_view(windows(2).to("meta"), 32, ViewConfig(occlusion_ratio=0.3, elastic=0.02), Draws())
        points = map_points(torch.empty(2, 5, 2, device="meta"), view.theta, view.theta)
        label = follow(torch.empty(2, 64, 64, dtype=torch.uint8, device="meta"), view.grid)
    assert view.image.device.type == points.device.type == label.device.type == "meta"
    assert (view.image.shape, label.shape) == ((2, 1, 32, 32), (2, 32, 32))


def test_the_fast_grid_is_that_of_torch() -> None:
    theta = torch.randn(5, 2, 3, generator=generator())
    expected = F.affine_grid(theta, [5, 1, 12, 12], align_corners=False)
    torch.testing.assert_close(_affine_grid(theta, 12), expected, rtol=1e-5, atol=1e-6)


def test_the_smooth_field_is_bicubic_between_its_draws() -> None:
    coarse = torch.randn((2, 3, 4, 4), generator=generator())
    expected = F.interpolate(coarse, size=(20, 20), mode="bicubic", align_corners=True)
    torch.testing.assert_close(_smooth((2, 3), 4, 20, generator()), expected, rtol=1e-5, atol=1e-5)


def test_intensities_change_as_the_formula_says() -> None:
    config = ViewConfig(intensity=1.0, blur=0.0, noise=0.0, bias_field=0.0)
    image = torch.rand((4, 1, 16, 16), generator=generator())
    draws = torch.Generator().manual_seed(5)
    contrast, brightness, gamma = (
        ((2 * torch.rand((2, 4), generator=draws)[1] - 1) * limit).view(-1, 1, 1, 1)
        for limit in (config.contrast, config.brightness, config.gamma)
    )
    expected = ((image - 0.5) * contrast.exp() + 0.5 + brightness).clamp(1e-4, 1) ** gamma.exp()
    changed = change_intensity(image, config, torch.Generator().manual_seed(5))
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)


def test_views_keep_their_digits_under_autocast() -> None:
    config = ViewConfig(elastic=0.02, occlusion_ratio=0.3)
    plain = make_view(windows(), 32, config, generator())
    with torch.autocast("cpu", torch.bfloat16):
        cast = make_view(windows(), 32, config, generator())
    assert cast.image.dtype == torch.float32
    assert torch.equal(cast.image, plain.image)
    assert torch.equal(cast.grid, plain.grid)
