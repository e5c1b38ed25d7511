"""Hierarchical self-supervised learning: one question for each depth of the network.

From the abstract of Zheng et al. (MICCAI 2021, arXiv 2107.04886) come the aggregated domains and the combination of a
contrastive loss with classification losses in a hierarchy, on an encoder-decoder. Which question sits where, and
every formula below, are choices of this project (docs/method.md).

===========  ==========================================  ===================================  ================
level        question                                    loss                                 where
===========  ==========================================  ===================================  ================
group        which family of domains is this?            cross-entropy                        shallow encoder
task         which challenge does it come from?          cross-entropy                        middle encoder
image        which other image shows the same place?     NT-Xent, same task, graded by place  deepest encoder
position     where in the scan is this point?            smooth L1 on slice, row and column   coarse decoder
local        where in the other view is this point?      NT-Xent over points of one image     coarse decoder
cluster      which cluster of position and brightness?   cross-entropy over clusters          all of the decoder
restoration  what was here before it was disturbed?      smooth L1, occluded blocks and all   full resolution
===========  ==========================================  ===================================  ================
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from hssl.config import StageConfig
from hssl.distributed import gather
from hssl.errors import ConfigError
from hssl.networks import GridPoolHead, PixelHead, PointHead, UNet, at_points
from hssl.objectives.base import SPREAD, Domains, Objective, PretrainBatch, spread
from hssl.objectives.codebook import Codebooks
from hssl.objectives.ntxent import near_neighbours, nt_xent
from hssl.objectives.points import draw_points
from hssl.views import View, map_points

Level = Literal["group", "task", "image", "position", "local", "cluster", "restoration"]
WEIGHTS: dict[Level, float] = {
    "group": 0.05,
    "task": 0.05,
    "image": 0.1,
    "position": 1.0,
    "local": 0.1,
    "cluster": 1.0,
    "restoration": 10.0,
}
BRIGHTNESS = (1.5, 1.0)
"""Weight of a pixel's brightness, of its near and of its wider surroundings, beside 1 for each coordinate."""


class HierarchicalOptions(StageConfig):
    """Weight, place and details of each level.

    Attributes:
        weights: Weight of each level; 0 switches it off, and so does leaving it out of a mapping that is given.
        group_stage: Encoder stage of the group level (0 is full resolution).
        task_stage: Encoder stage of the task level.
        position_stage: Resolution of the position level: the decoder stage beside this encoder stage.
        local_stage: Resolution of the local level: the decoder stage beside this encoder stage.
        temperature: Of the image level.
        local_temperature: Of the local level.
        projection: Size of the contrastive projections.
        neighbours: Slices of one case this near are not negatives.
        position_affinity: Weight of slices of other subjects at the same place as positives; 0 gives NT-Xent.
        position_width: How near such a slice must be: standard deviation in relative position (0 to 1).
        local_points: Points per image of the local level.
        min_distance: Points nearer than this (share of the patch side) are not negatives of each other.
        clusters: Clusters of each task, by place and brightness.
        cluster_points: Points per image of the cluster level.
        visible: Weight of the pixels that were not occluded, in the restoration level; occluded ones have 1.
    """

    weights: dict[Level, NonNegativeFloat] = Field(default=WEIGHTS, validate_default=True)
    group_stage: int = Field(1, ge=0)
    task_stage: int = Field(3, ge=0)
    position_stage: int = Field(2, ge=0)
    local_stage: int = Field(2, ge=0)
    temperature: PositiveFloat = 0.1
    local_temperature: PositiveFloat = 0.1
    projection: PositiveInt = 128
    neighbours: int = Field(3, ge=0)
    position_affinity: NonNegativeFloat = 0.5
    position_width: PositiveFloat = 0.05
    local_points: PositiveInt = 64
    min_distance: NonNegativeFloat = 0.08
    clusters: PositiveInt = 64
    cluster_points: PositiveInt = 512
    visible: NonNegativeFloat = 0.5


class Hierarchical(Objective):
    """The sum of the levels; see the table at the head of this file.

    Args:
        network: The network to be pre-trained.
        domains: Tasks and groups; with one task, the group and task levels have no question and are off, and so is
            the group level with one group.
        options: Weights and details.

    Raises:
        ConfigError: A level is put on a stage that the network does not have, or no level is on.
    """

    Options = HierarchicalOptions

    def __init__(self, network: UNet, domains: Domains, options: HierarchicalOptions) -> None:
        super().__init__(network, domains, options)
        self.options = options
        tasks, channels = len(domains.tasks), network.channels
        deepest = {
            "group_stage": len(channels) - 1,
            "task_stage": len(channels) - 1,
            "position_stage": len(channels) - 2,
            "local_stage": len(channels) - 2,
        }
        self.weights: dict[str, float] = {level: options.weights.get(level, 0.0) for level in WEIGHTS}
        if set(domains.groups) == {0}:
            self.weights["group"] = 0.0
        if tasks < 2:
            self.weights["group"] = self.weights["task"] = 0.0
        if not any(self.weights.values()):
            raise ConfigError("option 'weights': no level is on", hint="levels that are not named are off; name one")
        stage = {name: getattr(options, name) for name in deepest}
        for name, last in deepest.items():
            if stage[name] > last and self.weights[name.removesuffix("_stage")]:
                raise ConfigError(
                    f"option '{name}': this network has stages 0 to {last} there",
                    hint=f"take {last} or less, or a deeper network",
                )
            # A level that is off still has a head, so that weights drawn after it stay the same.
            stage[name] = min(stage[name], last)
        self.wants_groups = bool(self.weights["group"])
        self.group_of_task: Tensor
        self.register_buffer("group_of_task", torch.tensor(domains.groups, dtype=torch.int64))
        # As many outputs as tasks: there are never more groups, and the shape holds when they are found later.
        self.group_head = GridPoolHead(channels[stage["group_stage"]], tasks)
        self.task_head = GridPoolHead(channels[stage["task_stage"]], tasks)
        self.image_head = GridPoolHead(channels[-1], options.projection)
        self.position_head = PixelHead(channels[stage["position_stage"]], 3 * tasks)
        self.local_head = PixelHead(channels[stage["local_stage"]], options.projection)
        self.cluster_head = PointHead(channels[-2::-1], tasks, options.clusters)
        self.codebooks = Codebooks(tasks, options.clusters, 3 + len(BRIGHTNESS))
        self.restoration_head = PixelHead(channels[0], 1, hidden=channels[0])
        # What the codebooks learn from, after the step.
        self.described: tuple[Tensor, Tensor, Tensor] | None = None

    def check_domains(self, per_batch: int) -> None:
        """The group and task levels need images of two tasks: they remove what all images of a batch share.

        Raises:
            ConfigError: A batch holds images of one task.
        """
        if per_batch < 2 and (self.weights["group"] or self.weights["task"]):
            raise ConfigError(
                "with domains_per_batch 1 the group and task levels cannot tell tasks apart",
                hint="take 2 or more, or switch these levels off (options.weights)",
            )

    def set_groups(self, groups: Tensor) -> None:
        """Receives the group of each task, int64 ``[tasks]``, once they are found."""
        self.group_of_task.copy_(groups)

    def after_step(self, network: UNet) -> None:
        """Moves the centres of the cluster level to the pixels of the step."""
        if self.described is not None:
            self.codebooks.learn(*self.described)
            self.described = None

    def forward(self, network: UNet, batch: PretrainBatch) -> dict[str, Tensor]:
        """Weighted losses of the levels that are on, and ``watch/spread`` and ``watch/cluster``."""
        count = len(batch.origin.task)
        features = network.encode(torch.cat((batch.first.image, batch.second.image)))
        losses: dict[str, Tensor] = {}
        if self.weights["group"]:
            # Group -1 is "not found yet": such rows count 0.
            group = self.group_of_task[batch.origin.task].repeat(2)
            logits = self.group_head(features[self.options.group_stage]).float()
            losses["group"] = F.cross_entropy(logits, group, ignore_index=-1, reduction="sum") / len(group)
        if self.weights["task"]:
            logits = self.task_head(features[self.options.task_stage]).float()
            losses["task"] = F.cross_entropy(logits, batch.origin.task.repeat(2))
        if self.weights["image"]:
            first, second = self.image_head(features[-1]).float().split(count)
            losses["image"] = self._image_loss(first, second, batch)
            losses[SPREAD] = spread(first)
        if any(self.weights[level] for level in ("position", "local", "cluster", "restoration")):
            decoded = network.decode(features)
            if self.weights["position"]:
                first, second = self.position_head(decoded[-1 - self.options.position_stage]).float().split(count)
                losses["position"] = (
                    self._position_loss(first, batch.first, batch) + self._position_loss(second, batch.second, batch)
                ) / 2
            if self.weights["local"]:
                first, second = self.local_head(decoded[-1 - self.options.local_stage]).split(count)
                # In bf16 a coordinate would be off by a quarter of a pixel.
                with torch.autocast(first.device.type, enabled=False):
                    losses["local"] = self._local_loss(first, second, batch)
            if self.weights["cluster"]:
                with torch.autocast(batch.origin.task.device.type, enabled=False):
                    losses["cluster"], losses["watch/cluster"] = self._cluster_loss(decoded, batch)
            if self.weights["restoration"]:
                first, second = self.restoration_head(decoded[-1]).float().split(count)
                losses["restoration"] = (
                    self._restoration_loss(first, batch.first) + self._restoration_loss(second, batch.second)
                ) / 2
        return {name: loss * self.weights.get(name, 1.0) for name, loss in losses.items()}

    def _image_loss(self, first: Tensor, second: Tensor, batch: PretrainBatch) -> Tensor:
        # Images of other tasks are too easy: as negatives they would teach nothing.
        other_task = batch.origin.task[:, None] != gather(batch.origin.task)[None]
        ignore = other_task | near_neighbours(batch.origin.case, batch.origin.slice, self.options.neighbours)
        other_subject = batch.origin.subject[:, None] != gather(batch.origin.subject)[None]
        apart = batch.origin.position[:, None] - gather(batch.origin.position)[None]
        several = (batch.origin.slices > 1)[:, None] & (gather(batch.origin.slices) > 1)[None]
        same_position = torch.exp(-0.5 * (apart / self.options.position_width) ** 2) * other_subject * several
        affinity = self.options.position_affinity * same_position
        return nt_xent(first, second, self.options.temperature, ignore=ignore, affinity=affinity)

    def _position_loss(self, found: Tensor, view: View, batch: PretrainBatch) -> Tensor:
        count, _, rows, columns = found.shape
        # Scans of one task are acquired in the same way, those of two are not: each task has its own coordinates.
        found = found.view(count, -1, 3, rows, columns)[torch.arange(count, device=found.device), batch.origin.task]
        positions = _positions(view, batch)
        target = F.adaptive_avg_pool2d(positions, (rows, columns))
        error = F.smooth_l1_loss(found, target, beta=0.05, reduction="none").mean(1)
        # Beyond the edge of the slice there is nothing to be found.
        seen = F.adaptive_avg_pool2d(_inside(positions, view)[:, None].float(), (rows, columns))[:, 0] > 0.5
        weight = seen.float()
        return (error * weight).sum() / weight.sum().clamp(min=1)

    def _local_loss(self, first: Tensor, second: Tensor, batch: PretrainBatch) -> Tensor:
        count, points = len(first), self.options.local_points
        here, real = draw_points(batch.first, batch.origin.frame, points)
        there = map_points(here, batch.first.theta, batch.second.theta)
        seen = real & (there.abs() < 1).all(-1)
        left = F.normalize(at_points(first, here), dim=-1)
        right = F.normalize(at_points(second, there), dim=-1)
        logits = left @ right.mT / self.options.local_temperature
        apart = torch.cdist(here, here) / 2
        # Points that the second view does not show, or that lie beyond the slice, are no negatives.
        left_out = (apart < self.options.min_distance) | ~seen[:, None, :] | ~seen[:, :, None]
        left_out = left_out & ~torch.eye(points, dtype=torch.bool, device=first.device)
        logits = logits.masked_fill(left_out, float("-inf"))
        target = torch.arange(points, device=first.device).expand(count, -1)
        forth = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        back = F.cross_entropy(logits.mT.flatten(0, 1), target.flatten(), reduction="none")
        weight = seen.flatten().float()
        return ((forth + back) / 2 * weight).sum() / weight.sum().clamp(min=1)

    def _cluster_loss(self, decoded: list[Tensor], batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        views, task = (batch.first, batch.second), batch.origin.task.repeat(2)
        positions = torch.cat([_positions(view, batch) for view in views])
        real = torch.cat([_inside(each, view) for each, view in zip(positions.chunk(2), views, strict=True)])
        clean = torch.cat([view.clean for view in views])
        near = _smooth(clean, real, 3)
        fine, coarse = BRIGHTNESS
        described = torch.cat((positions, fine * near, coarse * _smooth(near, real, 5)), 1).flatten(2).mT
        side = near.shape[-1]
        chosen = torch.randint(side**2, (len(task), self.options.cluster_points), device=task.device)
        described = described.gather(1, chosen[..., None].expand(-1, -1, described.shape[2]))
        seen = real.flatten(1).gather(1, chosen)
        cluster = self.codebooks(described, task)
        self.described = (described, task, seen)
        points = (torch.stack((chosen % side, chosen // side), -1) + 0.5) * (2 / side) - 1
        logits = self.cluster_head(decoded, points, task)
        weight = seen.float() / seen.sum().clamp(min=1)
        losses = F.cross_entropy(logits.flatten(0, 1), cluster.flatten(), reduction="none").view_as(weight)
        return (losses * weight).sum(), ((logits.detach().argmax(-1) == cluster) * weight).sum()

    def _restoration_loss(self, restored: Tensor, view: View) -> Tensor:
        error = F.smooth_l1_loss(restored, view.clean, beta=0.1, reduction="none")
        weight = torch.where(view.occluded, 1.0, self.options.visible)
        return (error * weight).sum() / weight.sum().clamp(min=1)


def _positions(view: View, batch: PretrainBatch) -> Tensor:
    """Relative column, row and slice of each pixel of a view in its scan, ``[B, 3, P, P]``; 0 and 1 are the edges."""
    grid = view.grid.permute(0, 3, 1, 2)
    inside = batch.origin.frame[:, :, 0, None, None] + batch.origin.frame[:, :, 1, None, None] * grid
    return torch.cat((inside, batch.origin.position.view(-1, 1, 1, 1).expand(-1, 1, *grid.shape[2:])), 1)


def _inside(positions: Tensor, view: View) -> Tensor:
    """Which pixels of a view lie within the slice and within the window that was read, bool ``[B, P, P]``.

    Beyond the window nothing was read, though the slice may continue there.
    """
    in_slice = ((positions[:, :2] > 0) & (positions[:, :2] < 1)).all(1)
    return in_slice & (view.grid.abs() < 1).all(-1)


def _smooth(image: Tensor, real: Tensor, side: int) -> Tensor:
    """Two box filters of `side` pixels over the `real` ones alone, about a Gaussian of 0.4 times that.

    Args:
        image: ``[B, 1, P, P]``.
        real: Pixels that count, bool ``[B, P, P]``.
        side: Side of a box in pixels, odd.
    """
    weight = real[:, None].to(image.dtype)
    for _ in range(2):
        total, share = (F.avg_pool2d(each, side, 1, side // 2) for each in (image * weight, weight))
        image = total / share.clamp(min=1e-6)
    return image
