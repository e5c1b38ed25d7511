"""How hard each objective would pull at a network while it is rehearsed: norms of gradients, beside that of the masks.

    python tools/scales.py STORE TASK RUN [BATCHES]

`RUN` is a pre-training run to start from. Heads are new, as they are when fine-tuning starts. Means over eight
batches of what a step of fine-tuning shows, with the gradient of the encoder and decoder alone.
"""

from __future__ import annotations

import sys

import torch
from monai.losses.dice import DiceCELoss
from torch import Generator, Tensor

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.networks import SegmentationNetwork
from hssl.objectives import OBJECTIVES, build_rehearsed, total
from hssl.runs import load_unet
from hssl.store import Store
from hssl.training.data import FinetuneData, PretrainData
from hssl.training.pretrain import compute_losses
from hssl.views import follow, make_view


def main(store_path: str, task: str, run: str, batches: str = "8") -> None:
    """Prints a row of a table for the masks, and one for each objective."""
    store, count = Store.open(store_path), int(batches)
    unet, _ = load_unet(run)
    unet.train()

    def norm(loss: Tensor) -> float:
        unet.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None]).norm())

    tuned = FinetuneConfig(task=task, batch_size=8)
    labelled = FinetuneData(store, store.labelled(task, 1, 0), tuned)
    torch.manual_seed(0)
    network = SegmentationNetwork(unet, store.tasks[task].classes, tuned.head)
    masks = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    norms = []
    for step in range(count):
        window, labels = labelled[step].labelled
        view = make_view(window, tuned.patch_size, tuned.view, Generator().manual_seed(step))
        norms.append(norm(masks(network(view.image), follow(labels, view.grid)[:, None])))
    print(f"| Dice + cross-entropy | {sum(norms) / count:.2g} |")
    for name in OBJECTIVES:
        config = PretrainConfig(objective=name, tasks=(task,), batch_size=tuned.rehearsal_batch_size, groups="none")
        scans = PretrainData(store, (task,), config)
        torch.manual_seed(0)
        objective = build_rehearsed(name, unet, task, {})
        norms = [
            norm(total(compute_losses(objective, unet, scans[step], config, Generator().manual_seed(step))))
            for step in range(count)
        ]
        print(f"| {tuned.rehearsal} of {name} | {tuned.rehearsal * sum(norms) / count:.2g} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
