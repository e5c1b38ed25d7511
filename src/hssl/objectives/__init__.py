"""Pretext objectives, one file each, by the name that configurations use."""

from __future__ import annotations

from typing import Any

from hssl.errors import ConfigError
from hssl.networks import UNet
from hssl.objectives.base import SPREAD, WATCH, Domains, Objective, PretrainBatch, total
from hssl.objectives.byol import BYOL
from hssl.objectives.genesis import Genesis
from hssl.objectives.global_local import GlobalLocal
from hssl.objectives.hierarchical import Hierarchical
from hssl.objectives.jigsaw import Jigsaw
from hssl.objectives.masked import Masked
from hssl.objectives.rotation import Rotation
from hssl.objectives.simclr import SimCLR

OBJECTIVES: dict[str, type[Objective]] = {
    "hierarchical": Hierarchical,
    "simclr": SimCLR,
    "byol": BYOL,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "genesis": Genesis,
    "global_local": GlobalLocal,
    "masked": Masked,
}


def build_objective(name: str, network: UNet, domains: Domains, options: dict[str, Any]) -> Objective:
    """The objective of that name, its options validated.

    Raises:
        ConfigError: There is no such objective, or an option is not one of its own.
    """
    kind = _kind(name)
    return kind(network, domains, kind.Options.checked(options))


def objective_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of an objective as JSON has them, its defaults too.

    Raises:
        ConfigError: There is no such objective, or an option is not one of its own.
    """
    return _kind(name).Options.checked(options).model_dump(mode="json")


def _kind(name: str) -> type[Objective]:
    if name not in OBJECTIVES:
        raise ConfigError(f"no objective '{name}'", hint=f"choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def build_rehearsed(name: str, network: UNet, task: str, options: dict[str, Any]) -> Objective:
    """The objective as an auxiliary loss on one task, with new heads.

    Raises:
        ConfigError: There is none of that name, an option is not valid, or it has nothing to ask of one task.
    """
    try:
        return build_objective(name, network, Domains((task,), (-1,)), options)
    except ConfigError as error:
        raise ConfigError(f"cannot rehearse '{name}' on one task: {error.what}", hint="rehearsal=0") from error


__all__ = [
    "OBJECTIVES",
    "SPREAD",
    "WATCH",
    "Domains",
    "Objective",
    "PretrainBatch",
    "build_objective",
    "build_rehearsed",
    "objective_options",
    "total",
]
