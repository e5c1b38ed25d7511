"""One run in a process of its own: ``python -m hssl.benchmark.run.worker JOB.json``, from the folder of the benchmark.

The process ends when its parent does, and can be started again at any time: runs continue, and the outcome is written
in one step (``RUN/outcome.json``).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from hssl import console
from hssl.benchmark.experiment import Scoring
from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import HsslError
from hssl.evaluation import EvaluationResult, evaluate
from hssl.files import write_text
from hssl.prediction import Predictor
from hssl.runs import Run
from hssl.runs.run import INIT_HASH, WEIGHTS
from hssl.store import Part, Store, widest_slice
from hssl.training.finetune import finetune
from hssl.training.loop import expected_device
from hssl.training.pretrain import GROUPS, pretrain

OUTCOME, OVERLAYS = "outcome.json", "overlays.npz"


class Order(BaseModel):
    """What a worker is told.

    Attributes:
        store: The aggregated data.
        folder: Run folder, relative to that of the benchmark.
        config: Of the stage.
        scoring: How to score a fine-tuned network.
        keep_weights: Whether to keep its weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    folder: str
    config: FinetuneConfig | PretrainConfig
    scoring: Scoring
    keep_weights: bool


def work(order: Order) -> dict[str, Any]:
    """Makes a run, or finishes it, and writes its outcome.

    Returns:
        The outcome: what goes into the ledger, without the place in the grid.
    """
    path = Path(order.folder) / OUTCOME
    if path.exists():
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return outcome
    store = Store.open(order.store)
    if isinstance(order.config, PretrainConfig):
        outcome = _pretrained(pretrain(store, order.folder, config=order.config), order.config)
    else:
        run = finetune(store, order.folder, config=order.config)
        began = time.monotonic()
        device = str(expected_device(order.config))
        result = evaluate(run.path, store, device=device, **order.scoring.model_dump())
        _save_overlays(run, store, order.scoring.part, device)
        outcome = _finetuned(run, result, time.monotonic() - began)
    write_text(path, json.dumps(outcome, indent=1))
    if isinstance(order.config, FinetuneConfig) and not order.keep_weights:
        (Path(order.folder) / WEIGHTS).unlink(missing_ok=True)
    return outcome


def _pretrained(run: Run, config: PretrainConfig) -> dict[str, Any]:
    groups = run.path / GROUPS
    return {
        "objective": config.objective,
        "tasks": list(config.tasks or ()),
        "steps": config.steps,
        "losses": run.info.result["losses"],
        "groups": json.loads(groups.read_text(encoding="utf-8")) if groups.exists() else None,
        **_origin(run),
        "seconds": round(run.info.result["seconds"], 1),
    }


def _finetuned(run: Run, result: EvaluationResult, seconds: float) -> dict[str, Any]:
    return {
        "dice": result.mean.dice,
        "hd95": result.mean.hd95,
        "nsd": result.mean.surface_dice,
        "part": result.part,
        "space": result.space,
        "tolerance": result.tolerance,
        "labelled": run.info.result["labelled"],
        "steps": run.config.steps,
        "loss": _last_loss(run),
        **_origin(run),
        "seconds": round(run.info.result["seconds"] + seconds, 1),
        "training_seconds": round(run.info.result["seconds"], 1),
        "scores": [
            {
                "case": score.case,
                "subject": score.subject,
                "label": score.label,
                "name": score.name,
                "dice": score.dice,
                "hd95": score.hd95,
                "nsd": score.surface_dice,
            }
            for score in result.scores
        ],
    }


def _origin(run: Run) -> dict[str, Any]:
    known = run.info.provenance
    return {
        "init_weights": known.get(INIT_HASH),
        "store_hash": known["data"]["store"],
        "split_hash": known["data"]["split"],
        "versions": known["versions"],
        "git": known["git"],
        "machine": known["machine"],
        "started": known["started"],
    }


def _last_loss(run: Run) -> float | None:
    lines = (run.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    losses = [line.rpartition(",")[2] for line in lines if ",loss," in line]
    return float(losses[-1]) if losses else None


def _save_overlays(run: Run, store: Store, part: Part, device: str) -> None:
    """Keeps the mask of one slice of each case, that with the largest truth, for the pictures of the report."""
    predictor = Predictor(run.path, device=device)
    task = predictor.task
    masks: dict[str, Any] = {}
    for case in store.cases(task.name, part=part, labelled=True):
        number = widest_slice(store.label(case))
        masks[case.id] = predictor.mask(store.image(case)[number : number + 1])[0]
    temporary = run.path / f".{OVERLAYS}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **masks)
    temporary.replace(run.path / OVERLAYS)


def _end_with_parent() -> None:
    # The pipe closes when the parent ends, even when it is killed. Nothing is lost: all writes are moves.
    # Not by sys.stdin: a loader process is forked meanwhile, closes its own, and would wait for this reader for ever.
    while os.read(0, 1024):
        pass
    os._exit(1)


def work_at(bench: Path, order: Path) -> None:
    """Carries out an order file from the folder of the benchmark."""
    with contextlib.chdir(bench):  # submitit's `debug` does so in the process of the benchmark
        work(Order.model_validate_json(order.read_bytes()))


def main() -> int:
    """Reads the order named on the command line and carries it out."""
    if os.environ.get("HSSL_WORKER_PIPE"):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    console.configure()
    try:
        work(Order.model_validate_json(Path(sys.argv[1]).read_bytes()))
    except HsslError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
