"""How much of a task a frozen network knows: a read-out of its decoder from few labelled subjects, no fine-tuning.

A linear read-out of all decoder stages is fitted to pixels of k labelled subjects and scored on validation subjects,
for several random samples of these k. It costs one pass over the scans, so it compares starts in minutes, and the
samples say how far two starts must differ. It compares starts; it does not estimate what fine-tuning reaches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.progress import track
from scipy.stats import t as student_t
from torch import Tensor

from hssl.config import SCRATCH, NetworkConfig
from hssl.errors import ConfigError, StoreError
from hssl.metrics import IGNORE, dice_by_label
from hssl.networks import UNet, build_network, to_device
from hssl.runs import load_unet
from hssl.store import CaseRecord, Store, TaskInfo

FOREGROUND, BACKGROUND, PIXELS = 300, 150, 6000
"""Pixels of a slice with and without regard to labels, and of a subject in all."""
SLICES = 12
"""Slices of a validation case that are scored, evenly spread."""
RIDGE = 1e-2
"""Weight decay of the linear read-out, relative to the mean variance of the features."""
NEIGHBOURS, QUERIES = 5, 400
"""Neighbours that vote, and pixels of a validation slice that they classify."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProbeScore(_Entry):
    """What the read-outs of one task reach on its validation subjects.

    Attributes:
        task: The task.
        label: Name of the label, or ``mean`` of all labels.
        linear: Mean Dice of the linear read-out over samples of the labelled subjects, in [0, 1].
        low: Lower end of the 95 % interval of that mean (t distribution over samples); None for a single sample.
        high: Upper end.
        neighbours: Mean Dice of nearest neighbours, over the same samples; estimated on some pixels.
        samples: Dice of the linear read-out of each sample.
    """

    task: str
    label: str
    linear: float
    low: float | None
    high: float | None
    neighbours: float
    samples: list[float]


class ProbeResult(_Entry):
    """What :func:`probe` found.

    Attributes:
        run: The run folder, or ``scratch``.
        subjects: Labelled subjects of each sample.
        repeats: Requested samples; a task with fewer training subjects has fewer.
        seed: Of the samples.
        drawn: Subjects of each sample, for each task.
        scores: For each task its labels, then their mean.
    """

    run: str
    subjects: int
    repeats: int
    seed: int
    drawn: dict[str, list[tuple[str, ...]]]
    scores: list[ProbeScore]

    def rows(self) -> list[dict[str, str | int | float | None]]:
        """The scores, ready to print."""
        return [
            {
                "task": score.task,
                "label": score.label,
                "Dice, linear": score.linear,
                "95 % from": score.low,
                "to": score.high,
                "Dice, neighbours": score.neighbours,
                "samples": len(score.samples),
            }
            for score in self.scores
        ]


def probe(
    run: Path | str,
    store: Store | Path | str,
    *,
    tasks: Sequence[str] | None = None,
    subjects: int = 1,
    repeats: int = 10,
    seed: int = 0,
    network: NetworkConfig | None = None,
    device: str | None = None,
) -> ProbeResult:
    """Scores what a frozen network knows of each task.

    Args:
        run: A complete run folder, ``hf://OWNER/NAME``, or ``scratch`` for a network as it starts.
        store: The data.
        tasks: Tasks to probe; None is all that have masks to learn from and to score.
        subjects: Labelled training subjects that each read-out learns from.
        repeats: Samples of these subjects; the same for every run with the same seed.
        seed: Of the samples and of the pixels that are drawn.
        network: Shape of the network from scratch; None is the default.
        device: As torch names it; None is a GPU where there is one.

    Returns:
        Dice with intervals.

    Raises:
        ConfigError: A number is below 1, or there is no such device.
        RunError: `run` is not a complete run.
        StoreError: A named task is not in the store, or has too few masks.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    torch.manual_seed(seed)
    unet = build_network(network or NetworkConfig()) if str(run) == SCRATCH else load_unet(run)[0]
    unet = to_device(unet.eval(), device)
    chosen = tasks if tasks is not None else [task for task in store.tasks if can_probe(store, task, subjects)]
    drawn: dict[str, list[tuple[str, ...]]] = {}
    scores: list[ProbeScore] = []
    for task in track(chosen, "probe"):
        drawn[task], found = probe_task(unet, store, task, subjects=subjects, repeats=repeats, seed=seed)
        scores += found
    return ProbeResult(run=str(run), subjects=subjects, repeats=repeats, seed=seed, drawn=drawn, scores=scores)


def probe_task(
    network: UNet, store: Store, task: str, *, subjects: int = 1, repeats: int = 10, seed: int = 0
) -> tuple[list[tuple[str, ...]], list[ProbeScore]]:
    """Scores what a network knows of one task. No random state but its own is used.

    Args:
        network: The encoder-decoder, in evaluation mode.
        store: The data.
        task: The task.
        subjects: Labelled training subjects of each sample.
        repeats: Samples.
        seed: Of the samples and of the pixels.

    Returns:
        The subjects of each sample; the scores of each label, then their mean.

    Raises:
        ConfigError: A number is below 1.
        StoreError: The task is not in the store, or has too few masks.
    """
    if subjects < 1 or repeats < 1:
        raise ConfigError(
            "a probe needs at least 1 labelled subject and 1 repeat", hint="give larger numbers, or leave them out"
        )
    if not can_probe(store, task, subjects):
        raise StoreError(
            f"task '{task}' has too few masks to probe with {subjects} labelled subjects",
            path=store.path,
            hint="it needs as many labelled training subjects and a labelled validation subject",
        )
    samples = _samples(store, task, subjects, repeats, seed)
    return samples, _probe_task(network, store, store.tasks[task], samples, seed)


def can_probe(store: Store, task: str, subjects: int = 1) -> bool:
    """Whether a task has masks of as many training subjects, and of a validation subject."""
    train = {case.subject for case in store.cases(task, part="train", labelled=True)}
    return len(train) >= subjects and bool(store.cases(task, part="val", labelled=True))


def _probe_task(
    network: UNet, store: Store, task: TaskInfo, groups: Sequence[tuple[str, ...]], seed: int
) -> list[ProbeScore]:
    rng = np.random.default_rng((seed, 7))
    pixels = {name: _pixels(network, store, task, name, rng) for name in sorted({s for group in groups for s in group})}
    read_outs = []
    for group in groups:
        features, classes = (torch.cat([pixels[name][part] for name in group]) for part in (0, 1))
        read_outs.append(_ReadOut(features, classes, task.classes))
    linear, neighbours = _score(network, store, task, read_outs, rng)
    names = [*task.labels.values(), "mean"]
    return [_summary(task.name, name, linear[:, n], neighbours[:, n]) for n, name in enumerate(names)]


def _samples(store: Store, task: str, subjects: int, repeats: int, seed: int) -> list[tuple[str, ...]]:
    """Different samples of labelled training subjects, in a random order that depends on seed and data alone."""
    candidates = sorted({case.subject for case in store.cases(task, part="train", labelled=True)})
    rng = np.random.default_rng((seed, 6))
    possible = math.comb(len(candidates), subjects)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < min(repeats, possible):
        drawn = rng.choice(len(candidates), subjects, replace=False)
        found[tuple(candidates[index] for index in sorted(drawn))] = None
    return list(found)


class _ReadOut:
    """A linear and a nearest-neighbour read-out of the same pixels.

    Args:
        features: float32 ``[pixels, channels]``.
        classes: int64 ``[pixels]``.
        count: Number of classes.
    """

    def __init__(self, features: Tensor, classes: Tensor, count: int) -> None:
        self.mean, self.deviation = features.mean(0), features.std(0) + 1e-3
        self.known = F.normalize(self._standardise(features), dim=1)
        self.one_hot = F.one_hot(classes, count).float()
        # Ridge regression on the classes, each with the same total weight: a closed form, and the same every time.
        weight = (1 / self.one_hot.sum(0).clamp(min=1))[classes] * len(classes) / count
        inputs = torch.cat((self._standardise(features), torch.ones(len(features), 1)), 1).double()
        gram = inputs.T @ (inputs * weight[:, None])
        penalty = RIDGE * len(features) * torch.eye(len(gram), dtype=torch.float64)
        penalty[-1, -1] = 0
        self.linear = torch.linalg.solve(gram + penalty, inputs.T @ (self.one_hot * weight[:, None]).double()).float()

    def _standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    def classify(self, features: Tensor) -> Tensor:
        """Class of each pixel ``[N, channels]`` by the linear read-out."""
        scores: Tensor = self._standardise(features) @ self.linear[:-1] + self.linear[-1]
        return scores.argmax(1)

    def vote(self, features: Tensor) -> Tensor:
        """Class of each pixel by its nearest neighbours in cosine distance."""
        near = (F.normalize(self._standardise(features), dim=1) @ self.known.T).topk(NEIGHBOURS, dim=1).indices
        found: Tensor = self.one_hot[near].sum(1).argmax(1)
        return found


def _pixels(
    network: UNet, store: Store, task: TaskInfo, subject: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Features and classes of some pixels of a labelled subject, half of them on labels where there are any."""
    features, classes = [], []
    for case in store.cases(task.name, subjects=[subject], labelled=True):
        for found, truth in _slices(network, store, task, case, range(case.shape[0])):
            known = np.flatnonzero(truth.ravel() != IGNORE)
            inside = known[truth.ravel()[known] > 0]
            some = (rng.permutation(inside)[:FOREGROUND], rng.permutation(known)[:BACKGROUND])
            picked = torch.from_numpy(np.concatenate(some))
            features.append(found.flatten(1)[:, picked].T)
            classes.append(torch.from_numpy(truth.ravel().astype(np.int64))[picked])
    joined, labels = torch.cat(features), torch.cat(classes)
    kept = torch.from_numpy(rng.permutation(len(joined))[:PIXELS])
    return joined[kept], labels[kept]


def _score(
    network: UNet, store: Store, task: TaskInfo, read_outs: Sequence[_ReadOut], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dice of each read-out ``[read-outs, labels + 1]``, the mean over labels last: linear, and by neighbours."""
    channels = range(1, task.classes)
    linear: list[list[list[float]]] = []
    neighbours: list[list[list[float]]] = []
    for case in store.cases(task.name, part="val", labelled=True):
        chosen = np.unique(np.linspace(0, case.shape[0] - 1, min(SLICES, case.shape[0])).round().astype(int))
        masks: list[list[NDArray[np.int64]]] = [[] for _ in read_outs]
        votes: list[list[NDArray[np.int64]]] = [[] for _ in read_outs]
        truths, asked = [], []
        for features, truth in _slices(network, store, task, case, chosen.tolist()):
            known = np.flatnonzero(truth.ravel() != IGNORE)
            queries = rng.permutation(known)[:QUERIES]
            truths.append(truth.ravel()[known])
            asked.append(truth.ravel()[queries])
            pixels = features.flatten(1).T
            for number, read_out in enumerate(read_outs):
                masks[number].append(read_out.classify(pixels[torch.from_numpy(known)]).numpy())
                votes[number].append(read_out.vote(pixels[torch.from_numpy(queries)]).numpy())
        for found, truth_parts, into in ((masks, truths, linear), (votes, asked, neighbours)):
            truth = np.concatenate(truth_parts)
            into.append([dice_by_label(truth, np.concatenate(each), channels) for each in found])
    return _with_mean(np.array(linear)), _with_mean(np.array(neighbours))


def _with_mean(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over cases ``[cases, read-outs, labels]``, and in the last column the mean over labels of each case."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a label that no case shows
        by_label, by_case = np.nanmean(dice, axis=0), np.nanmean(np.nanmean(dice, axis=2), axis=0)
    return np.concatenate((by_label, by_case[:, None]), axis=1)


def _summary(task: str, label: str, linear: NDArray[np.float64], neighbours: NDArray[np.float64]) -> ProbeScore:
    samples = [0.0 if math.isnan(value) else float(value) for value in linear]
    mean, low, high = fmean(samples), None, None
    if len(samples) > 1:
        reach = float(student_t.ppf(0.975, len(samples) - 1)) * stdev(samples) / math.sqrt(len(samples))
        low, high = max(0.0, mean - reach), min(1.0, mean + reach)
    near = float(np.nan_to_num(neighbours).mean())
    return ProbeScore(task=task, label=label, linear=mean, low=low, high=high, neighbours=near, samples=samples)


@torch.inference_mode()
def _slices(
    network: UNet, store: Store, task: TaskInfo, case: CaseRecord, numbers: Sequence[int] | range
) -> Iterator[tuple[Tensor, NDArray[np.uint8]]]:
    """Features ``[channels, rows, columns]`` of all decoder stages at full resolution, and the class of each pixel."""
    device = next(network.parameters()).device
    for number in numbers:
        image: Any = torch.from_numpy(store.image_slice(case, number).astype(np.float32))[None, None].to(device)
        rows, columns = image.shape[-2:]
        # At least two pixels at the deepest stage: one alone cannot be normalised.
        short = [max(2 * d, math.ceil(n / d) * d) - n for n, d in zip((rows, columns), network.divisor, strict=True)]
        image = F.pad(image, (0, short[1], 0, short[0]))
        decoded = network.decode(network.encode(image))
        parts = [F.interpolate(each, image.shape[-2:], mode="bilinear", align_corners=False) for each in decoded]
        features = torch.cat(parts, 1)[0, :, :rows, :columns].float().cpu()
        yield features, task.to_channels(store.label_slice(case, number))
