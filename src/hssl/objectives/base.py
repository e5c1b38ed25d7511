"""The contract of every pretext objective, and the batch that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hssl.config import StageConfig, ViewConfig
from hssl.networks import UNet
from hssl.views import View, make_view

WATCH = "watch/"
"""Before the names of values that an objective gives beside its losses: logged, and not added."""
SPREAD = f"{WATCH}spread"
"""Name of :func:`spread`; training stops where it has fallen to nearly 0."""


@dataclass(frozen=True)
class Domains:
    """What pre-training knows of the data without reading a mask.

    Attributes:
        tasks: Names of the tasks; their order gives the task numbers in a batch.
        groups: Group number of each task; all -1 until groups are found, all 0 where there are none.
    """

    tasks: tuple[str, ...]
    groups: tuple[int, ...]


class Origin(NamedTuple):
    """Where each image of a batch comes from.

    Attributes:
        task: Task number, int64 ``[B]``.
        subject: Subject number, unique over all tasks, int64 ``[B]``.
        case: Case number, unique over all tasks, int64 ``[B]``.
        slice: Index of the slice in its case, int64 ``[B]``.
        slices: Slices of its case, int64 ``[B]``; with a single one, as in a picture, `position` has no meaning.
        position: Where the slice lies in its case, 0 (first) to 1 (last), float32 ``[B]``.
        frame: Where the window lies in its slice, float32 ``[B, 2, 2]``: x before y, offset and scale; a point at w in
            [-1, 1] of the window lies at offset + scale * w, 0 and 1 being the edges of the slice.
    """

    task: Tensor
    subject: Tensor
    case: Tensor
    slice: Tensor
    slices: Tensor
    position: Tensor
    frame: Tensor


class WindowBatch(NamedTuple):
    """Windows ``[B, 1, S, S]`` float16 without masks, and where they come from."""

    window: Tensor
    origin: Origin


@dataclass(frozen=True)
class PretrainBatch:
    """Two views of each image, and where each image comes from."""

    first: View
    second: View
    origin: Origin


class Objective(nn.Module):
    """A pretext objective.

    A new one is one file with a subclass, and one line in the registry of :mod:`hssl.objectives`.
    Its parameters (heads, momentum copies) are its own; the network belongs to the training loop.

    Args:
        network: The network to be pre-trained, to size the heads by. It must not be kept as an attribute.
        domains: Tasks and groups of the data.
        options: Validated options, an instance of `Options`.
    """

    Options: ClassVar[type[StageConfig]] = StageConfig
    #: Learns from groups of tasks: the training loop finds them and calls `set_groups`.
    wants_groups: bool = False

    def __init__(self, network: UNet, domains: Domains, options: StageConfig) -> None:
        super().__init__()

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """Computes the weighted losses, whose sum is minimised.

        Args:
            network: The network in training.
            batch: Views on the network's device.

        Returns:
            Finite scalar losses by name. Names that start with `WATCH` are logged and not added.
        """
        raise NotImplementedError

    def check_domains(self, per_batch: int) -> None:
        """Checks that a batch holds images of as many tasks as the objective needs.

        Raises:
            ConfigError: The batch holds too few tasks.
        """
        return

    def after_step(self, network: UNet) -> None:
        """Called after each optimiser step; for momentum copies."""
        return

    def set_groups(self, groups: Tensor) -> None:
        """Receives the group of each task, int64 ``[tasks]``, once they are found."""
        return


def compute_losses(
    objective: Objective, network: UNet, batch: WindowBatch, patch: int, view: ViewConfig, generator: Generator
) -> dict[str, Tensor]:
    """Draws two views of each window and computes the objective's losses on them.

    Args:
        objective: The pretext objective.
        network: The network in training.
        batch: Windows on the network's device.
        patch: Side of a view in pixels.
        view: Ranges of the augmentation.
        generator: Random state on the device of the windows.
    """
    first, second = (make_view(batch.window, patch, view, generator) for _ in range(2))
    losses: dict[str, Tensor] = objective(network, PretrainBatch(first, second, batch.origin))
    return losses


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of what is minimised, without what is only watched."""
    return torch.stack([loss for name, loss in losses.items() if not name.startswith(WATCH)]).sum()


@torch.no_grad()
def spread(projections: Tensor) -> Tensor:
    """How far projections ``[B, channels]`` lie apart: about 1 if even on the sphere, 0 if all are one point."""
    value: Tensor = F.normalize(projections.float(), dim=1).std(0).mean() * projections.shape[1] ** 0.5
    return value
