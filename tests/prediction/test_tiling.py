from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hssl.errors import ConfigError
from hssl.prediction.tiling import predict_slabs, predict_volume


class TwoClasses(nn.Module):
    """Scores that depend on the place in the tile, so that tiling matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        return self.conv(x) - x.mean(dim=(2, 3), keepdim=True)


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def written_out(network: nn.Module, image: np.ndarray, patch: tuple[int, int], overlap: float) -> np.ndarray:
    """One tile at a time, in float64."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = [m // 2 for m in missing]
    padded = np.pad(image, [(0, 0)] + [(b, m - b) for b, m in zip(before, missing, strict=True)])
    lines, starts = [], []
    for size, tile in zip(padded.shape[1:], patch, strict=True):
        steps = math.ceil((size - tile) / max(1.0, tile * (1 - overlap)))
        starts.append([round((size - tile) * k / steps) for k in range(steps + 1)] if steps else [0])
        lines.append(np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile / 8)) ** 2))
    weight = np.outer(*lines)
    result = []
    for plane in padded:
        total, sums = np.zeros(plane.shape), np.zeros((2, *plane.shape))
        for y in starts[0]:
            for x in starts[1]:
                place = (slice(y, y + patch[0]), slice(x, x + patch[1]))
                with torch.no_grad():
                    scores = network(torch.from_numpy(plane[place].copy())[None, None])[0].double().numpy()
                sums[(slice(None), *place)] += scores * weight
                total[place] += weight
        result.append(sums / total)
    scores = np.stack(result, axis=1)
    rows, columns = image.shape[1:]
    return scores[:, :, before[0] : before[0] + rows, before[1] : before[1] + columns]


@pytest.mark.parametrize("shape", [(5, 40, 33), (3, 16, 24), (2, 10, 50), (4, 9, 11), (1, 17, 25)])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_equals_one_tile_at_a_time(shape: tuple[int, int, int], batch_size: int) -> None:
    network, image = TwoClasses(), volume(*shape)
    scores = predict_volume(network, image, patch_size=(16, 24), batch_size=batch_size, amp=False)
    assert scores.dtype == np.float32
    assert scores.shape == (2, *shape)
    assert max(call[0] for call in network.calls) <= batch_size
    np.testing.assert_allclose(scores, written_out(network, image, (16, 24), 0.5), atol=2e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
def test_equals_one_tile_at_a_time_at_any_overlap(overlap: float) -> None:
    network, image = TwoClasses(), volume(2, 37, 20)
    scores = predict_volume(network, image, patch_size=(8, 16), overlap=overlap, amp=False)
    np.testing.assert_allclose(scores, written_out(network, image, (8, 16), overlap), atol=2e-6)


def test_a_network_that_returns_its_input_gives_the_input_back() -> None:
    image = volume(3, 70, 45)
    scores = predict_volume(nn.Identity(), image, patch_size=(32, 32), amp=False)
    np.testing.assert_allclose(scores[0], image, atol=1e-6)


def test_a_slice_of_the_size_of_the_patch_is_one_tile_and_exact() -> None:
    network, image = TwoClasses(), volume(5, 16, 16)
    scores = predict_volume(network, image, patch_size=(16, 16), batch_size=3, amp=False)
    assert network.calls == [(3, 1, 16, 16), (2, 1, 16, 16)]
    with torch.no_grad():
        expected = torch.cat([network(torch.from_numpy(part)[:, None]) for part in (image[:3], image[3:])])
    np.testing.assert_array_equal(scores, expected.transpose(0, 1).numpy())


def test_bfloat16_is_close_and_accumulates_in_float32() -> None:
    network, image = TwoClasses(), volume(2, 40, 33)
    scores = predict_volume(network, image, patch_size=(16, 16), amp=True)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, written_out(network, image, (16, 16), 0.5), atol=0.03)
    # Sums of weighted bfloat16 values, were they bfloat16, would have no more than 8 bits.
    assert not np.array_equal(scores, torch.from_numpy(scores).bfloat16().float().numpy())


def test_the_same_call_gives_the_same_bits() -> None:
    network, image = TwoClasses(), volume(4, 40, 33)
    first, second = (predict_volume(network, image, patch_size=(16, 16), batch_size=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_slabs_are_the_volume_a_few_slices_at_a_time() -> None:
    network, image = TwoClasses(), volume(7, 24, 20)
    parts = [*predict_slabs(network, image, slices=3, patch_size=(16, 16), batch_size=1, amp=False)]
    assert [part.shape[1] for part in parts] == [3, 3, 1]
    whole = predict_volume(network, image, patch_size=(16, 16), batch_size=1, amp=False)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"batch_size": 0}, {"patch_size": (0, 8)}])
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="cannot predict with"):
        predict_volume(nn.Identity(), volume(1, 8, 8), **{"patch_size": (8, 8), **wrong})
