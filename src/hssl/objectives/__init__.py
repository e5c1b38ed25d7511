"""Pretext objectives, one file each, by the name that configurations use."""

from __future__ import annotations

from typing import Any

from hssl.config import StageConfig
from hssl.networks import UNet
from hssl.objectives.base import (
    SPREAD,
    WATCH,
    Domains,
    Objective,
    Origin,
    PretrainBatch,
    WindowBatch,
    compute_losses,
    total,
)
from hssl.registry import OBJECTIVES


def objective_class(name: str) -> type[Objective]:
    """The objective of that name, or at that place (``module:Class``).

    Raises:
        ConfigError: There is no such objective.
    """
    return OBJECTIVES.subclass(name, Objective)


def build_objective(name: str, network: UNet, domains: Domains, options: dict[str, Any]) -> Objective:
    """The objective of that name, its options validated.

    Raises:
        ConfigError: There is no such objective, or an option is not one of its own.
    """
    return objective_class(name)(network, domains, checked_options(name, options))


def checked_options(name: str, options: dict[str, Any]) -> StageConfig:
    """All options of an objective, validated.

    Raises:
        ConfigError: There is no such objective, or an option is not one of its own.
    """
    return objective_class(name).Options.checked(options, owner=f"objective '{name}'")


__all__ = [
    "SPREAD",
    "WATCH",
    "Domains",
    "Objective",
    "Origin",
    "PretrainBatch",
    "WindowBatch",
    "build_objective",
    "checked_options",
    "compute_losses",
    "objective_class",
    "total",
]
