"""Rotation (Gidaris et al., *Unsupervised Representation Learning by Predicting Image Rotations*, ICLR 2018).

Which of four quarter turns was the image given?

Departures: each view gets one turn, drawn at random, where the paper shows all four turns of each image in one batch,
so that a step costs what a step of every other objective costs; the head pools on a coarse grid, since instance
normalisation leaves global average pooling nothing of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl.config import StageConfig
from hssl.networks import GridPoolHead, UNet
from hssl.objectives.base import Domains, Objective, PretrainBatch


class Rotation(Objective):
    """Cross-entropy over four turns, on the deepest stage of the encoder; the decoder is not trained."""

    def __init__(self, network: UNet, domains: Domains, options: StageConfig) -> None:
        super().__init__(network, domains, options)
        self.head = GridPoolHead(network.channels[-1], 4)

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The loss ``rotation``, and ``watch/accuracy`` (0 to 1)."""
        images = torch.cat((batch.first.clean, batch.second.clean))
        turns = torch.randint(4, (len(images),), device=images.device)
        logits = self.head(network.encode(quarter_turns(images, turns))[-1]).float()
        accuracy = (logits.detach().argmax(1) == turns).float().mean()
        return {"rotation": F.cross_entropy(logits, turns), "watch/accuracy": accuracy}


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Turns each square image ``[B, 1, P, P]`` by its own number of quarter turns, int64 ``[B]``."""
    all_four = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])
    return all_four[turns, torch.arange(len(images), device=images.device)]
