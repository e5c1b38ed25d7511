"""What fine-tuning learns from besides masks: one file each, one contract, several may be on."""

from __future__ import annotations

from typing import Any

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError
from hssl.registry import AUXILIARIES
from hssl.training.auxiliary.base import Auxiliary, AuxiliaryBatch, AuxiliaryOptions, LabelledView, Setting
from hssl.training.checks import check_batch_size


def auxiliary_class(name: str) -> type[Auxiliary]:
    """The auxiliary of that name, or at that place (``module:Class``).

    Raises:
        ConfigError: There is no such auxiliary.
    """
    return AUXILIARIES.subclass(name, Auxiliary)


def resolve_auxiliaries(config: FinetuneConfig, before: PretrainConfig | None) -> dict[str, AuxiliaryOptions]:
    """Options of each auxiliary that is on and has something to learn from, all of them spelled out.

    Args:
        config: The fine-tuning.
        before: The pre-training that it starts from; None without one.

    Raises:
        ConfigError: An option is not valid, or a batch does not suit the devices.
    """
    resolved: dict[str, AuxiliaryOptions] = {}
    for name, given in config.auxiliaries.items():
        checked = checked_options(name, given)
        try:
            options = auxiliary_class(name).resolve(checked, before)
        except ConfigError as error:
            raise ConfigError(f"auxiliary '{name}': {error.what}", hint=error.hint) from error
        if options is None or options.weight == 0:
            continue
        check_batch_size(
            options.batch_size,
            config,
            f"auxiliary '{name}': batch size",
            f"at least 2 each, or auxiliary={{{name}: false}}",
        )
        resolved[name] = options
    return resolved


def build_auxiliaries(options: dict[str, AuxiliaryOptions], setting: Setting) -> dict[str, Auxiliary]:
    """The auxiliaries of :func:`resolve_auxiliaries`.

    Raises:
        ConfigError: One does not fit what it is built for.
    """
    return {name: auxiliary_class(name)(each, setting) for name, each in options.items()}


def checked_options(name: str, given: dict[str, Any]) -> AuxiliaryOptions:
    """All options of an auxiliary, validated.

    Raises:
        ConfigError: There is no such auxiliary, or an option is not one of its own.
    """
    return auxiliary_class(name).Options.checked(given, owner=f"auxiliary '{name}'")


__all__ = [
    "Auxiliary",
    "AuxiliaryBatch",
    "AuxiliaryOptions",
    "LabelledView",
    "Setting",
    "auxiliary_class",
    "build_auxiliaries",
    "checked_options",
    "resolve_auxiliaries",
]
