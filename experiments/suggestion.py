"""Whether drawing what ``hssl suggest`` ranks first beats drawing at random, or evenly spread slices.

    python experiments/suggestion.py STORE PRETRAINED      # adds what is missing to experiments/suggestion.jsonl
    python experiments/suggestion.py STORE finetune RUNS   # the same for fine-tuned networks; RUNS keeps them
    python experiments/suggestion.py STORE finetune RUNS 3,4          # some repetitions
    make tables

A repetition begins with one labelled training subject that its seed draws, the same for all arms; an arm then adds
subjects, or slices, up to the number. What the masks are worth is read off a frozen network, as in ``hssl probe``: a
linear read-out is fitted to pixels of what is drawn and scored by Dice on validation subjects. Arms, for subjects:
``random``, and ``k-medoids`` and ``k-center`` on brightness or on features of the pre-training. For slices the first
subject has 5 evenly spread slices, and ``spread`` adds 5 of each of further subjects at random.

Fine-tuned: three subjects, short fine-tunings from scratch on two tasks. ``uncertainty`` has the network that was
fine-tuned on the first subject.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hssl.evaluation import evaluate
from hssl.features import slice_features
from hssl.metrics import IGNORE, dice_by_label
from hssl.networks import UNet
from hssl.prediction.predictor import Predictor
from hssl.probing import SLICES, _ReadOut, _slices
from hssl.runs import Run, load_unet
from hssl.store import CaseRecord, Store, TaskInfo
from hssl.suggestion import ranking
from hssl.suggestion.ranking import rank_undrawn
from hssl.training.data import drawn_slices
from hssl.training.finetune import finetune

LEDGER = Path(__file__).with_suffix(".jsonl")
SEEDS = range(5)
SUBJECTS = (3, 5)
"""Subjects that are drawn in all."""
PARTS = (3, 5)
"""Times the slices of one part, which are drawn in all."""
PART = 5
FOREGROUND, BACKGROUND = 150, 75
"""Pixels of a slice."""
FINETUNED, FINETUNED_TASKS, FINETUNED_SUBJECTS = "fine-tuned", ("Task06_BrainTumour", "Task02_LeftAtrium"), 3
SHORT = {"patch_size": 64, "batch_size": 4, "steps": 150}
MOST_PIXELS = 30_000
"""Pixels of a read-out."""
CHOSEN = ("k-medoids", "k-center")
Slices = list[tuple[CaseRecord, int]]
_known: dict[tuple[str, str, int, bool], NDArray[np.float64]] = {}


def remembered(store: Store, slices: Slices, network: UNet | None = None) -> NDArray[np.float64]:
    """Features of slices, each computed once."""
    keys = [(case.task, case.id, number, network is None) for case, number in slices]
    new = {key: each for key, each in zip(keys, slices, strict=True) if key not in _known}
    if new:
        _known.update(zip(new, slice_features(store, list(new.values()), network), strict=True))
    return np.array([_known[key] for key in keys])


ranking.slice_features = remembered


def of_subjects(store: Store, task: TaskInfo, subjects: Sequence[str], each: int | None) -> Slices:
    """Slices of subjects, all or some of each case."""
    cases = store.cases(task.name, subjects=subjects, labelled=True)
    return [(case, int(n)) for case in cases for n in drawn_slices(store.label(case), task, each)]


def subject_arms(store: Store, task: TaskInfo, network: UNet, number: int, seed: int) -> dict[str, list[str]]:
    """The subjects that each arm draws."""
    order = store.labelled(task.name, "100%", seed)
    arms = {"random": order[:number]}
    for features, net in (("brightness", None), ("pre-training", network)):
        for by in CHOSEN:
            found = rank_undrawn(store, task.name, number - 1, network=net, by=by, labels=1, seed=seed)
            arms[f"{by}, {features}"] = [order[0], *(item.subject for item in found.items)]
    return arms


def slice_arms(store: Store, task: TaskInfo, network: UNet, parts: int, seed: int) -> dict[str, Slices]:
    """The slices that each arm draws; the first part is the same."""
    order = store.labelled(task.name, "100%", seed)
    first = of_subjects(store, task, order[:1], PART)
    count = PART * len(store.cases(task.name, subjects=order[:1])) * (parts - 1)
    rng = np.random.default_rng((seed, parts, 11))
    rest = [each for each in of_subjects(store, task, order, None) if each not in first]
    further = [each for subject in order[1:] for each in of_subjects(store, task, [subject], PART)]
    arms = {
        "random": [*first, *(rest[place] for place in rng.choice(len(rest), count, replace=False))],
        "spread": [*first, *further[:count]],
    }
    cases = {case.id: case for case in store.cases(task.name)}
    for features, net in (("brightness", None), ("pre-training", network)):
        for by in CHOSEN:
            found = rank_undrawn(
                store, task.name, count, slices=True, network=net, by=by, labels=f"1@{PART}", seed=seed
            )
            arms[f"{by}, {features}"] = [*first, *((cases[item.cases[0]], item.slice) for item in found.items)]
    return arms


Pool = dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]
"""Features and classes of some pixels of each slice."""


def pool_of(network: UNet, store: Store, task: TaskInfo, seed: int = 7) -> Pool:
    """Pixels of every training slice, two thirds of them on labels where there are so many."""
    rng, pool = np.random.default_rng(seed), {}
    for case in store.cases(task.name, part="train", labelled=True):
        for number, (found, truth) in enumerate(_slices(network, store, task, case, range(case.shape[0]))):
            known = np.flatnonzero(truth.ravel() != IGNORE)
            inside = known[truth.ravel()[known] > 0]
            picked = np.concatenate((rng.permutation(inside)[:FOREGROUND], rng.permutation(known)[:BACKGROUND]))
            classes = torch.from_numpy(truth.ravel().astype(np.int64)[picked])
            pool[case.id, number] = found.flatten(1)[:, torch.from_numpy(picked)].T.clone(), classes
    return pool


def fit(pool: Pool, slices: Slices, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear read-out of a probe as one matrix ``[channels, classes]`` and an offset."""
    features, labels = (torch.cat([pool[case.id, number][part] for case, number in slices]) for part in (0, 1))
    if len(labels) > MOST_PIXELS:
        kept = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MOST_PIXELS]
        features, labels = features[kept], labels[kept]
    fitted = _ReadOut(features, labels, classes)
    matrix = fitted.linear[:-1] / fitted.deviation[:, None]
    return matrix, fitted.linear[-1] - fitted.mean @ matrix


def score(
    network: UNet, store: Store, task: TaskInfo, read_outs: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> NDArray[np.float64]:
    """Dice ``[read-outs]`` on validation subjects: mean over the labels of each case, then over cases."""
    matrix, offset = torch.cat([m for m, _ in read_outs], 1), torch.cat([o for _, o in read_outs])
    dice = []
    for case in store.cases(task.name, part="val", labelled=True):
        chosen = np.unique(np.linspace(0, case.shape[0] - 1, min(SLICES, case.shape[0])).round().astype(int))
        masks, truths = [], []
        for features, truth in _slices(network, store, task, case, chosen.tolist()):
            known = torch.from_numpy(np.flatnonzero(truth.ravel() != IGNORE))
            scores = features.flatten(1).T[known] @ matrix + offset
            masks.append(scores.view(len(known), len(read_outs), task.classes).argmax(2).T.to(torch.uint8).numpy())
            truths.append(truth.ravel()[known.numpy()])
        whole, found = np.concatenate(truths), np.concatenate(masks, axis=1)
        dice.append([np.nanmean(dice_by_label(whole, each, range(1, task.classes))) for each in found])
    return np.array(dice).mean(axis=0)


def finetuned(store: Store, folder: Path, seeds: Iterable[int]) -> None:
    """Fine-tunes on what each arm draws; the ledger gets a line for each that it does not have."""
    done = {(row["task"], row["seed"], row["arm"]) for row in ledger() if row["unit"] == FINETUNED}
    for task, seed in product(FINETUNED_TASKS, seeds):
        order = store.labelled(task, "100%", seed)

        def train(names: Sequence[str], arm: str, task: str = task, seed: int = seed) -> Run:
            output = folder / f"{task}-{seed}-{arm.replace(', ', '-')}"
            return finetune(store, output, task=task, labels=names, validation=False, seed=seed, **SHORT)

        first = train(order[:1], "first").path
        learned, sees = load_unet(first)[0], Predictor(first, overlap=0.25)
        arms = {"random": order[:FINETUNED_SUBJECTS]}
        for arm, options in (
            ("k-medoids, brightness", {}),
            ("k-medoids, uncertainty", {"network": learned, "predictor": sees}),
        ):
            found = rank_undrawn(store, task, FINETUNED_SUBJECTS - 1, labels=1, seed=seed, **options)
            arms[arm] = [order[0], *(item.subject for item in found.items)]
        for arm, names in {"first": order[:1], **arms}.items():
            if (task, seed, arm) not in done:
                result = evaluate(train(names, arm).path, store, part="val", space="store")
                row = {"task": task, "unit": FINETUNED, "number": len(names), "seed": seed, "arm": arm}
                row |= {"subjects": len(names), "drawn": names, "dice": round(result.mean.dice or 0.0, 5)}
                add([row | {"date": time.strftime("%Y-%m-%d"), **where(store)}])


def ledger() -> list[dict[str, Any]]:
    """The lines there are."""
    return [json.loads(line) for line in LEDGER.read_text(encoding="utf-8").splitlines()] if LEDGER.exists() else []


def add(rows: Sequence[dict[str, Any]]) -> None:
    """Adds lines."""
    with LEDGER.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def where(store: Store) -> dict[str, Any]:
    """Machine and data."""
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "store_hash": store.hash}


def main() -> None:
    """Runs the tasks that the ledger does not have yet."""
    store = Store.open(sys.argv[1])
    if sys.argv[2] == "finetune":
        finetuned(store, Path(sys.argv[3]), map(int, sys.argv[4].split(",")) if len(sys.argv) > 4 else SEEDS)
        return
    network, done = load_unet(sys.argv[2])[0], {row["task"] for row in ledger() if row["unit"] != FINETUNED}
    tasks = sys.argv[3].split(",") if len(sys.argv) > 3 else list(store.tasks)
    for task in (store.tasks[name] for name in tasks if name not in done):
        began = time.monotonic()
        pool = pool_of(network, store, task)
        rows, read_outs = [], []
        for seed in SEEDS:
            for unit, numbers in (("subjects", SUBJECTS), ("slices", PARTS)):
                for number in numbers:
                    if unit == "subjects":
                        named = subject_arms(store, task, network, number, seed)
                        arms = {arm: of_subjects(store, task, names, None) for arm, names in named.items()}
                    else:
                        arms = slice_arms(store, task, network, number, seed)
                    for arm, slices in arms.items():
                        row = {"task": task.name, "unit": unit, "number": number, "seed": seed, "arm": arm}
                        row |= {"slices": len(slices), "subjects": len({case.subject for case, _ in slices})}
                        rows.append(row)
                        read_outs.append(fit(pool, slices, task.classes))
        dice = score(network, store, task, read_outs)
        more = {"date": time.strftime("%Y-%m-%d"), "task_seconds": round(time.monotonic() - began), **where(store)}
        add([{**row, "dice": round(float(value), 5), **more} for row, value in zip(rows, dice, strict=True)])


if __name__ == "__main__":
    main()
