"""Batched augmentation of windows on their own device; every draw is made per image.

A *window* is a piece of a slice, larger than the patch, as the loader cut it out. A *view* is what the
network sees of it: one resampling of the window (scale, rotation, shift, flip, elastic), then intensity changes and
occluded blocks. The spatial map comes with the view, so that masks and pixel losses can follow it. There is no
data-dependent control flow, so there is no host synchronisation on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hssl.config import ViewConfig


@dataclass(frozen=True)
class View:
    """One augmented view of a batch of windows.

    Attributes:
        image: What the network sees, float32 ``[B, 1, P, P]``.
        clean: The same pixels before intensity changes and occlusion, ``[B, 1, P, P]`` in [0, 1].
        occluded: Where blocks were occluded, bool ``[B, 1, P, P]``.
        theta: Affine part of the map from patch to window coordinates, ``[B, 2, 3]``; both in [-1, 1] with
            -1 and 1 at the outer edges of the corner pixels (``align_corners=False``).
        grid: The whole map, ``[B, P, P, 2]``, x before y.
    """

    image: Tensor
    clean: Tensor
    occluded: Tensor
    theta: Tensor
    grid: Tensor


def make_view(window: Tensor, patch: int, config: ViewConfig, generator: Generator) -> View:
    """Draws one view of each window.

    Args:
        window: Images ``[B, 1, S, S]`` in [0, 1], any float type.
        patch: Side of the view in pixels.
        config: Ranges and probabilities.
        generator: Random state on the device of `window`; two calls give two different views.

    Returns:
        The view; its image is float32 and may leave [0, 1] slightly through noise.
    """
    # Under autocast, the products in here would lose half the digits of an image and of a coordinate.
    with torch.autocast(window.device.type, enabled=False):
        return _make_view(window.float(), patch, config, generator)


def _make_view(window: Tensor, patch: int, config: ViewConfig, generator: Generator) -> View:
    theta = draw_affine(len(window), patch / window.shape[-1], config, generator)
    grid = _affine_grid(theta, patch)
    if config.elastic > 0:
        grid = grid + _elastic(len(window), patch, config, generator)
    clean = F.grid_sample(window, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    image = change_intensity(clean, config, generator)
    occluded = draw_blocks(len(window), patch, config, generator)
    if config.occlusion_ratio > 0:
        image = image.masked_fill_(occluded, 0.0)
    return View(image, clean, occluded, theta, grid)


def follow(labels: Tensor, grid: Tensor) -> Tensor:
    """Carries masks along a view's map, by nearest neighbour.

    Args:
        labels: Integer masks of the windows, ``[B, S, S]``.
        grid: Map of the view, ``[B, P, P, 2]``.

    Returns:
        Masks of the view, int64 ``[B, P, P]``; 0 outside the window.
    """
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved[:, 0].long()


def map_points(points: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Finds points of one view in the other.

    Args:
        points: Patch coordinates in the first view, ``[B, K, 2]`` in [-1, 1].
        source: `theta` of the first view, ``[B, 2, 3]``.
        target: `theta` of the second view, ``[B, 2, 3]``.

    Returns:
        Patch coordinates in the second view, ``[B, K, 2]``; outside [-1, 1] where it does not show them.
    """
    in_window = points @ source[:, :, :2].mT + source[:, None, :, 2]
    matrix = target[:, :, :2]
    (a, b), (c, d) = matrix[:, 0].unbind(-1), matrix[:, 1].unbind(-1)
    inverse = torch.stack((d, -b, -c, a), -1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    return (in_window - target[:, None, :, 2]) @ inverse.mT


def draw_affine(count: int, ratio: float, config: ViewConfig, generator: Generator) -> Tensor:
    """Random maps from patch to window coordinates, ``[count, 2, 3]``.

    Args:
        count: How many.
        ratio: Side of the patch over the side of the window, in pixels.
        config: Ranges of scale, rotation (degrees), shift and the probability of flips.
        generator: Random state; its device is where the result lies.
    """
    angle = _uniform(count, -config.rotate, config.rotate, generator) * (math.pi / 180)
    scale = torch.exp(_uniform(count, math.log(config.scale[0]), math.log(config.scale[1]), generator)) * ratio
    flip_x = 1 - 2 * _happens(count, config.flip[1], generator).float()
    flip_y = 1 - 2 * _happens(count, config.flip[0], generator).float()
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    room = (1 - scale).clamp(min=0) * config.shift
    shift = torch.stack([_uniform(count, -1, 1, generator) * room for _ in range(2)], -1)
    linear = torch.stack((cos * flip_x, -sin * flip_y, sin * flip_x, cos * flip_y), -1).view(count, 2, 2)
    return torch.cat((linear, shift[:, :, None]), -1)


def change_intensity(image: Tensor, config: ViewConfig, generator: Generator) -> Tensor:
    """Contrast, brightness, gamma, bias field, blur and noise; each image draws its own.

    Args:
        image: ``[B, 1, P, P]`` in [0, 1].
        config: Ranges and probabilities.
        generator: Random state on the device of `image`.

    Returns:
        The changed images, same shape.
    """
    count = len(image)

    def draw(low: float, high: float, neutral: float) -> Tensor:
        value = torch.where(
            _happens(count, config.intensity, generator),
            _uniform(count, low, high, generator),
            torch.full((), neutral, device=generator.device),
        )
        return value.view(-1, 1, 1, 1)

    contrast = torch.exp(draw(-config.contrast, config.contrast, 0.0))
    brightness = draw(-config.brightness, config.brightness, 0.0)
    gamma = torch.exp(draw(-config.gamma, config.gamma, 0.0))
    field = draw(0.0, config.bias_field, 0.0) * _smooth((count, 1), 3, image.shape[-1], generator)
    # ((image - 1/2) * contrast + 1/2 + brightness) ** gamma * exp(field), in place and with one exponential.
    image = torch.addcmul(0.5 + brightness - 0.5 * contrast, image, contrast).clamp_(1e-4, 1)
    image = image.log_().mul_(gamma).add_(field).exp_()
    image = _blur(image, draw(0.0, config.blur, 0.0))
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return image.addcmul_(draw(0.0, config.noise, 0.0), noise)


def draw_blocks(count: int, patch: int, config: ViewConfig, generator: Generator) -> Tensor:
    """Occludes square blocks: bool ``[count, 1, patch, patch]``, `config.occlusion_ratio` of each image on average."""
    cells = math.ceil(patch / config.occlusion_size)
    occluded = (
        torch.rand((count, 1, cells, cells), generator=generator, device=generator.device) < config.occlusion_ratio
    )
    occluded = occluded.repeat_interleave(config.occlusion_size, 2).repeat_interleave(config.occlusion_size, 3)
    return occluded[:, :, :patch, :patch]


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def _happens(count: int, probability: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < probability


def _affine_grid(theta: Tensor, patch: int) -> Tensor:
    """As ``F.affine_grid(theta, [B, 1, patch, patch], align_corners=False)``, without its slow product of matrices."""
    at = (2 * torch.arange(patch, device=theta.device) + 1) / patch - 1
    along_columns = theta[:, :, 0, None] * at
    along_rows = theta[:, :, 1, None] * at + theta[:, :, 2, None]
    return (along_columns[:, :, None, :] + along_rows[:, :, :, None]).permute(0, 2, 3, 1)


def _smooth(shape: tuple[int, int], cells: int, size: int, generator: Generator) -> Tensor:
    """A random smooth field: bicubic between normal draws on a coarse grid, ``[*shape, size, size]``."""
    coarse = torch.randn((*shape, cells, cells), generator=generator, device=generator.device)
    # Interpolation is linear in the draws: one small matrix for each axis, ten times as fast as F.interpolate.
    unit = torch.eye(cells, device=generator.device)[None, None]
    matrix = F.interpolate(unit, size=(size, cells), mode="bicubic", align_corners=True)[0, 0]
    return matrix @ coarse @ matrix.T


def _elastic(count: int, patch: int, config: ViewConfig, generator: Generator) -> Tensor:
    # Coordinates of the window run from -1 to 1, so twice its share.
    return _smooth((count, 2), 6, patch, generator).permute(0, 2, 3, 1) * (2 * config.elastic)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    # One kernel per image through a grouped convolution; sigma 0 gives the unit impulse.
    radius = 3
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1).clamp(min=0.05)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(image)
    stack = F.pad(image.view(1, count, *image.shape[-2:]), (radius,) * 4, mode="replicate")
    stack = F.conv2d(stack, kernel.view(count, 1, 1, -1), groups=count)
    stack = F.conv2d(stack, kernel.view(count, 1, -1, 1), groups=count)
    return stack.view_as(image)
