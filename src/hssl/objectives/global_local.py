"""Global and local contrast (Chaitanya et al., *Contrastive learning of global and local features for medical image
segmentation with limited annotations*, NeurIPS 2020).

Global, on the encoder: volumes are cut into a few partitions along the slice axis. Slices in the same partition, of
whatever volume, attract each other; those of other partitions repel. Local, on the decoder's coarse stages: a small
region attracts itself in the other view and repels the image's other regions.

Departures: volumes are aligned within a task only, so both sides of the global contrast stay within it. Pictures, which
are no slices of a volume, attract those of their own subject. Encoder and
decoder are trained at the same time, the decoder on detached features, where the paper trains one after the other. The
two views differ in geometry too, and regions are found again through their maps. Regions lie at random, and those that
overlap do not repel each other. The global head pools on a coarse grid, since instance normalisation leaves global
average pooling nothing of the image. Views, with their occluded blocks, and schedule are those of all objectives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from hssl.config import StageConfig
from hssl.distributed import gather, rank
from hssl.errors import ConfigError
from hssl.networks import GridPoolHead, PixelHead, UNet
from hssl.objectives.base import SPREAD, Domains, Objective, PretrainBatch, spread
from hssl.objectives.points import draw_points
from hssl.views import map_points

REGION = 3
"""Features on a side of a region."""
NEVER = -1e4
"""Logit of a pair that does not count; finite, so that a row without negatives has a gradient of 0."""


class GlobalLocalOptions(StageConfig):
    """Details of both contrasts.

    Attributes:
        partitions: Parts of a volume along its slices.
        local_stage: Resolution of the local contrast: the decoder stage beside this encoder stage.
        regions: Regions of an image.
        temperature: Of both contrasts.
        projection: Size of the projections.
    """

    partitions: PositiveInt = 4
    local_stage: int = Field(2, ge=0)
    regions: PositiveInt = 16
    temperature: PositiveFloat = 0.1
    projection: PositiveInt = 128


class GlobalLocal(Objective):
    """Contrast of slices by their place in the volume, and of regions by their place in the slice.

    Raises:
        ConfigError: The network has no such stage.
    """

    Options = GlobalLocalOptions

    def __init__(self, network: UNet, domains: Domains, options: GlobalLocalOptions) -> None:
        super().__init__(network, domains, options)
        last = len(network.channels) - 2
        if options.local_stage > last:
            raise ConfigError(
                f"option 'local_stage': this network's decoder has stages 0 to {last}",
                hint=f"take {last} or less, or a deeper network",
            )
        self.options = options
        self.global_head = GridPoolHead(network.channels[-1], options.projection)
        self.local_head = PixelHead(network.channels[options.local_stage], options.projection)

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """The losses ``global`` and ``local``, and ``watch/spread`` of the global projections."""
        features = network.encode(torch.cat((batch.first.image, batch.second.image)))
        projected = F.normalize(self.global_head(features[-1]).float(), dim=1)
        decoded = network.decode([stage.detach() for stage in features])
        regions = self.local_head(decoded[-1 - self.options.local_stage]).float()
        partition = (batch.origin.position * self.options.partitions).long().clamp(max=self.options.partitions - 1)
        partition = torch.where(batch.origin.slices > 1, partition, self.options.partitions + batch.origin.subject)
        temperature = self.options.temperature
        # In bf16 a coordinate would be off by a quarter of a pixel.
        with torch.autocast(projected.device.type, enabled=False):
            points, real = draw_points(batch.first, batch.origin.frame, self.options.regions)
            there = map_points(points, batch.first.theta, batch.second.theta)
            seen = real & (there.abs() < 1).all(-1)
            first, second = regions.chunk(2)
            return {
                "global": global_contrast(projected, batch.origin.task.repeat(2), partition.repeat(2), temperature),
                "local": local_contrast(first, second, points, there, seen, temperature),
                SPREAD: spread(projected),
            }


def global_contrast(projected: Tensor, task: Tensor, partition: Tensor, temperature: float) -> Tensor:
    """Contrast of partitions: each positive against the negatives alone, so that positives do not repel each other.

    Args:
        projected: Normalised projections of this rank's views, float32 ``[R, D]``.
        task: Task of each view, int64 ``[R]``.
        partition: Partition of each view, int64 ``[R]``; each is shared by another view at least.
        temperature: Of the similarities.

    Returns:
        The mean over positives, then over this rank's views.
    """
    logits = projected @ gather(projected).T / temperature
    same_task = task[:, None] == gather(task)[None]
    same_place = same_task & (partition[:, None] == gather(partition)[None])
    negatives = logits.masked_fill(~same_task | same_place, NEVER).logsumexp(1, keepdim=True)
    here = torch.arange(len(task), device=task.device) + rank() * len(task)
    positive = same_place & (here[:, None] != torch.arange(same_place.shape[1], device=task.device))
    return (F.softplus(negatives - logits).masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()


def local_contrast(
    first: Tensor, second: Tensor, here: Tensor, there: Tensor, seen: Tensor, temperature: float
) -> Tensor:
    """Contrast of the regions of each image, over both views; regions that are not `seen` count nothing, and
    those that overlap in the first view are no negatives of each other.

    Args:
        first: Features of the first view, float32 ``[B, D, H, W]``.
        second: Features of the second view.
        here: Centres of the regions in the first view, ``[B, K, 2]`` in [-1, 1], x before y.
        there: The same places in the second view.
        seen: Regions within the slice that both views show, bool ``[B, K]``.
        temperature: Of the similarities.
    """
    count, regions = here.shape[:2]
    seen = seen.repeat(1, 2)
    vectors = F.normalize(torch.cat((_regions(first, here), _regions(second, there)), 1), dim=-1)
    logits = vectors @ vectors.mT / temperature
    itself = torch.eye(2 * regions, dtype=torch.bool, device=here.device)
    positive = itself.roll(regions, 1)
    across, down = (here[:, :, None] - here[:, None]).abs().unbind(-1)
    rows, columns = first.shape[-2:]
    overlapping = ((across < REGION * 2 / columns) & (down < REGION * 2 / rows)).repeat(1, 2, 2)
    logits = logits.masked_fill(itself | ~seen[:, None] | (overlapping & ~positive), NEVER)
    pair = torch.arange(2 * regions, device=here.device).roll(regions).expand(count, -1)
    loss = F.cross_entropy(logits.flatten(0, 1), pair.flatten(), reduction="none")
    weight = seen.flatten().float()
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def _regions(features: Tensor, centres: Tensor) -> Tensor:
    # Means around each centre, [B, K, D].
    means = F.avg_pool2d(features, REGION, stride=1, padding=REGION // 2, count_include_pad=False)
    return F.grid_sample(means, centres[:, None], padding_mode="border", align_corners=False)[:, :, 0].mT
