"""Losses and gradients of a batch of six, by one process or by several: ``two_ranks.py RANK WORLD FOLDER``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from hssl.config import NetworkConfig
from hssl.networks import build_network
from hssl.objectives import Domains, PretrainBatch, build_objective
from hssl.objectives.gather import gather
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


def image_level(mine: slice, world: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    network = build_network(NetworkConfig(features=(4, 4, 8)))
    options = {"weights": {"image": 1.0}, "group_stage": 0, "task_stage": 0, "region_stage": 0, "place_width": 0.3}
    objective = build_objective("hierarchical", network, Domains(("A", "B"), (0, 1)), options)

    def view() -> View:
        image = torch.rand(COUNT, 1, 16, 16)[mine]
        return View(image, image, image > 2, torch.eye(2, 3).expand(len(image), 2, 3), image.new_zeros(()))

    # Two slices of one case lie on different ranks, and so do slices of other subjects at the same place.
    where = [torch.tensor(x)[mine] for x in ([0, 0, 1, 0, 0, 1], [0, 1, 2, 0, 3, 4], [0, 1, 2, 0, 3, 4])]
    index, position = torch.tensor([3, 3, 3, 4, 5, 6])[mine], torch.linspace(0, 1, COUNT)[mine]
    loss = objective(network, PretrainBatch(view(), view(), *where, index, position))["image"]
    loss.backward()
    weight = network.encoder.stages[0][0].conv.weight.grad
    head = objective.get_parameter("image_head.layers.0.weight").grad
    assert weight is not None
    assert head is not None
    return {
        "image.loss": averaged(loss, world),
        "image.encoder": averaged(weight, world),
        "image.head": averaged(head, world),
    }


def main(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        store = dist.FileStore(str(folder / "rendezvous"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    mine = slice(rank * COUNT // world, (rank + 1) * COUNT // world)
    found = plain(mine, world) | image_level(mine, world)
    ranks = gather(torch.tensor([rank]))
    if rank == 0:
        save_file(found | {"ranks": ranks}, folder / f"{world}.safetensors")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
