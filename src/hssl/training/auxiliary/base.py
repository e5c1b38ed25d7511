"""The contract of every auxiliary: what fine-tuning learns from besides masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pydantic import NonNegativeFloat, PositiveInt
from torch import Generator, Tensor, nn

from hssl.config import FinetuneConfig, PretrainConfig, StageConfig
from hssl.networks import SegmentationNetwork
from hssl.objectives import WindowBatch
from hssl.store import Store


class AuxiliaryOptions(StageConfig):
    """Options that every auxiliary has.

    Attributes:
        weight: Weight of its losses beside those of the masks.
        batch_size: Windows without masks a step, over all devices.
    """

    weight: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 4


@dataclass(frozen=True)
class Setting:
    """What an auxiliary is built for.

    Attributes:
        config: The fine-tuning.
        before: The pre-training that the network starts from; None without one.
        network: The segmentation network, to size heads by. It must not be kept as an attribute.
        store: The aggregated data.
        labelled: Subjects whose masks may be read.
    """

    config: FinetuneConfig
    before: PretrainConfig | None
    network: SegmentationNetwork
    store: Store
    labelled: Sequence[str]


class LabelledView(NamedTuple):
    """The augmented patches with masks of a step.

    Attributes:
        image: What the network sees, float32 ``[B, 1, P, P]``.
        label: Class of each pixel, int64 ``[B, P, P]``; :data:`hssl.metrics.IGNORE` where it is not labelled.
    """

    image: Tensor
    label: Tensor


class AuxiliaryBatch(NamedTuple):
    """What an auxiliary is given in a step.

    Attributes:
        labelled: The patches with masks of this step, as the network has seen them.
        windows: Windows of training subjects without masks, on the network's device.
        average: The moving average of the network's weights, without gradient; the network itself where there is none.
        step: Steps taken before.
        generator: Random state on the network's device; it depends on the seed and the step alone.
    """

    labelled: LabelledView
    windows: WindowBatch
    average: SegmentationNetwork
    step: int
    generator: Generator


class Auxiliary(nn.Module):
    """Losses on images without masks, beside those on masks.

    A new one is one file with a subclass, and one line in :data:`hssl.registry.AUXILIARIES`. Its parameters and
    buffers are saved in the checkpoint under its name.

    Args:
        options: Validated options, an instance of `Options`.
        setting: What it is built for.
    """

    Options: ClassVar[type[AuxiliaryOptions]] = AuxiliaryOptions

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__()

    @classmethod
    def resolve(cls, options: Any, before: PretrainConfig | None) -> Any:
        """The options with what they take from the pre-training `before`; None where there is nothing to learn.

        Raises:
            ConfigError: The options do not fit.
        """
        return options

    def forward(self, network: SegmentationNetwork, batch: AuxiliaryBatch) -> dict[str, Tensor]:
        """Computes the losses of a step, weighted among each other.

        Args:
            network: The network in training.
            batch: Patches with masks, windows without, the average of the weights, step and random state.

        Returns:
            Finite scalar losses by name. Names that start with :data:`hssl.objectives.WATCH` are logged and not added.
        """
        raise NotImplementedError

    def after_step(self, network: SegmentationNetwork) -> None:
        """Called after each optimiser step."""
        return

    def describe(self) -> str:
        """What it does, in one line for the log, after its name and a colon."""
        return ""
