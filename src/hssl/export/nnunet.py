"""Encoder and decoder as the file that nnU-Net takes with ``-pretrained_weights``.

nnU-Net reads it with ``torch.load``: a pickle, the one that we write, because it is that program's format. It
holds tensors, numbers, text, lists and mappings only, so ``torch.load(..., weights_only=True)`` reads it too.

The same file carries ``nnssl_adaptation_plan``, by which newer versions of nnU-Net build the network and load the
encoder of a checkpoint made by nnssl.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hssl.config import NetworkConfig
from hssl.files import refuse_existing, replacing
from hssl.runs import load_unet

_NUMBER_IN_BLOCK = {"conv": 0, "norm": 1}  # of a layer in `all_modules`, the alias of each block's layers
_CLASSES = {"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}
_IMPORTED = {
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
}


def write_nnunet(run: Path | str, output: Path) -> Path:
    """Writes encoder and decoder of a run for ``nnUNetv2_train ... -pretrained_weights``.

    The target's plan must have this very architecture: pre-train with ``--plans``. Segmentation heads are left
    out, for nnU-Net starts its own.

    Args:
        run: A complete run folder of pre-training or fine-tuning.
        output: The file, usually ``.pth``.

    Returns:
        `output`.

    Raises:
        ConfigError: `output` already exists.
        RunError: `run` is not a complete run.
    """
    refuse_existing(output)
    network, opened = load_unet(run)
    content = {
        "network_weights": nnunet_weights(network.state_dict(), network.config),
        "nnssl_adaptation_plan": adaptation_plan(network.config, opened.config.patch_size),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary, temporary.open("wb") as file:  # given a path, torch would write its name too
        torch.save(content, file)
    return output


def nnunet_weights(weights: dict[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """The weights of a U-Net under all names that nnU-Net has for them.

    nnU-Net registers each layer of a block twice and the encoder once more inside the decoder, and its loader
    asks for every name. Tensors are shared, so the file is no larger for that.

    Args:
        weights: The state dict of :class:`hssl.networks.UNet`.
        config: Shape of that network.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        first = _renamed(key, config)
        alias = re.sub(r"\.(conv|norm)(?=\.\w+$)", lambda match: f".all_modules.{_NUMBER_IN_BLOCK[match[1]]}", first)
        for name in dict.fromkeys((first, alias)):  # transposed convolutions are in no block
            named[name] = tensor
            if name.startswith("encoder."):
                named[f"decoder.{name}"] = tensor
    return named


def _renamed(key: str, config: NetworkConfig) -> str:
    """Our name of a tensor to nnU-Net's first name of it."""
    block = r"\1.0.convs.\2" if config.encoder == "plain" else r"\1.blocks.\2"
    key = re.sub(r"^(encoder\.stages\.\d+)\.(\d+)", block, key)
    key = re.sub(r"^(decoder\.stages\.\d+)\.(\d+)", r"\1.convs.\2", key)
    return re.sub(r"^(encoder\.stem)\.(\d+)", r"\1.convs.\2", key)


def adaptation_plan(config: NetworkConfig, patch_size: int) -> dict[str, Any]:
    """What nnssl writes beside its weights, as far as nnU-Net reads it.

    Args:
        config: Shape of the network.
        patch_size: Side of the patches of pre-training, in pixels.
    """
    stem = "encoder.stages.0" if config.encoder == "plain" else "encoder.stem"
    first = f"{stem}.0.convs.0" if config.encoder == "plain" else f"{stem}.convs.0"
    kwargs = architecture_kwargs(config)
    patch = [patch_size, patch_size]
    return {
        "architecture_plans": {
            "arch_class_name": f"dynamic_network_architectures.architectures.unet.{_CLASSES[config.encoder]}",
            "arch_kwargs": kwargs,
            "arch_kwargs_requiring_import": list(_IMPORTED),
        },
        "architecture_kwargs": kwargs,
        # No spacing of its own: nnU-Net then keeps the one that it planned for its data set.
        "pretrain_plan": {"configurations": {"2d": {"spacing": None, "patch_size": patch}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{first}.conv", f"{first}.all_modules.0"],
        "key_to_lpe": None,
    }


def architecture_kwargs(config: NetworkConfig) -> dict[str, Any]:
    """A network in the terms of nnU-Net's plans (``arch_kwargs``); :func:`hssl.networks.plans.read_plans` reads it."""
    return {
        "n_stages": len(config.features),
        "features_per_stage": list(config.features),
        "kernel_sizes": [list(kernel) for kernel in config.kernels],
        "strides": [list(stride) for stride in config.strides],
        "n_conv_per_stage" if config.encoder == "plain" else "n_blocks_per_stage": list(config.blocks),
        "n_conv_per_stage_decoder": list(config.decoder_convs),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **_IMPORTED,
    }
