"""Masked restoration for convolutions: SparK (Tian et al., *Designing BERT for Convolutional Networks*, ICLR 2023).

Most of the image is hidden in blocks of the deepest stage's pixels. The encoder must not see through the mask at any
scale; before decoding, a learnt token fills what is hidden at each scale; the loss is the mean squared error on hidden
blocks only, each normalised by its own mean and standard deviation (He et al., MAE, CVPR 2022).

Departures: features are masked after each stage, in place of sparse convolutions, so that instance normalisation counts
hidden pixels as zeros. The decoder is the U-Net's own, which is kept for fine-tuning (as Wald et al., *Revisiting MAE
Pre-training for 3D Medical Image Segmentation*, CVPR 2025, do), so no projections stand between. A block's standard
deviation is not taken below 0.01, so that noise in air is not blown up to anatomy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hssl.config import StageConfig
from hssl.networks import PixelHead, UNet
from hssl.objectives.base import Domains, Objective, PretrainBatch

LEAST_DEVIATION = 0.01


class MaskedOptions(StageConfig):
    """Details of the mask.

    Attributes:
        ratio: Share of the blocks of each image that are hidden.
    """

    ratio: float = Field(0.6, gt=0, lt=1)


class Masked(Objective):
    """Restoration of hidden blocks, through encoder and decoder."""

    Options = MaskedOptions

    def __init__(self, network: UNet, domains: Domains, options: MaskedOptions) -> None:
        super().__init__(network, domains, options)
        self.ratio, self.block = options.ratio, network.divisor
        self.tokens = nn.ParameterList(nn.init.normal_(torch.empty(1, c, 1, 1), std=0.02) for c in network.channels)
        self.head = PixelHead(network.channels[0], 1, hidden=network.channels[0])

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``restoration``; 1 is what the mean of each block would give where it shows something."""
        clean = torch.cat((batch.first.clean, batch.second.clean))
        visible = draw_visible(clean, self.block, self.ratio)
        features = encode_visible(network, clean, visible)
        filled = [
            torch.where(_at_size(visible, stage), stage, token.to(stage.dtype))
            for stage, token in zip(features, self.tokens, strict=True)
        ]
        restored = self.head(network.decode(filled)[-1]).float()
        error = (restored - normalise_blocks(clean, self.block)) ** 2
        hidden = (~_at_size(visible, clean)).float()
        return {"restoration": (error * hidden).sum() / hidden.sum()}


def draw_visible(images: Tensor, block: tuple[int, int], ratio: float) -> Tensor:
    """Which blocks stay: bool ``[B, 1, H / block, W / block]``, as many in each image, neither none nor all."""
    rows, columns = images.shape[-2] // block[0], images.shape[-1] // block[1]
    hidden = min(max(1, round(ratio * rows * columns)), rows * columns - 1)
    order = torch.rand((len(images), rows * columns), device=images.device).argsort(1)
    return (order >= hidden).view(-1, 1, rows, columns)


def encode_visible(network: UNet, images: Tensor, visible: Tensor) -> list[Tensor]:
    """Encoder features of every stage, with zeros wherever a block is hidden, so that nothing leaks on the way."""
    x = network.encoder.stem(images * _at_size(visible, images))
    features = []
    for stage in network.encoder.stages:
        x = stage(x)
        x = x * _at_size(visible, x)
        features.append(x)
    return features


def normalise_blocks(images: Tensor, block: tuple[int, int]) -> Tensor:
    """Takes from each block its mean and divides by its standard deviation, or by 0.01 where that is less."""
    mean = F.avg_pool2d(images, block)
    deviation = (F.avg_pool2d(images**2, block) - mean**2).clamp(min=LEAST_DEVIATION**2).sqrt()
    return (images - _at_size(mean, images)) / _at_size(deviation, images)


def _at_size(blocks: Tensor, like: Tensor) -> Tensor:
    # One value per block, repeated over the pixels of the block.
    height, width = (large // small for large, small in zip(like.shape[-2:], blocks.shape[-2:], strict=True))
    return blocks.repeat_interleave(height, 2).repeat_interleave(width, 3)
