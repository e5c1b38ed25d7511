"""Losses and gradients of a batch of six, by one process or by several: ``two_ranks.py RANK WORLD FOLDER``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from hssl.config import NetworkConfig
from hssl.distributed import gather
from hssl.metrics import IGNORE, dice_ce_loss
from hssl.networks import build_network
from hssl.objectives import Domains, Origin, PretrainBatch, build_objective
from hssl.objectives.codebook import Codebooks
from hssl.objectives.ntxent import nt_xent
from hssl.views import View

COUNT = 6


def averaged(value: Tensor, world: int) -> Tensor:
    """The mean over ranks, as DDP takes it of gradients."""
    value = value.detach().clone()
    if world > 1:
        dist.all_reduce(value)
    return value / world


def plain(mine: slice, world: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    layer = nn.Linear(8, 5)
    first, second = torch.randn(2, COUNT, 8)
    ignore, affinity = torch.rand(COUNT, COUNT) < 0.3, torch.rand(COUNT, COUNT)
    loss = nt_xent(layer(first[mine]), layer(second[mine]), 0.2, ignore=ignore[mine], affinity=affinity[mine])
    loss.backward()
    assert layer.weight.grad is not None
    return {"ntxent.loss": averaged(loss, world), "ntxent.grad": averaged(layer.weight.grad, world)}


def objective(name: str, loss_name: str, head: str, mine: slice, world: int, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    network = build_network(NetworkConfig(features=(4, 4, 8)))
    asked = build_objective(name, network, Domains(("A", "B"), (0, 1)), options)

    def view() -> View:
        image = torch.rand(COUNT, 1, 16, 16)[mine]
        return View(image, image, image > 2, torch.eye(2, 3).expand(len(image), 2, 3), image.new_zeros(()))

    # Two slices of one case lie on different ranks, and so do slices of other subjects at the same place.
    where = [torch.tensor(x)[mine] for x in ([0, 0, 1, 0, 0, 1], [0, 1, 2, 0, 3, 4], [0, 1, 2, 0, 3, 4])]
    index, position = torch.tensor([3, 3, 3, 4, 5, 6])[mine], torch.linspace(0, 1, COUNT)[mine]
    frame = torch.full((len(index), 2, 2), 0.5)
    slices = torch.full((len(index),), 9)
    loss = asked(network, PretrainBatch(view(), view(), Origin(*where, index, slices, position, frame)))[loss_name]
    loss.backward()
    weight = network.encoder.stages[0][0].conv.weight  # type: ignore[index,union-attr]
    found = {"loss": loss, "encoder": weight.grad, "head": asked.get_parameter(f"{head}.inner.weight").grad}
    return {f"{name}.{key}": averaged(value, world) for key, value in found.items()}


def codebook(mine: slice) -> dict[str, Tensor]:
    torch.manual_seed(3)
    codebooks = Codebooks(2, 3, 2)
    codebooks.centres.copy_(torch.rand(2, 3, 2))
    codebooks.counts.fill_(1)
    points, task, valid = torch.rand(COUNT, 9, 2), torch.tensor([0, 0, 1, 0, 0, 1]), torch.rand(COUNT, 9) < 0.7
    codebooks.learn(points[mine], task[mine], valid[mine])
    return {"codebook.centres": codebooks.centres, "codebook.counts": codebooks.counts}


def unseeded(rank: int, mine: slice) -> dict[str, Tensor]:
    """A task that only the last rank shows; each rank draws its own seeds, and all must end with the same centres."""
    torch.manual_seed(rank)
    codebooks = Codebooks(2, 3, 2)
    task = torch.tensor([0, 0, 0, 0, 0, 1])[mine]
    codebooks.learn(torch.rand(len(task), 9, 2), task, torch.ones(len(task), 9, dtype=torch.bool))
    return {"unseeded": gather(codebooks.centres[None])}


def segmentation(mine: slice, world: int) -> dict[str, Tensor]:
    """Ranks see other shares of ignored and of unsure pixels: means over a rank's own would not add up."""
    torch.manual_seed(4)
    layer = nn.Conv2d(2, 3, 1)
    image, target, weight = torch.randn(COUNT, 2, 5, 5), torch.randint(3, (COUNT, 5, 5)), torch.rand(COUNT, 5, 5)
    target[:2, :3] = IGNORE
    weight[4:] = 0.1
    loss = dice_ce_loss(layer(image[mine]), target[mine], weight[mine])
    loss.backward()
    assert layer.weight.grad is not None
    return {"dice_ce.loss": averaged(loss, world), "dice_ce.grad": averaged(layer.weight.grad, world)}


def main(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        store = dist.FileStore(str(folder / "rendezvous"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    mine = slice(rank * COUNT // world, (rank + 1) * COUNT // world)
    level = {
        "weights": {"image": 1.0},
        "group_stage": 0,
        "task_stage": 0,
        "local_stage": 0,
        "position_stage": 0,
        "position_width": 0.3,
    }
    found = plain(mine, world)
    found |= objective("hierarchical", "image", "image_head", mine, world, **level)
    found |= objective("simclr", "image", "head", mine, world)
    found |= objective("global_local", "global", "global_head", mine, world, local_stage=0)
    found |= codebook(mine)
    found |= segmentation(mine, world)
    found |= unseeded(rank, mine)
    ranks = gather(torch.tensor([rank]))
    if rank == 0:
        save_file(found | {"ranks": ranks}, folder / f"{world}.safetensors")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
