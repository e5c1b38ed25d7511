"""One run in a process of its own: ``python -m hssl.benchmark.run.worker JOB.json``, from the folder of the benchmark.

The process ends when its parent does, and can be started again at any time: runs continue, and the outcome is written
in one step (``RUN/outcome.json``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from hssl import console
from hssl.benchmark.experiment import Scoring
from hssl.benchmark.run.records import FinetuneOutcome, Groups, Order, Outcome, PretrainOutcome
from hssl.config import SCRATCH, FinetuneConfig, PretrainConfig
from hssl.errors import HsslError, RunError, first_mistake, name_bad_file
from hssl.evaluation import EvaluationResult, evaluate
from hssl.files import read_json, write_text
from hssl.grouping import GROUPS
from hssl.prediction import Predictor
from hssl.probing import probe
from hssl.runs import Run
from hssl.runs.run import INFO, INIT_HASH, METRICS, WEIGHTS, provenance
from hssl.store import Part, Store, widest_slice
from hssl.training.finetune import finetune
from hssl.training.loop import expected_device
from hssl.training.pretrain import pretrain

OUTCOME, OVERLAYS = "outcome.json", "overlays.npz"
AGAIN = "remove the folder of this run, and the same benchmark makes it again"
ORDER_AGAIN = "the same benchmark writes it again"
Model = TypeVar("Model", bound=BaseModel)


def work(order: Order) -> None:
    """Makes a run, or finishes it, and writes its outcome: what goes into the ledger, without the place in the grid."""
    path = Path(order.folder) / OUTCOME
    if path.exists():
        return
    store = Store.open(order.store)
    outcome: Outcome
    if isinstance(order.config, PretrainConfig):
        outcome = _pretrained(pretrain(store, order.folder, config=order.config), order.config)
    elif order.scoring.method == "probe":
        path.parent.mkdir(exist_ok=True)  # it leaves no run
        outcome = _probed(order.config, order.scoring, store)
    else:
        run = finetune(store, order.folder, config=order.config)
        began = time.monotonic()
        device = str(expected_device(order.config))
        how = order.scoring.model_dump(include={"part", "space", "tolerance"})
        result = evaluate(run.path, store, device=device, **how)
        _save_overlays(run, store, order.scoring.part, device)
        outcome = _finetuned(run, result, time.monotonic() - began)
    write_text(path, outcome.model_dump_json(indent=1))
    if isinstance(order.config, FinetuneConfig) and not order.keep_weights:
        (Path(order.folder) / WEIGHTS).unlink(missing_ok=True)


def _pretrained(run: Run, config: PretrainConfig) -> PretrainOutcome:
    groups = run.path / GROUPS
    return _outcome(
        PretrainOutcome,
        run.info.provenance,
        run.path / INFO,
        objective=config.objective,
        tasks=list(config.tasks or ()),
        steps=config.steps,
        losses=run.info.result.get("losses"),
        groups=read_json(groups, Groups, hint=AGAIN) if groups.exists() else None,
        seconds=round(_seconds(run), 1),
    )


def _finetuned(run: Run, result: EvaluationResult, seconds: float) -> FinetuneOutcome:
    return _outcome(
        FinetuneOutcome,
        run.info.provenance,
        run.path / INFO,
        dice=result.mean.dice,
        hd95=result.mean.hd95,
        nsd=result.mean.surface_dice,
        part=result.part,
        space=result.space,
        tolerance=result.tolerance,
        labelled=run.info.result.get("labelled"),
        steps=run.config.steps,
        loss=_last_loss(run),
        seconds=round(_seconds(run) + seconds, 1),
        training_seconds=round(_seconds(run), 1),
        scores=[
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
    )


def _probed(config: FinetuneConfig, scoring: Scoring, store: Store) -> FinetuneOutcome:
    """What a probe finds, as the outcome of a fine-tuning without steps: each sample of subjects counts as a case."""
    began = time.monotonic()
    found = probe(
        config.init,
        store,
        tasks=[config.task],
        subjects=len(config.label_budget) if isinstance(config.label_budget, tuple) else 1,
        repeats=scoring.samples,
        seed=config.seed,
        network=config.network,
        device=str(expected_device(config)),
    )
    *labels, mean = found.scores
    known = provenance(config, store)
    if config.init != SCRATCH:
        known[INIT_HASH] = Run.open(config.init).info.weights_sha256
    return _outcome(
        FinetuneOutcome,
        known,
        store.path,
        dice=mean.linear,
        hd95=None,
        nsd=None,
        part=scoring.part,
        space=scoring.space,
        tolerance=scoring.tolerance,
        labelled=sorted({subject for sample in found.drawn[config.task] for subject in sample}),
        steps=0,
        loss=None,
        seconds=round(time.monotonic() - began, 1),
        training_seconds=0.0,
        scores=[
            {
                "case": f"sample {number}",
                "subject": ", ".join(found.drawn[config.task][number]),
                "label": label,
                "name": score.label,
                "dice": dice,
                "hd95": None,
                "nsd": None,
            }
            for label, score in zip(sorted(store.tasks[config.task].labels), labels, strict=True)
            for number, dice in enumerate(score.samples)
        ],
    )


def _outcome(model: type[Model], known: dict[str, Any], path: Path, **values: Any) -> Model:
    """An outcome with what is known of where it comes from, as a run's provenance has it; `path` holds that.

    Raises:
        RunError: Something is lacking.
    """
    data = known["data"] if isinstance(known.get("data"), dict) else {}
    origin = {name: known.get(name) for name in ("versions", "git", "machine", "started")}
    hashes = {"store_hash": data.get("store"), "split_hash": data.get("split"), "init_weights": known.get(INIT_HASH)}
    try:
        return model.model_validate({**values, **origin, **hashes})
    except ValidationError as error:
        raise RunError(f"is damaged: {first_mistake(error)}", path=path, hint=AGAIN) from error


def _seconds(run: Run) -> float:
    seconds = run.info.result.get("seconds")
    if not isinstance(seconds, int | float):
        raise RunError("is damaged: its result has no 'seconds'", path=run.path / INFO, hint=AGAIN)
    return seconds


def _last_loss(run: Run) -> float | None:
    path = run.path / METRICS
    with name_bad_file(path, RunError):
        lines = path.read_text(encoding="utf-8").splitlines()
        losses = [float(line.rpartition(",")[2]) for line in lines if ",loss," in line]
    return losses[-1] if losses else None


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
        work(read_json(order, Order, hint=ORDER_AGAIN))


def main() -> int:
    """Reads the order named on the command line and carries it out."""
    if os.environ.get("HSSL_WORKER_PIPE"):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    console.configure()
    try:
        work(read_json(Path(sys.argv[1]), Order, hint=ORDER_AGAIN))
    except HsslError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
