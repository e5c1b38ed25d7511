"""How much of a task a frozen network knows: ``python tools/probe.py STORE RUN [--stages 0 1 2] [--tasks T ...]``.

Logistic regression from the decoder's features at chosen resolutions (0 is full, 1 half ...; the last is the encoder's
deepest stage) to the labels of one labelled subject, scored by mean Dice over validation cases and labels. `RUN` is a
run folder or ``scratch``. A figure to compare networks and stages by, not one that a fine-tuned network has to beat.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hssl.config import SCRATCH, NetworkConfig
from hssl.metrics import dice_by_label
from hssl.networks import UNet, build_network
from hssl.prediction.masks import label_mask
from hssl.runs import load_unet
from hssl.store import CaseRecord, Store

FOREGROUND, BACKGROUND, PIXELS = 1500, 700, 60_000
"""Pixels per slice with and without regard to labels, and in all."""
STEPS, BATCH, RATE, DECAY = 300, 4096, 0.03, 0.05

ReadOut = Callable[[Tensor], Tensor]


def main() -> None:
    """Prints a line for each task, a figure for each seed."""
    parser = argparse.ArgumentParser(description="How much of a task does a frozen network know?")
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    store = Store.open(options.store)
    torch.manual_seed(0)
    network = build_network(NetworkConfig()) if options.run == SCRATCH else load_unet(options.run)[0]
    network.eval()
    for task in options.tasks or store.tasks:
        read_outs = [fit(store, network, task, seed, options.stages) for seed in options.seeds]
        print(task, *(f"{dice:.3f}" for dice in score(store, network, task, read_outs, options.stages)))


def fit(store: Store, network: UNet, task: str, seed: int, stages: list[int]) -> ReadOut:
    """A linear read-out, pixels ``[N, C]`` to logits ``[N, classes]``, that has seen one labelled subject."""
    torch.manual_seed(seed)
    info = store.tasks[task]
    pixels, classes = [], []
    for case in store.cases(task, subjects=store.labelled(task, 1, seed), labelled=True):
        for features, label in slices(store, network, case, stages):
            truth = torch.from_numpy(info.to_channels(label).astype(np.int64)).flatten()
            inside = torch.where(truth > 0)[0]
            chosen = torch.cat(
                (inside[torch.randperm(len(inside))[:FOREGROUND]], torch.randperm(len(truth))[:BACKGROUND])
            )
            pixels.append(features.flatten(1).T[chosen])
            classes.append(truth[chosen])
    x, y = torch.cat(pixels), torch.cat(classes)
    kept = torch.randperm(len(x))[:PIXELS]
    x, y = x[kept], y[kept]
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    layer = torch.nn.Linear(x.shape[1], info.classes)

    def read_out(features: Tensor) -> Tensor:
        logits: Tensor = layer((features - mean) / deviation)
        return logits

    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(read_out(x[batch]), y[batch]))
        optimizer.step()
        schedule.step()
    return read_out


@torch.no_grad()
def score(store: Store, network: UNet, task: str, read_outs: Sequence[ReadOut], stages: list[int]) -> list[float]:
    """Mean validation Dice of each read-out."""
    info = store.tasks[task]
    dice = []  # [case][read-out]
    for case in store.cases(task, part="val", labelled=True):
        found: list[list[Tensor]] = [[] for _ in read_outs]
        for features, _ in slices(store, network, case, stages):
            for logits, read_out in zip(found, read_outs, strict=True):
                logits.append(read_out(features.flatten(1).T).T.view(-1, *features.shape[1:]))
        truth = store.label(case)
        masks = [label_mask(info, torch.stack(logits, 1).numpy()) for logits in found]
        dice.append([np.nanmean(dice_by_label(truth, mask, info.labels)) for mask in masks])
    return [float(mean) for mean in np.nanmean(dice, axis=0)]


def slices(
    store: Store, network: UNet, case: CaseRecord, stages: list[int]
) -> Iterator[tuple[Tensor, NDArray[np.uint8]]]:
    """Features ``[C, rows, columns]`` at full resolution and the label of each slice."""
    for index in range(case.shape[0]):
        image = torch.from_numpy(store.image_slice(case, index).astype(np.float32))[None, None]
        rows, columns = image.shape[-2:]
        image = F.pad(image, (0, -columns % network.divisor[1], 0, -rows % network.divisor[0]))
        with torch.no_grad():
            encoded = network.encode(image)
            decoded = [*network.decode(encoded)[::-1], encoded[-1]]
        parts = [F.interpolate(decoded[stage], image.shape[-2:], mode="bilinear") for stage in stages]
        yield torch.cat(parts, 1)[0, :, :rows, :columns], store.label_slice(case, index)


if __name__ == "__main__":
    main()
