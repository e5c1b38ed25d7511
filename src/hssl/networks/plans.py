"""nnU-Net's plans: the architecture and patch size that it chose for a data set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hssl.config import NetworkConfig
from hssl.errors import ConfigError

CONFIGURATION = "2d"
_ENCODERS = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
# What our networks are built of. Classes are compared without their module.
_LAYERS: dict[str, Any] = {
    "conv_op": "Conv2d",
    "conv_bias": True,
    "norm_op": "InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
_SHAPE = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
_BLOCKS = {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}


class _Architecture(BaseModel):
    network_class_name: str
    arch_kwargs: dict[str, Any]


class _Configuration(BaseModel):
    model_config = ConfigDict(extra="ignore")

    architecture: _Architecture
    patch_size: tuple[int, int]
    normalization_schemes: list[str] = Field(min_length=1)


def read_plans(path: Path | str) -> tuple[NetworkConfig, int]:
    """The network and the patch size of configuration ``2d`` in an ``nnUNetPlans.json``.

    nnU-Net's patches may be oblong; ours are square. The side is the longer one, rounded up to a multiple of
    the network's divisor, so that nothing nnU-Net will see in one patch is cut here.

    Args:
        path: Plans as ``nnUNetv2_plan_experiment`` writes them, of a data set with one channel.

    Returns:
        The network, and the side of a patch in pixels.

    Raises:
        ConfigError: The file is no such plan, has several channels, or needs layers that our networks do not have.
    """
    path = Path(path)
    try:
        plan = _Configuration.model_validate(json.loads(path.read_bytes())["configurations"][CONFIGURATION])
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", path=path, hint="check that the file is there and may be read"
        ) from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"holds no plan with an architecture for configuration '{CONFIGURATION}'",
            path=path,
            hint="plan again with nnunetv2 2.4 or newer",
        ) from error
    if len(plan.normalization_schemes) != 1:
        raise ConfigError(
            f"is for images of {len(plan.normalization_schemes)} channels",
            path=path,
            hint="a network of hssl sees one channel",
        )
    network = _network(plan.architecture, path)
    divisor = math.lcm(*(math.prod(sides) for sides in zip(*network.strides, strict=True)))
    return network, math.ceil(max(plan.patch_size) / divisor) * divisor


def _network(architecture: _Architecture, path: Path) -> NetworkConfig:
    kind, kwargs = architecture.network_class_name.rpartition(".")[2], architecture.arch_kwargs
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        raise ConfigError(f"needs a network of the class '{kind}'", path=path, hint=f"one of {', '.join(_ENCODERS)}")
    known = {*_LAYERS, *_SHAPE, _BLOCKS[encoder]}
    for name, value in kwargs.items():
        plain = value.rpartition(".")[2] if isinstance(value, str) else value
        if name not in known or (name in _LAYERS and plain != _LAYERS[name]):
            raise ConfigError(
                f"needs {name} = {value!r}, which networks of hssl do not have",
                path=path,
                hint="plan with an unchanged planner of nnU-Net, or choose a network with --network",
            )
    if missing := sorted(known - kwargs.keys()):
        raise ConfigError(
            f"does not say '{missing[0]}' of the network", path=path, hint="plan again with nnunetv2 2.4 or newer"
        )
    stages = kwargs["n_stages"]
    values = {
        "encoder": encoder,
        "features": kwargs["features_per_stage"],
        "blocks": _each(kwargs[_BLOCKS[encoder]], stages),
        "decoder_convs": _each(kwargs["n_conv_per_stage_decoder"], stages - 1),
        "kernels": [_each(kernel, 2) for kernel in _each(kwargs["kernel_sizes"], stages)],
        "strides": [_each(stride, 2) for stride in _each(kwargs["strides"], stages)],
    }
    return NetworkConfig.checked(values, path=path)


def _each(value: Any, count: int) -> Any:
    """One number for all is that number for each, as in nnU-Net."""
    return [value] * count if isinstance(value, int) else value
