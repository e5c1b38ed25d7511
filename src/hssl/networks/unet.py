"""The encoder-decoder: nnU-Net's plain and residual-encoder U-Nets, layer for layer.

Layer order, strides, biases and normalisation follow PlainConvUNet and ResidualEncoderUNet of
dynamic-network-architectures (Isensee et al.), so that weights go into stock nnU-Net by renaming keys.
What differs is the interface: encoder stages and decoder stages are both returned, because every level of
the hierarchy reads another depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hssl.config import HeadKind, NetworkConfig
from hssl.errors import ConfigError

Pair = tuple[int, int]
Network = TypeVar("Network", bound=nn.Module)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation that keeps bf16 on a CPU.

    Autocast would lift its input to float32, and all that follows until the next convolution with it: a fifth of a
    training step went into these copies. Group normalisation with one channel a group is the same formula, with a bf16
    kernel that sums in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to the same shape."""
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, x.shape[1], weight, bias, self.eps)


class ConvNorm(nn.Module):
    """Convolution, instance normalisation and, unless switched off, leaky ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Pair,
        stride: Pair = (1, 1),
        *,
        bias: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = InstanceNorm(outputs, eps=1e-5, affine=True)
        self.act = nn.LeakyReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        result: Tensor = self.act(self.norm(self.conv(x)))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions and a skip that is average-pooled, not strided (ResNet-D; nnU-Net's BasicBlockD)."""

    def __init__(self, inputs: int, outputs: int, kernel: Pair, stride: Pair) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel, act=False)
        skip: list[nn.Module] = []
        if stride != (1, 1):
            skip.append(nn.AvgPool2d(stride, stride))
        if inputs != outputs:
            skip.append(ConvNorm(inputs, outputs, (1, 1), bias=False, act=False))
        self.skip = nn.Sequential(*skip)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        result: Tensor = self.act(self.conv2(self.conv1(x)) + self.skip(x))
        return result


def _plain_stage(inputs: int, outputs: int, kernel: Pair, stride: Pair, count: int) -> nn.Sequential:
    first = ConvNorm(inputs, outputs, kernel, stride)
    return nn.Sequential(first, *(ConvNorm(outputs, outputs, kernel) for _ in range(count - 1)))


def _residual_stage(inputs: int, outputs: int, kernel: Pair, stride: Pair, count: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, kernel, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, kernel, (1, 1)) for _ in range(count - 1)))


class Encoder(nn.Module):
    """Stages of falling resolution; the residual kind starts with a stem of one convolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.encoder == "residual":
            self.stem: nn.Module = nn.Sequential(ConvNorm(1, config.features[0], config.kernels[0]))
            inputs, make_stage = config.features[0], _residual_stage
        else:
            self.stem = nn.Sequential()
            inputs, make_stage = 1, _plain_stage
        channels = [inputs, *config.features]
        self.stages = nn.ModuleList(
            make_stage(before, after, kernel, stride, count)
            for (before, after), kernel, stride, count in zip(
                pairwise(channels), config.kernels, config.strides, config.blocks, strict=True
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, full resolution first."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolution, concatenation with the encoder's features, convolutions; per stage."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        steps = list(pairwise(reversed(config.features)))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose2d(below, here, stride, stride)
            for (below, here), stride in zip(steps, reversed(config.strides[1:]), strict=True)
        )
        self.stages = nn.ModuleList(
            _plain_stage(2 * here, here, kernel, (1, 1), count)
            for (_, here), kernel, count in zip(steps, reversed(config.kernels[:-1]), config.decoder_convs, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every decoder stage, full resolution last."""
        x, outputs = features[-1], []
        for upsample, stage, skip in zip(self.transpconvs, self.stages, reversed(features[:-1]), strict=True):
            x = stage(torch.cat((upsample(x), skip), dim=1))
            outputs.append(x)
        return outputs


class UNet(nn.Module):
    """What is pre-trained and fine-tuned: encoder and decoder, without any head.

    Args:
        config: Shape of the network.

    Attributes:
        channels: Channels of each encoder stage, full resolution first. A decoder stage has the channels of
            the encoder stage of its resolution.
        divisor: Height and width of an input must be multiples of this, per axis.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = list(config.features)
        heights, widths = zip(*config.strides, strict=True)
        self.divisor = (math.prod(heights), math.prod(widths))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(_initialise)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Maps images ``[B, 1, H, W]`` in [0, 1] to the features of every encoder stage, shallow to deep."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps encoder features to those of every decoder stage, coarse to fine (``[B, C, H, W]`` last)."""
        outputs: list[Tensor] = self.decoder(features)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, 1, H, W]`` to full-resolution features ``[B, channels[0], H, W]``."""
        return self.decode(self.encode(x))[-1]


class SegmentationNetwork(nn.Module):
    """A U-Net and a segmentation head: one 1x1 convolution for each decoder stage that it reads.

    What the coarser stages say is upsampled and added to what the finer ones do. Much of what pre-training
    teaches lies there, and a head that reads the last stage alone would have to wait until fine-tuning has brought it
    through.

    Args:
        unet: The pre-trained or fresh network.
        classes: Labels plus background.
        head: ``all`` decoder stages, or the ``last`` alone.
    """

    def __init__(self, unet: UNet, classes: int, head: HeadKind = "all") -> None:
        super().__init__()
        self.unet = unet
        stages = len(unet.channels) - 1 if head == "all" else 1
        #: Full resolution first, as the channels.
        self.head = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in unet.channels[:stages])
        for layer in self.head:
            _initialise(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, 1, H, W]`` to logits ``[B, classes, H, W]``."""
        decoded = self.unet.decode(self.unet.encode(x))
        read = zip(reversed(self.head), decoded[-len(self.head) :], strict=True)
        logits, *finer = (layer(features) for layer, features in read)
        for found in finer:
            logits = found + F.interpolate(logits, size=found.shape[-2:], mode="bilinear", align_corners=False)
        return cast("Tensor", logits)


def build_network(config: NetworkConfig) -> UNet:
    """A fresh network; its weights come from torch's global generator, so seed that before."""
    return UNet(config)


def to_device(network: Network, device: str | None) -> Network:
    """Moves a network to a device, as torch names it; None is a GPU where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    try:
        return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not have
        raise ConfigError(
            f"device '{device}' cannot be used: {error}",
            hint="give cpu, cuda or another name that torch knows, or leave it out",
        ) from error


def _initialise(module: nn.Module) -> None:
    # He initialisation for leaky ReLU with slope 0.01, as nnU-Net.
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
