"""The whole way on synthetic challenges, to see whether learning without masks helps.

Both networks of a task are fine-tuned alike: same labelled subject, same batches, same steps, same shape. They differ
in their start, and in that the pre-trained one goes on rehearsing on scans without masks. The figures are Dice on test
subjects that neither has seen.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hssl.config import SCRATCH, AggregateConfig, FinetuneConfig, PretrainConfig
from hssl.evaluation import evaluate
from hssl.files import replacing
from hssl.networks import predict_volume
from hssl.runs import load_segmentation
from hssl.sources.phantoms import write_phantoms
from hssl.store import CaseRecord, Store, aggregate, widest_slice
from hssl.training import finetune, pretrain

SUBJECTS = 16
PATCH_SIZE = 64
PRETRAIN_STEPS = 250
FINETUNE_STEPS = 150
FINETUNE_BATCH = 8
# A CT, an MR and an X-ray: all five would take more than the six minutes that a demo may.
FINETUNED = ("Task01_AbdomenCT", "Task02_HeartMR", "Task05_ChestXray")
ARMS = ("scratch", "hssl")

Slice = NDArray[np.generic]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        rows: For each task its name, mean test Dice (0 to 1) from scratch and from HSSL, the gain in points.
        picture: PNG with image, truth, scratch and HSSL side by side, one row a task.
    """

    rows: list[dict[str, Any]]
    picture: Path


def run_demo(output: Path | str, *, seed: int = 0) -> DemoResult:
    """Pre-trains on all phantoms, fine-tunes three of their tasks from one labelled subject twice, and compares.

    Args:
        output: A folder for everything; given again, what is complete there is used again.
        seed: Of the phantoms, the split and the training.

    Returns:
        The table and the picture.
    """
    output = Path(output)
    raw = write_phantoms(output / "raw", subjects=SUBJECTS, seed=seed)
    store = aggregate(raw, output / "store", config=AggregateConfig(seed=seed))
    joint = pretrain(
        store,
        output / "runs" / "joint",
        config=PretrainConfig(steps=PRETRAIN_STEPS, patch_size=PATCH_SIZE, seed=seed),
    )
    rows = []
    tasks = [task for task in store.tasks if task in FINETUNED]
    for task in tasks:
        dice = {}
        for arm in ARMS:
            run = output / "runs" / f"{task}-{arm}"
            config = FinetuneConfig(
                task=task,
                labels=1,
                init=str(joint.path) if arm == "hssl" else SCRATCH,
                steps=FINETUNE_STEPS,
                batch_size=FINETUNE_BATCH,
                patch_size=PATCH_SIZE,
                validation=False,
                seed=seed,
            )
            finetune(store, run, config=config)
            mean = evaluate(run, store).mean.dice
            dice[arm] = math.nan if mean is None else mean
        gain = 100 * (dice["hssl"] - dice["scratch"])
        rows.append({"task": task, "scratch": dice["scratch"], "HSSL": dice["hssl"], "gain, points": round(gain, 1)})
        logger.info("%s: scratch %.3f, HSSL %.3f", task, dice["scratch"], dice["hssl"])
    picture = output / "demo.png"
    _draw({task: _example(store, task, output / "runs") for task in tasks}, picture)
    return DemoResult(rows, picture)


def _example(store: Store, task: str, runs: Path) -> list[Slice]:
    """Image, truth and both arms' masks: the slice of the first test case with the most label voxels."""
    record: CaseRecord = store.cases(task, subjects=store.split(task).test)[0]
    image, truth = store.image(record), store.label(record)
    index = widest_slice(truth)
    panels: list[Slice] = [image[index], truth[index]]
    for arm in ARMS:
        network, run, task_info = load_segmentation(runs / f"{task}-{arm}")
        scores = predict_volume(network, image[index : index + 1], patch_size=(run.config.patch_size,) * 2)
        panels.append(task_info.mask(scores)[0])
    return panels


def _draw(examples: dict[str, list[Slice]], path: Path) -> None:
    from matplotlib.figure import Figure

    titles = ("image", "truth", "from scratch", "from HSSL")
    figure = Figure(figsize=(2.2 * len(titles), 2.2 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for row, (task, (image, *masks)) in zip(axes, examples.items(), strict=True):
        for axis, mask in zip(row, (None, *masks), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            if mask is not None:
                axis.imshow(
                    np.ma.masked_equal(mask, 0),
                    cmap="tab10",
                    vmin=1,
                    vmax=10,
                    alpha=0.6,
                    interpolation="nearest",
                )
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(task)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
