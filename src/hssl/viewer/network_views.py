"""What a run's network sees and says: views of training, its own masks of scans without, slices by their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import RunError, StoreError
from hssl.features import distances, pooled_features, spread_slices, standardised, to_plane
from hssl.palette import label_colours
from hssl.prediction.tiling import predict_volume
from hssl.runs import Run, latest_segmentation, latest_unet
from hssl.store import CaseRecord, Store
from hssl.training.auxiliary.self_training import SelfTrainingOptions, thresholds
from hssl.training.data import FinetuneData, pretrain_windows
from hssl.viewer.pictures import draw_slice, sheet
from hssl.views import follow, make_view

SHOWN = 8
"""Windows, or slices, in a sheet."""
ON_MAP = 40
"""Slices of each task on the map."""
NEAR = 6
"""Neighbours of a slice."""
FEWEST = 4
"""Slices that a map needs."""
SIDE = 128
"""Pixels that a slice of the map is brought to."""
SELF_TRAINING = "self_training"


def run_tasks(run: Run, store: Store) -> list[str]:
    """The tasks of a store whose images a run has learnt from."""
    return [task for task in run.info.subjects_seen if task in store.tasks]


def labelled_subjects(run: Run, store: Store) -> list[str]:
    """The training subjects whose masks a fine-tuning learns from."""
    seen = run.info.masks_seen.get(run.task.name, [])
    train = set(store.split(run.task.name).train)
    return [subject for subject in seen if subject in train]


def draw_views(run: Run, store: Store, step: int) -> bytes:
    """Windows of the batch of a step, and below each a view as training draws them; a PNG.

    Of a pre-training two views, of a fine-tuning one, with the outlines of the masks.

    Raises:
        StoreError: The store lacks what the run was made from.
    """
    generator = torch.Generator().manual_seed(run.config.seed * 1_000_003 + step)
    config = run.config
    if isinstance(config, PretrainConfig):
        batch = pretrain_windows(store, tuple(run_tasks(run, store)), config)[min(step, config.steps - 1)]
        windows = batch.window[:SHOWN]
        views = [make_view(windows, config.patch_size, config.view, generator).image for _ in range(2)]
        rows = [[draw_slice(image[0].numpy()) for image in images] for images in (windows, *views)]
        return sheet(rows)
    labelled = FinetuneData(store, labelled_subjects(run, store), config)[min(step, config.steps - 1)].labelled
    windows, labels = labelled.window[:SHOWN], labelled.label[:SHOWN]
    view = make_view(windows, config.patch_size, config.view, generator)
    values = run.task.values
    colours = label_colours(run.task.labels)
    named = [_values(values, each.numpy()) for each in (labels, follow(labels, view.grid))]
    rows = [
        [draw_slice(image[0].numpy(), mask, colours) for image, mask in zip(images, masks, strict=True)]
        for images, masks in zip((windows, view.image), named, strict=True)
    ]
    return sheet(rows)


def _values(values: NDArray[np.uint8], channels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Label values of channels; 0 for what nobody has drawn."""
    known = channels < len(values)
    found: NDArray[np.uint8] = np.where(known, values[np.where(known, channels, 0)], 0).astype(np.uint8)
    return found


@dataclass(frozen=True)
class OwnMasks:
    """What a network says of scans without masks.

    Attributes:
        step: Of the network.
        png: The sheet.
        believed: Share of the pixels that are believed; None where the run has no thresholds.
    """

    step: int
    png: bytes
    believed: float | None


def draw_own_masks(run: Run, store: Store) -> OwnMasks:
    """The masks that the network has now of some training slices whose masks it does not learn from.

    Of a training that goes on they are the teacher's of the latest checkpoint. Filled is what is believed by its
    thresholds, an outline alone is not.

    Raises:
        RunError: There are no weights yet, or any more.
        StoreError: All training subjects are labelled.
    """
    if not isinstance(run.config, FinetuneConfig):
        raise RunError("is a pre-training run, which predicts no masks", path=run.path, hint="fine-tune it first")
    network, step = latest_segmentation(run)
    needed = _needed(run)
    labelled = set(labelled_subjects(run, store))
    cases = [case for case in store.cases(run.task.name, part="train") if case.subject not in labelled]
    if not cases:
        what = "all training subjects are labelled: there is no scan without a mask"
        raise StoreError(what, path=store.path, hint="there is nothing to see of this then")
    chosen = [cases[int(at)] for at in np.unique(np.linspace(0, len(cases) - 1, SHOWN).astype(int))]
    colours = label_colours(run.task.labels)
    plain, marked, believed = [], [], []
    for case in chosen:
        image = store.image_slice(case, case.shape[0] // 2)
        scores = predict_volume(network, image[None].astype(np.float32), patch_size=run.config.patch_size)[:, 0]
        probability = softmax(scores, axis=0)
        channel = probability.argmax(0)
        sure = np.ones(channel.shape, bool) if needed is None else probability.max(0) >= needed[channel]
        mask = run.task.values[channel]
        plain.append(draw_slice(image))
        filled = draw_slice(image, np.where(sure, mask, 0).astype(np.uint8), colours, filled=0.45)
        outline = draw_slice(image, mask, colours)
        marked.append(np.where((mask > 0)[:, :, None] & ~sure[:, :, None], outline, filled))
        believed.append(sure.mean())
    return OwnMasks(step, sheet([plain, marked]), None if needed is None else float(np.mean(believed)))


def _needed(run: Run) -> NDArray[np.float32] | None:
    """The probability that a pixel of each class needs to be believed; None where nobody knows it any more."""
    if run.info.complete or not isinstance(run.config, FinetuneConfig) or SELF_TRAINING not in run.config.auxiliaries:
        return None
    _, modules = run.checkpoint_tensors(SELF_TRAINING)
    reached = modules.get(SELF_TRAINING, {}).get("reached")
    if reached is None:
        return None
    options = SelfTrainingOptions.model_validate(run.config.auxiliaries[SELF_TRAINING])
    needed: NDArray[np.float32] = thresholds(reached, options).numpy()
    return needed


@dataclass(frozen=True)
class Placed:
    """Slices on a map.

    Attributes:
        slices: Case and number of each.
        points: float ``[slices, 2]``.
        near: The nearest slices of other subjects, the nearest first.
        step: Of the network.
    """

    slices: list[tuple[CaseRecord, int]]
    points: NDArray[np.float64]
    near: list[list[int]]
    step: int


def place_slices(run: Run, store: Store) -> Placed:
    """Places slices of validation subjects by the deepest features of the network.

    Raises:
        RunError: There are no weights yet, or any more.
        StoreError: There are too few slices.
    """
    network, step = latest_unet(run)
    slices = map_slices(run, store)
    if len(slices) < FEWEST:
        what = f"a map needs {FEWEST} slices of validation or test subjects, here are {len(slices)}"
        raise StoreError(what, path=store.path, hint="aggregate more subjects")
    images = [store.image_slice(case, number) for case, number in slices]
    features = standardised(pooled_features(network, images, side=SIDE))
    distance = distances(features, [f"{case.task}/{case.subject}" for case, _ in slices])
    order = distance.argsort(axis=1)[:, :NEAR]
    near = [[int(at) for at in row if np.isfinite(distance[number, at])] for number, row in enumerate(order)]
    return Placed(slices, to_plane(features), near, step)


def map_slices(run: Run, store: Store) -> list[tuple[CaseRecord, int]]:
    """The slices of the map, evenly spread through the validation cases of each task of a run.

    Where these show fewer than two subjects, so that none has a neighbour, the test cases are there too.
    """
    chosen = []
    for task in run_tasks(run, store):
        cases = store.cases(task, part="val")
        if len({case.subject for case in cases}) < 2:
            cases = [*cases, *store.cases(task, part="test")]
        chosen += spread_slices(cases, ON_MAP)
    return chosen
