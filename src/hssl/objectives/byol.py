"""BYOL (Grill et al., *Bootstrap Your Own Latent*, NeurIPS 2020).

The network predicts, from one view, what a slowly moving copy of itself makes of the other. There are no negatives.

Departures: the projector reads the deepest stage on a coarse grid, since instance normalisation leaves global average
pooling nothing of the image; the momentum is constant (published: a cosine to 1 over the run) and lower, for runs of
thousands of steps and not of a million; batch normalisation in the heads sees both views together, and one process's
images; AdamW takes the place of LARS. Views, with their occluded blocks, and schedule are those that all objectives
share.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hssl.config import StageConfig
from hssl.networks import UNet, grid_pool
from hssl.objectives.base import SPREAD, Domains, Objective, PretrainBatch, spread

GRID = 3


class BYOLOptions(StageConfig):
    """Details of the prediction.

    Attributes:
        momentum: Share of the copy that stays at each step.
        projection: Size of the projections.
        hidden: Size of the layer between, in projector and predictor.
    """

    momentum: float = Field(0.99, ge=0, lt=1)
    projection: PositiveInt = 128
    hidden: PositiveInt = 512


class BYOL(Objective):
    """Prediction of a momentum copy's projection; the decoder is not trained."""

    Options = BYOLOptions

    def __init__(self, network: UNet, domains: Domains, options: BYOLOptions) -> None:
        super().__init__(network, domains, options)
        self.momentum = options.momentum
        self.projector = _perceptron(network.channels[-1] * GRID**2, options.hidden, options.projection)
        self.predictor = _perceptron(options.projection, options.hidden, options.projection)
        self.target_encoder = copy.deepcopy(network.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``image`` (0 to 4: the mean of both directions; published is their sum), and ``watch/spread``."""
        images = torch.cat((batch.first.image, batch.second.image))
        projected = self.projector(grid_pool(network.encode(images)[-1], GRID))
        predicted = F.normalize(self.predictor(projected).float(), dim=1)
        with torch.no_grad():
            target = self.target_projector(grid_pool(self.target_encoder(images)[-1], GRID))
            target = F.normalize(target.float(), dim=1)
        other_view = target.roll(len(batch.origin.task), 0)
        return {"image": 2 - 2 * (predicted * other_view).sum(1).mean(), SPREAD: spread(projected)}

    @torch.no_grad()
    def after_step(self, network: UNet) -> None:
        """Moves the copy towards the network."""
        pairs = ((self.target_encoder, network.encoder), (self.target_projector, self.projector))
        for target, online in pairs:
            for kept, new in zip(target.parameters(), online.parameters(), strict=True):
                kept.lerp_(new, 1 - self.momentum)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )
