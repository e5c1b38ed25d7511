"""Shape of the network, shared by pre-training and fine-tuning."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from hssl.config.base import StageConfig

HeadKind = Literal["all", "last"]


class NetworkConfig(StageConfig):
    """Shape of the U-Net, in the terms of nnU-Net's plans.

    Attributes:
        encoder: ``plain`` (nnU-Net's PlainConvUNet) or ``residual`` (its ResidualEncoderUNet).
        features: Channels per encoder stage, full resolution first.
        blocks: Convolutions (plain) or residual blocks (residual) per encoder stage.
        decoder_convs: Convolutions per decoder stage, lowest resolution first.
        kernels: Kernel size per encoder stage.
        strides: Stride on entering each encoder stage; the first is 1.
    """

    encoder: Literal["plain", "residual"] = "plain"
    features: tuple[PositiveInt, ...] = (16, 32, 64, 128, 256)
    blocks: tuple[PositiveInt, ...] = ()
    decoder_convs: tuple[PositiveInt, ...] = ()
    kernels: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    strides: tuple[tuple[PositiveInt, PositiveInt], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, str):
            if values not in PRESETS:
                raise ValueError(f"no network preset '{values}', choose one of {', '.join(PRESETS)}")
            values = dict(PRESETS[values])
        features = values.get("features", cls.model_fields["features"].default) if isinstance(values, dict) else None
        if isinstance(features, list | tuple):
            stages = len(features)
            values = {
                "blocks": (2,) * stages,
                "decoder_convs": (2,) * (stages - 1),
                "kernels": ((3, 3),) * stages,
                "strides": ((1, 1),) + ((2, 2),) * (stages - 1),
                **values,
            }
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = len(self.features)
        lengths = (len(self.blocks), len(self.decoder_convs) + 1, len(self.kernels), len(self.strides))
        if stages < 3 or any(length != stages for length in lengths):
            raise ValueError("a network needs at least 3 stages, and one entry for each stage in every list")
        if self.strides[0] != (1, 1):
            raise ValueError("the first stride must be (1, 1): the decoder ends at the first stage's resolution")
        if any(side % 2 == 0 for kernel in self.kernels for side in kernel):
            raise ValueError("kernel sizes must be odd")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    # About 1.9 M parameters: trains on a CPU.
    "small": {"features": (16, 32, 64, 128, 256)},
    # nnU-Net's own 2D shapes, six stages so that any multiple of 32 is a patch size.
    "base": {"features": (32, 64, 128, 256, 512, 512)},
    "large": {
        "encoder": "residual",
        "features": (32, 64, 128, 256, 512, 512),
        "blocks": (1, 3, 4, 6, 6, 6),
        "decoder_convs": (1, 1, 1, 1, 1),
    },
}
