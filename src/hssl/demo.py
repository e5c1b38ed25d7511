"""The full pipeline on synthetic challenges, in five minutes.

It is a small benchmark. Both networks of a task are fine-tuned alike: same labelled subject, same batches, same steps,
same shape. They differ in their start, and in that the pre-trained one keeps its pretext losses on. The
figures are Dice on test subjects that neither has seen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hssl.benchmark import Arm, Experiment, run_benchmark, write_report
from hssl.benchmark.experiment import Job, expand
from hssl.benchmark.report.figures import overlay_picture
from hssl.benchmark.report.pictures import find_overlays
from hssl.benchmark.run.forecast import Forecast
from hssl.benchmark.run.ledger import LEDGER, Ledger
from hssl.benchmark.run.records import Order
from hssl.benchmark.run.worker import work
from hssl.config import AggregateConfig, PretrainConfig
from hssl.files import replacing
from hssl.machine import cores
from hssl.phantoms import write_phantoms
from hssl.store import Store, aggregate
from hssl.text import duration

SUBJECTS = 12
PATCH_SIZE = 64
# A CT, an MR and an X-ray. The network is half as wide as 'small', and steps and batches are few: five minutes on two
# cores without AVX-512, as in most laptops.
TASKS = ("Task01_AbdomenCT", "Task02_HeartMR", "Task05_ChestXray")
FEATURES = (8, 16, 32, 64, 128)
PRETRAIN_STEPS, PRETRAIN_BATCH = 250, 16
FINETUNE_STEPS, FINETUNE_BATCH, PRETEXT_BATCH = 150, 8, 2
WARMUP = 20
SCRATCH, HSSL = "scratch", "HSSL"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        rows: For each task its name, mean test Dice (0 to 1) from scratch and from HSSL, the gain in points.
        picture: PNG with image, truth, scratch and HSSL side by side, the median test case of each task.
        report: The page that ``hssl report`` makes of it.
    """

    rows: list[dict[str, Any]]
    picture: Path
    report: Path


def run_demo(output: Path | str, *, seed: int = 0) -> DemoResult:
    """Pre-trains on three phantom challenges, fine-tunes each from one labelled subject twice, and compares.

    Args:
        output: A folder for everything; given again, what is complete there is used again.
        seed: Of the phantoms, the split and the training.

    Returns:
        The table, the picture and the page.
    """
    output = Path(output).absolute()
    raw = write_phantoms(output / "raw", subjects=SUBJECTS, seed=seed, tasks=TASKS)
    store = aggregate(raw, output / "store", config=AggregateConfig(seed=seed))
    experiment = Experiment(
        store=str(output / "store"),
        label_budgets=(1,),
        seeds=(seed,),
        arms={SCRATCH: Arm(domains="none"), HSSL: Arm()},
        pretrain={
            "steps": PRETRAIN_STEPS,
            "batch_size": PRETRAIN_BATCH,
            "patch_size": PATCH_SIZE,
            "warmup": WARMUP,
            "network": {"features": FEATURES},
            "seed": seed,
        },
        finetune={
            "steps": FINETUNE_STEPS,
            "batch_size": FINETUNE_BATCH,
            "patch_size": PATCH_SIZE,
            "warmup": WARMUP,
            "validation": False,
            "auxiliary": {"pretext": {"batch_size": PRETEXT_BATCH}},
        },
        keep_weights=True,
    )
    bench = output / "benchmark"
    gpus = torch.cuda.device_count()
    workers = min(gpus or cores(), len(TASKS))
    grid = expand(experiment, store)
    if not gpus:
        # Here, with every core and a bar, for most of the runs wait for it. A GPU would stay with this process.
        first = [job for job in grid.jobs.values() if isinstance(job.config, PretrainConfig)]
        _announce(Forecast(experiment, grid, store), first, list(grid.jobs.values()), bench, workers)
        for job in first:
            order = Order(
                store=experiment.store,
                folder=str(bench / job.folder),
                config=job.config,
                scoring=experiment.scoring,
                keep_weights=True,
            )
            work(order)
    found = run_benchmark(experiment, bench, workers=workers)
    dice = {(row["task"], row["arm"]): row["Dice"] for row in found}
    rows = [_row(task, dice[task, SCRATCH], dice[task, HSSL]) for task in store.tasks]
    picture = output / "demo.png"
    _draw(bench, store, picture)
    return DemoResult(rows, picture, write_report(bench))


def _announce(forecast: Forecast, first: list[Job], jobs: list[Job], bench: Path, workers: int) -> None:
    """Says what all of it will take, unless it is a demo that goes on."""
    if bench.exists():
        return
    others = [job for job in jobs if job not in first]
    forecast.measure(first, 1)
    forecast.measure(others, workers)
    before, after = forecast.seconds(first), forecast.seconds(others) / workers
    logger.info(
        "about %s in all: pre-training about %s, then %d fine-tunings and their evaluation about %s",
        *(duration(before + after), duration(before), len(others), duration(after)),
    )


def _row(task: str, scratch: float, hssl: float) -> dict[str, Any]:
    return {"task": task, SCRATCH: scratch, HSSL: hssl, "gain": hssl - scratch}


def _draw(bench: Path, store: Store, path: Path) -> None:
    found = find_overlays(bench, store, Ledger(bench / LEDGER).rows(), (SCRATCH, HSSL))
    with replacing(path) as temporary:
        temporary.write_bytes(overlay_picture([overlays[(len(overlays) - 1) // 2] for overlays in found.values()]))
