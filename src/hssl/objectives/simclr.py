"""SimCLR (Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020).

Two views of an image attract each other, all other images of the batch repel. This is the image level of the hierarchy
alone, and as published every image is a negative, also a neighbouring slice and an image of another task.

Departures: the head pools on a coarse grid, since instance normalisation leaves global average pooling nothing of the
image; batches are far smaller, and AdamW takes the place of LARS. Views, with their occluded blocks, and schedule are
those that all objectives share.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from hssl.config import StageConfig
from hssl.networks import GridPoolHead, UNet
from hssl.objectives.base import SPREAD, Domains, Objective, PretrainBatch, spread
from hssl.objectives.ntxent import nt_xent


class SimCLROptions(StageConfig):
    """Details of the contrast.

    Attributes:
        temperature: Of the similarities.
        projection: Size of the projections.
    """

    temperature: PositiveFloat = 0.1
    projection: PositiveInt = 128


class SimCLR(Objective):
    """NT-Xent on the deepest stage of the encoder; the decoder is not trained."""

    Options = SimCLROptions

    def __init__(self, network: UNet, domains: Domains, options: SimCLROptions) -> None:
        super().__init__(network, domains, options)
        self.temperature = options.temperature
        self.head = GridPoolHead(network.channels[-1], options.projection)

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``image``, and ``watch/spread`` of the projections."""
        features = network.encode(torch.cat((batch.first.image, batch.second.image)))
        first, second = self.head(features[-1]).float().chunk(2)
        return {"image": nt_xent(first, second, self.temperature), SPREAD: spread(first)}
