"""What is checked of batch, patch and groups before a training starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hssl.config import TrainingConfig
from hssl.errors import ConfigError
from hssl.grouping import check_group_count, given_groups
from hssl.networks import UNet


def check_batch_size(size: int, config: TrainingConfig, name: str, hint: str | None = None, *, least: int = 2) -> None:
    """Checks that every device gets the same number of images, and at least so many; `name` is for the message.

    Raises:
        ConfigError: It does not.
    """
    processes = config.devices * config.nodes
    each = f" for each of {processes} devices" if processes > 1 else ""
    if size < least * processes:
        raise ConfigError(f"{name} {size} is too small{each}", hint=hint or f"take {least * processes} or more")
    if size % processes:
        raise ConfigError(
            f"{name} {size} cannot be shared by {processes} devices", hint=f"take a multiple of {processes}"
        )


def check_patch(patch: int, network: UNet) -> None:
    """Checks that the network can halve a patch as often as it has stages, and has two pixels left to normalise.

    Raises:
        ConfigError: It cannot.
    """
    divisor = math.lcm(*network.divisor)
    if patch % divisor:
        nearest = max(round(patch / divisor), 2) * divisor  # 1 would leave a pixel
        raise ConfigError(f"patch size {patch} is not a multiple of {divisor}", hint=f"take {nearest}")
    if all(patch == each for each in network.divisor):
        raise ConfigError(f"patch size {patch} leaves the deepest stage one pixel", hint=f"take {2 * divisor}")


def check_groups(tasks: Sequence[str], groups: object) -> None:
    """Checks that groups, as they are configured, suit the tasks; a number is not looked at for fewer than 3 tasks.

    Raises:
        ConfigError: A task has no group, or there are not so many groups to find.
    """
    if isinstance(groups, dict):
        given_groups(tasks, groups)
    if isinstance(groups, int):
        check_group_count(len(tasks), groups)
