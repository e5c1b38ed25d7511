"""How large the gradients of each pretext objective are in fine-tuning, beside those of the masks.

    python tools/scales.py STORE TASK RUN [BATCHES]

`RUN` is a pre-training run to start from. Heads are new, as they are when fine-tuning starts. Prints the mean norm of
the gradient of the encoder and decoder over eight batches of a fine-tuning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Generator, Tensor

from hssl.config import FinetuneConfig, ViewConfig
from hssl.metrics import dice_ce_loss
from hssl.networks import SegmentationNetwork, UNet
from hssl.objectives import Domains, build_objective, compute_losses, total
from hssl.registry import OBJECTIVES
from hssl.runs import load_unet
from hssl.store import Store
from hssl.training.auxiliary.pretext import PretextOptions
from hssl.training.data import FinetuneData, WindowData
from hssl.views import follow, make_view


def main(store_path: str, task: str, run: str, batches: str = "8") -> None:
    """Prints a row of a table for the masks, and one for each objective."""
    store, steps = Store.open(store_path), int(batches)
    unet, _ = load_unet(run)
    unet.train()
    config, options = FinetuneConfig(task=task, batch_size=8), PretextOptions()

    def mean_norm(losses: Iterator[Tensor]) -> float:
        return fmean(gradient_norm(unet, loss) for loss in losses)

    print(f"| Dice + cross-entropy | {mean_norm(mask_losses(store, unet, config, steps)):.2g} |")
    for name in OBJECTIVES:
        losses = pretext_losses(store, unet, config, name, steps)
        print(f"| {options.weight} of {name} | {options.weight * mean_norm(losses):.2g} |")


def gradient_norm(unet: UNet, loss: Tensor) -> float:
    """Norm of the gradient of a loss."""
    unet.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None]).norm())


def mask_losses(store: Store, unet: UNet, config: FinetuneConfig, steps: int) -> Iterator[Tensor]:
    """The loss of each step on the masks of one subject."""
    data = FinetuneData(store, store.labelled(config.task, 1, 0), config)
    torch.manual_seed(0)
    network = SegmentationNetwork(unet, store.tasks[config.task].classes, config.head)
    for step in range(steps):
        window, labels = data[step].labelled
        view = make_view(window, config.patch_size, config.view, Generator().manual_seed(step))
        yield dice_ce_loss(network(view.image), follow(labels, view.grid))


def pretext_losses(store: Store, unet: UNet, config: FinetuneConfig, name: str, steps: int) -> Iterator[Tensor]:
    """The loss of each step of an objective on the images of all training subjects."""
    size, seed = PretextOptions().batch_size, config.seed
    data = WindowData(store, (config.task,), batch_size=size, size=config.window, steps=steps, seed=seed)
    torch.manual_seed(0)
    objective = build_objective(name, unet, Domains((config.task,), (-1,)), {})
    for step in range(steps):
        generator = Generator().manual_seed(step)
        yield total(compute_losses(objective, unet, data[step], config.patch_size, ViewConfig(), generator))


if __name__ == "__main__":
    main(*sys.argv[1:])
