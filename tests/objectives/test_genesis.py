from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hssl.objectives.genesis import bend_intensities, disturb, paint, rectangles, shuffle_locally


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(16, 1, 40, 40)


def test_everything_stays_in_range(images: Tensor) -> None:
    disturbed = disturb(images)
    assert disturbed.shape == images.shape
    assert disturbed.min() >= 0
    assert disturbed.max() <= 1
    assert all(not torch.equal(a, b) for a, b in zip(disturbed[:8], images[:8], strict=True))


def test_intensities_rise_or_fall_from_end_to_end() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 100).view(1, 1, 10, 10).repeat(64, 1, 1, 1)
    curves = bend_intensities(ramp).flatten(1)
    steps = curves.diff()
    rises = curves[:, 0] == 0
    assert 16 < rises.sum() < 48  # half of them
    torch.testing.assert_close(curves[:, -1], rises.float())
    assert (steps[rises] >= -1e-6).all()
    assert (steps[~rises] <= 1e-6).all()
    assert (curves - ramp.flatten(1))[rises].abs().max() > 0.1


def test_pixels_move_within_their_blocks() -> None:
    torch.manual_seed(0)
    place = torch.arange(40.0)
    for image in (place[:, None].expand(16, 1, 40, 40), place.expand(16, 1, 40, 40)):
        moved = shuffle_locally(image) - image
        assert 1 <= moved.max() <= 3  # blocks have two to four pixels
        assert -3 <= moved.min() <= -1
        assert (moved != 0).float().mean() > 0.3


def test_painting_covers_either_rectangles_or_the_rest() -> None:
    torch.manual_seed(0)
    kept = paint(torch.full((64, 1, 40, 40), -1.0)) == -1
    corners = kept[..., [0, 0, -1, -1], [0, -1, 0, -1]].float().mean((1, 2))
    outside = corners < 0.5
    assert 0.65 < outside.float().mean() < 0.95  # four of five
    share = kept.float().mean((1, 2, 3))
    # At least one rectangle of three sevenths is left; at most five of a third are painted.
    assert (share[outside] > 0.16).all()
    assert ((share[~outside] > 0.44) & (share[~outside] < 0.98)).all()


def test_rectangles_have_the_sizes_asked_for() -> None:
    torch.manual_seed(0)
    found = rectangles(torch.zeros(64, 1, 40, 40), 0.25, 0.25)
    assert found.dtype == torch.bool
    assert found.shape == (64, 1, 40, 40)
    share = found.float().mean((1, 2, 3))
    assert share.min() >= 0.05
    assert share.max() <= 5 * 0.08
    # A row meets either no rectangle or at least one whole one: ten pixels, give or take the rounding.
    rows = found.sum(-1)
    assert rows[rows > 0].min() >= 9
