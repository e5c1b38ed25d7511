"""The losses of pre-training, kept on while fine-tuning, on all training scans of the task.

The network keeps what it has learned without masks, and learns more of it on the scans of the task. (Known as an
auxiliary self-supervised loss, and in continual learning as rehearsal.)
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from hssl.config import PretrainConfig, ViewConfig
from hssl.errors import ConfigError
from hssl.networks import SegmentationNetwork
from hssl.objectives import WATCH, Domains, build_objective, checked_options, compute_losses
from hssl.training.auxiliary.base import Auxiliary, AuxiliaryBatch, AuxiliaryOptions, Setting


class PretextOptions(AuxiliaryOptions):
    """Options of the pretext auxiliary.

    Attributes:
        weight: Weight of the pretext losses.
        batch_size: Windows a step, over all devices; each is seen in two views.
        objective: Pretext objective; None is that of the pre-training to start from, and none from scratch.
        options: Options of the objective; None is those of the pre-training, or its defaults.
        view: Ranges of the augmentation; None is those of the pre-training, or its defaults.
    """

    weight: NonNegativeFloat = 0.3
    batch_size: PositiveInt = 4
    objective: str | None = None
    options: dict[str, Any] | None = None
    view: ViewConfig | None = Field(None)

    def after(self, before: PretrainConfig | None) -> Self | None:
        """The options with those of the pre-training in place of None; None without an objective."""
        if self.objective is None and before is None:
            return None
        same = before is not None and self.objective in (None, before.objective)
        start = before if before is not None and same else PretrainConfig.checked({"objective": self.objective})
        options = start.options if self.options is None else self.options
        given = {
            "objective": start.objective,
            "options": checked_options(start.objective, options).model_dump(mode="json"),
            "view": start.view if self.view is None else self.view,
        }
        return self.model_copy(update=given)


class Pretext(Auxiliary):
    """A pretext objective with new heads: those of pre-training were thrown away.

    Raises:
        ConfigError: There is no such objective, or it cannot learn from a single task.
    """

    Options = PretextOptions

    def __init__(self, options: PretextOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.patch_size, self.view = setting.config.patch_size, options.view or ViewConfig()
        self.name = str(options.objective)
        domains = Domains((setting.config.task,), (-1,))
        try:
            self.objective = build_objective(self.name, setting.network.unet, domains, options.options or {})
        except ConfigError as error:
            raise ConfigError(
                f"auxiliary 'pretext' cannot use '{self.name}' on one task: {error.what}",
                hint="switch it off: auxiliary={pretext: false}",
            ) from error

    @classmethod
    def resolve(cls, options: PretextOptions, before: PretrainConfig | None) -> PretextOptions | None:
        """The options with those of the pre-training `before`; None without an objective."""
        return options.after(before)

    def forward(self, network: SegmentationNetwork, batch: AuxiliaryBatch) -> dict[str, Tensor]:
        """The objective's losses on two views of each window."""
        losses = compute_losses(
            self.objective, network.unet, batch.windows, self.patch_size, self.view, batch.generator
        )
        return {name: loss for name, loss in losses.items() if not name.startswith(WATCH)}

    def after_step(self, network: SegmentationNetwork) -> None:
        """Lets the objective move its copies."""
        self.objective.after_step(network.unet)

    def describe(self) -> str:
        """Names the objective."""
        return f"losses of '{self.name}'"
