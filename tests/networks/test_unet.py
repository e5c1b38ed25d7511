from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from hssl.config import PRESETS, NetworkConfig
from hssl.networks import GridPoolHead, PixelHead, SegmentationNetwork, UNet, build_network, grid_pool

TINY = NetworkConfig(features=(4, 8, 8))
RESIDUAL = NetworkConfig(encoder="residual", features=(4, 8, 8), blocks=(1, 2, 1), decoder_convs=(1, 1))
# Odd shapes as nnU-Net plans them: strides and kernels of one axis only, several convolutions.
ODD = NetworkConfig(
    features=(4, 8, 8, 16),
    blocks=(1, 2, 3, 1),
    decoder_convs=(1, 2, 3),
    kernels=((1, 3), (3, 3), (5, 3), (3, 3)),
    strides=((1, 1), (1, 2), (2, 2), (3, 1)),
)


def conv(inputs: int, outputs: int, kernel: int = 9, *, bias: bool = True) -> int:
    """Parameters of a convolution and its instance normalisation."""
    return inputs * outputs * kernel + outputs * bias + 2 * outputs


def decoder(features: tuple[int, ...], convs: int) -> int:
    total = 0
    for here, below in itertools.pairwise(features):
        total += below * here * 4 + here + conv(2 * here, here) + (convs - 1) * conv(here, here)
    return total


def plain(features: tuple[int, ...]) -> int:
    """PlainConvUNet without its segmentation layers: two convolutions a stage."""
    inputs = (1, *features[:-1])
    encoder = sum(conv(before, after) + conv(after, after) for before, after in zip(inputs, features, strict=True))
    return encoder + decoder(features, 2)


def residual(features: tuple[int, ...], blocks: tuple[int, ...]) -> int:
    """ResidualEncoderUNet without its segmentation layers: stem, blocks of two, 1x1 where channels change."""
    total = conv(1, features[0])
    for before, after, count in zip((features[0], *features[:-1]), features, blocks, strict=True):
        total += conv(before, after) + conv(after, after) + (count - 1) * 2 * conv(after, after)
        if before != after:
            total += conv(before, after, 1, bias=False)
    return total + decoder(features, 1)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("small", plain((16, 32, 64, 128, 256))),
        ("base", plain((32, 64, 128, 256, 512, 512))),
        ("large", residual((32, 64, 128, 256, 512, 512), (1, 3, 4, 6, 6, 6))),
    ],
)
def test_presets_have_the_size_of_nnunet_s(preset, expected):
    with torch.device("meta"):
        assert size(UNet(NetworkConfig.model_validate(preset))) == expected


def test_small_is_about_two_million_parameters():
    assert round(plain((16, 32, 64, 128, 256)) / 1e6, 2) == 1.94
    assert set(PRESETS) == {"small", "base", "large"}


def test_plain_shapes_are_nnunet_s():
    shapes = {name: tuple(tensor.shape) for name, tensor in UNet(ODD).state_dict().items() if name.endswith("weight")}
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    assert convolutions == {
        "encoder.stages.0.0.conv.weight": (4, 1, 1, 3),
        "encoder.stages.1.0.conv.weight": (8, 4, 3, 3),
        "encoder.stages.1.1.conv.weight": (8, 8, 3, 3),
        "encoder.stages.2.0.conv.weight": (8, 8, 5, 3),
        "encoder.stages.2.1.conv.weight": (8, 8, 5, 3),
        "encoder.stages.2.2.conv.weight": (8, 8, 5, 3),
        "encoder.stages.3.0.conv.weight": (16, 8, 3, 3),
        # A decoder stage has the kernel of the encoder stage beside it; upsampling undoes the stride below.
        "decoder.transpconvs.0.weight": (16, 8, 3, 1),
        "decoder.transpconvs.1.weight": (8, 8, 2, 2),
        "decoder.transpconvs.2.weight": (8, 4, 1, 2),
        "decoder.stages.0.0.conv.weight": (8, 16, 5, 3),
        "decoder.stages.1.0.conv.weight": (8, 16, 3, 3),
        "decoder.stages.1.1.conv.weight": (8, 8, 3, 3),
        "decoder.stages.2.0.conv.weight": (4, 8, 1, 3),
        "decoder.stages.2.1.conv.weight": (4, 4, 1, 3),
        "decoder.stages.2.2.conv.weight": (4, 4, 1, 3),
    }


def test_every_convolution_has_the_parts_of_nnunet_s():
    network = UNet(TINY)
    keys = {name for name in network.state_dict() if name.startswith("encoder.stages.0.0.")}
    assert keys == {f"encoder.stages.0.0.{part}" for part in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")}
    norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert all(norm.affine and norm.eps == 1e-5 and not norm.track_running_stats for norm in norms)
    assert {module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)} == {0.01}


def test_residual_skips_as_nnunet_s():
    network = UNet(RESIDUAL)
    names = network.state_dict().keys()
    first, second = network.encoder.stages[1]
    # Fewer pixels and more channels: average pooling and a 1x1 convolution without bias.
    assert [type(layer) for layer in first.skip][:1] == [nn.AvgPool2d]
    assert first.skip[1].conv.kernel_size == (1, 1)
    assert first.skip[1].conv.bias is None
    assert isinstance(first.skip[1].act, nn.Identity)
    # Nothing changes: the skip is the identity.
    assert not list(second.skip)
    assert torch.equal(second.skip(torch.ones(1, 8, 4, 4)), torch.ones(1, 8, 4, 4))
    # Only pixels change: pooling alone.
    assert [type(layer) for layer in network.encoder.stages[2][0].skip] == [nn.AvgPool2d]
    assert not list(network.encoder.stages[0][0].skip)
    assert {"encoder.stem.0.conv.weight", "encoder.stages.1.0.conv1.conv.weight"} <= names


def test_a_residual_block_adds_its_skip():
    block = UNet(RESIDUAL).encoder.stages[1][1]
    nn.init.zeros_(block.conv2.norm.weight)
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(x), x)  # positive, so the leaky ReLU keeps it


@pytest.mark.parametrize("config", [TINY, RESIDUAL], ids=["plain", "residual"])
def test_shapes_of_every_stage(config):
    network = build_network(config)
    features = network.encode(torch.rand(2, 1, 32, 24))
    assert [tuple(part.shape) for part in features] == [(2, 4, 32, 24), (2, 8, 16, 12), (2, 8, 8, 6)]
    assert [tuple(part.shape) for part in network.decode(features)] == [(2, 8, 16, 12), (2, 4, 32, 24)]
    assert network.channels == [4, 8, 8]
    assert network.divisor == (4, 4)


def test_odd_strides_and_kernels():
    network = UNet(ODD)
    assert network.divisor == (6, 4)
    features = network.encode(torch.rand(1, 1, 12, 8))
    assert [tuple(part.shape[1:]) for part in features] == [(4, 12, 8), (8, 12, 4), (8, 6, 2), (16, 2, 2)]
    assert [tuple(part.shape[1:]) for part in network.decode(features)] == [(8, 6, 2), (8, 12, 4), (4, 12, 8)]


@pytest.mark.parametrize("config", [TINY, RESIDUAL, ODD], ids=["plain", "residual", "odd"])
def test_gradients_reach_every_parameter(config):
    network = SegmentationNetwork(UNet(config), 3)
    x = torch.rand(2, 1, 24, 24)
    kept = x.clone()
    features = network.unet.encode(x)
    copies = [part.detach().clone() for part in features]
    loss = network(x).square().mean() + sum(part.mean() for part in features)
    loss.backward()
    assert torch.equal(x, kept)
    assert all(torch.equal(part, copy) for part, copy in zip(features, copies, strict=True))
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_gradients_are_right():
    torch.manual_seed(0)
    network = UNet(RESIDUAL).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: network(image).mean(1), (x,), atol=1e-4)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["plain", "odd"])
def test_segmentation_head(config):
    torch.manual_seed(0)
    network = SegmentationNetwork(UNet(config), 5)
    x = torch.rand(2, 1, 24, 24)
    expected = 0
    for layer, features in zip(reversed(network.head), network.unet.decode(network.unet.encode(x)), strict=True):
        said = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], features) + layer.bias.view(-1, 1, 1)
        if torch.is_tensor(expected):
            said = said + torch.nn.functional.interpolate(expected, said.shape[-2:], mode="bilinear")
        expected = said
    logits = network(x)
    assert logits.shape == (2, 5, 24, 24)
    torch.testing.assert_close(logits, expected)


def test_segmentation_head_on_the_last_stage():
    network = SegmentationNetwork(UNet(TINY), 5, "last")
    x = torch.rand(2, 1, 16, 16)
    (head,) = network.head
    expected = torch.einsum("oc,bchw->bohw", head.weight[:, :, 0, 0], network.unet(x)) + head.bias.view(-1, 1, 1)
    torch.testing.assert_close(network(x), expected)


def test_a_seed_gives_the_same_network():
    torch.manual_seed(3)
    first = build_network(TINY)
    torch.manual_seed(3)
    second = build_network(TINY)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_initial_weights_are_he_normal():
    torch.manual_seed(0)
    weight = UNet(NetworkConfig(features=(32, 64, 64))).encoder.stages[1][1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 9)) ** 0.5, rel=0.02)
    biases = [module.bias for module in UNet(TINY).modules() if isinstance(module, nn.Conv2d)]
    assert not any(bias.any() for bias in biases if bias is not None)


def test_grid_pool():
    features = torch.arange(36.0).view(1, 1, 6, 6)
    assert grid_pool(features, 3).tolist() == [[3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]]
    assert grid_pool(torch.rand(2, 5, 7, 4), 3).shape == (2, 45)
    # Smaller than the grid: cells repeat.
    assert grid_pool(torch.ones(1, 2, 1, 1), 3).shape == (1, 18)


def test_heads():
    features = torch.rand(2, 8, 6, 6, requires_grad=True)
    assert GridPoolHead(8, 10, hidden=12)(features).shape == (2, 10)
    assert PixelHead(8, 3)(features).shape == (2, 3, 6, 6)
    (GridPoolHead(8, 10)(features).sum() + PixelHead(8, 3)(features).sum()).backward()
    assert features.grad is not None
