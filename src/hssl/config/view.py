"""Ranges of the augmentation, shared by pre-training and fine-tuning."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hssl.config.base import Fraction, StageConfig


class ViewConfig(StageConfig):
    """Ranges of the augmentation. Lengths are shares of the patch, intensities lie in [0, 1].

    Attributes:
        scale: Smallest and largest side of the region shown, relative to the patch.
        rotate: Largest rotation in degrees.
        shift: Share of the free room between region and window that a shift may use.
        flip: Probability of a flip along rows and along columns. 0 by default: left and right differ in the body.
        elastic: Standard deviation of the shift of a control point, as a share of the window.
        intensity: Probability of each of the intensity changes below.
        contrast: Largest absolute logarithm of the contrast factor.
        brightness: Largest shift.
        gamma: Largest absolute logarithm of the exponent.
        bias_field: Largest standard deviation of the logarithm of the bias field at its control points.
        blur: Largest standard deviation of the Gaussian blur, in pixels; its kernel has a radius of 3.
        noise: Largest standard deviation of the noise.
        occlusion_ratio: Share of the image that is occluded in blocks.
        occlusion_size: Side of an occluded block in pixels.
    """

    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.3)
    rotate: float = Field(20.0, ge=0, le=180)
    shift: Fraction = 1.0
    flip: tuple[Fraction, Fraction] = (0.0, 0.0)
    elastic: float = Field(0.0, ge=0, le=0.1)
    intensity: Fraction = 0.5
    contrast: float = Field(0.4, ge=0)
    brightness: float = Field(0.15, ge=0)
    gamma: float = Field(0.5, ge=0)
    bias_field: float = Field(0.3, ge=0)
    blur: float = Field(1.2, ge=0, le=1.5)
    noise: float = Field(0.06, ge=0)
    occlusion_ratio: Fraction = 0.0
    occlusion_size: PositiveInt = 8

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale is (smallest, largest)")
        return self
