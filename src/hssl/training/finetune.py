"""Fine-tuning: the whole network, encoder and decoder, on a few masks of one task and all of its scans."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError, StoreError
from hssl.metrics import dice_by_label, dice_ce_loss
from hssl.networks import SegmentationNetwork, build_network
from hssl.objectives import WATCH
from hssl.prediction.components import keep_largest, learn_rule
from hssl.prediction.masks import class_planes, join_planes
from hssl.prediction.tiling import predict_slabs, predict_volume
from hssl.runs.run import ComponentRule, Run, RunInfo, provenance
from hssl.store import Store
from hssl.training.auxiliary import (
    Auxiliary,
    AuxiliaryBatch,
    AuxiliaryOptions,
    LabelledView,
    Setting,
    build_auxiliaries,
    checked_options,
    resolve_auxiliaries,
)
from hssl.training.checks import check_batch_size, check_patch
from hssl.training.cost import cost_in_words
from hssl.training.data import BatchData, FinetuneBatch, FinetuneData, WindowData
from hssl.training.loggers import check_loggers
from hssl.training.loop import Stage, as_finished, expected_device, fit, make_trainer, wants_bf16
from hssl.training.progress import VALIDATION
from hssl.training.start import load_start, with_source
from hssl.views import follow, make_view

SLICES_TIMED = 4
"""Slices of a case that are predicted to tell what validation will take."""
logger = logging.getLogger(__name__)


class Finetuning(Stage):
    """A segmentation network, its labelled subjects, and what else it learns from.

    Args:
        config: What to do.
        store: The aggregated data.
        run: Where it is kept.
        network: Encoder, decoder and new head.
        labelled: Subjects whose masks are trained on.
        loaded: Whether encoder and decoder come from pre-training.
        auxiliaries: Options of each auxiliary, by name.
        before: The pre-training that the network starts from; None without one.
    """

    config: FinetuneConfig

    def __init__(
        self,
        config: FinetuneConfig,
        store: Store,
        run: Run,
        network: SegmentationNetwork,
        labelled: list[str],
        *,
        loaded: bool,
        auxiliaries: dict[str, AuxiliaryOptions] | None = None,
        before: PretrainConfig | None = None,
    ) -> None:
        super().__init__(config, run)
        self.store, self.labelled, self.loaded = store, labelled, loaded
        self.network = network
        self.average: SegmentationNetwork | None = None
        if config.ema_decay:
            self.average = copy.deepcopy(network).requires_grad_(False)
        self.auxiliary_options = auxiliaries or {}
        built = build_auxiliaries(self.auxiliary_options, Setting(config, before, network, store, labelled))
        self.names, self.auxiliaries = list(built), nn.ModuleList(built.values())
        self.extra = {"best": -1.0}

    @property
    def auxiliary(self) -> dict[str, Auxiliary]:
        """The auxiliaries by name."""
        return dict(zip(self.names, cast("Iterable[Auxiliary]", self.auxiliaries), strict=True))

    @property
    def kept(self) -> SegmentationNetwork:
        """The network whose weights the run keeps: the moving average, if there is one."""
        return self.network if self.average is None else self.average

    def losses(self, batch: FinetuneBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        """Dice and cross-entropy on one augmented view of each window, and the losses of the auxiliaries."""
        window, labels = batch.labelled
        view = make_view(window, self.config.patch_size, self.config.view, generator)
        labelled = LabelledView(view.image, follow(labels, view.grid))
        losses = {"dice_ce": dice_ce_loss(self.network(labelled.image).float(), labelled.label)}
        for name, auxiliary in self.auxiliary.items():
            windows, weight = batch.unlabelled[name], self.auxiliary_options[name].weight
            given = AuxiliaryBatch(labelled, windows, self.kept, step, generator)
            for each, loss in auxiliary(self.network, given).items():
                if each.startswith(WATCH):
                    losses[f"{WATCH}{name}/{each.removeprefix(WATCH)}"] = loss
                else:
                    losses[f"{name}/{each}"] = weight * loss
        return losses

    def data(self, rank: int, world_size: int) -> BatchData[Any]:
        """Windows of the labelled subjects and, for auxiliaries, of all training subjects of the task."""
        ranks = {"rank": rank, "world_size": world_size}
        unlabelled = {
            name: WindowData(
                self.store,
                (self.config.task,),
                batch_size=options.batch_size,
                size=self.config.window,
                steps=self.config.steps,
                seed=self.config.seed,
                stream=(number,),
                **ranks,
            )
            for number, (name, options) in enumerate(self.auxiliary_options.items())
        }
        return FinetuneData(self.store, self.labelled, self.config, unlabelled=unlabelled, **ranks)

    def trained(self) -> dict[str, nn.Module]:
        """The segmentation network, the average of its weights, and the auxiliaries."""
        average = {} if self.average is None else {"average": self.average}
        return {"network": self.network, **average, **self.auxiliary}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The U-Net, the new head and the heads of the auxiliaries, each with its own learning rate."""
        unet: dict[str, Any] = {"params": list(self.network.unet.parameters())}
        if self.loaded:
            unet |= {"rate": self.config.init_lr_factor, "freeze_steps": self.config.freeze_steps}
        groups = [unet, {"params": list(self.network.head.parameters()), "rate": self.config.head_lr_factor}]
        own = [p for p in self.auxiliaries.parameters() if p.requires_grad]
        return [*groups, {"params": own}] if own else groups

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """As the schedule says for the group; loaded layers wait while they are frozen."""
        return 0.0 if step < group.get("freeze_steps", 0) else super().rate(step, group)

    def after_step(self, step: int) -> None:
        """Moves the average, lets auxiliaries move theirs, validates now and then, and keeps the best weights."""
        if self.average is not None:
            update_average(self.average, self.network, self.config.ema_decay, step)
        for auxiliary in self.auxiliary.values():
            auxiliary.after_step(self.network)
        every, last = self.config.validate_every, step == self.config.steps
        if self.config.validation and (step % every == 0 or last):
            dice = self.validate()
            # While nothing is found, the later weights are no worse.
            best = dice > self.extra["best"] or dice == self.extra["best"] == 0
            if best:
                self.extra = {"best": dice, "best_step": step}
            if self.global_rank == 0:
                self.record(step, {VALIDATION: dice})
                if best:
                    self.run.save_weights(self.kept)
                logger.info("step %d: validation Dice %.3f%s", step, dice, ", the best so far" * (dice > 0 and best))
                if last and not self.extra["best"]:
                    logger.warning("no validation has found any label: the last weights are kept")
                elif last:
                    logger.info("kept: step %d, validation Dice %.3f", self.extra["best_step"], self.extra["best"])

    @property
    def tiling(self) -> dict[str, Any]:
        """Options with which validation predicts."""
        mirror = tuple(each > 0 for each in self.config.view.flip)
        return {"patch_size": self.config.patch_size, "amp": wants_bf16(self.config), "mirror": mirror}

    def validation_seconds(self) -> float:
        """What all validations will take, from a few slices of one case."""
        if not self.config.validation:
            return 0.0
        cases = self.store.cases(self.config.task, part="val", labelled=True)
        times = math.ceil(self.config.steps / self.config.validate_every)
        return self.slice_seconds() * sum(case.shape[0] for case in cases) * times

    def slice_seconds(self) -> float:
        """What the prediction of a slice takes, from a few slices of one case."""
        network = copy.deepcopy(self.kept).to(expected_device(self.config)).eval()
        some = self.store.image(self.store.cases(self.config.task)[0])[:SLICES_TIMED]
        began = time.monotonic()
        predict_volume(network, some, **self.tiling)
        return (time.monotonic() - began) / len(some)

    def validate(self) -> float:
        """Mean Dice over validation cases and labels, in the store's grid; 0 where there is nothing to score."""
        task, network = self.store.tasks[self.config.task], self.kept.eval()
        scores = []
        for case in self.store.cases(task.name, part="val", labelled=True):
            slabs = predict_slabs(network, self.store.image(case), **self.tiling)
            predicted = join_planes(task, [class_planes(task, slab) for slab in slabs])
            predicted = keep_largest(predicted, self.run.info.components)
            truth = self.store.label(case)
            if task.ignore is not None:
                predicted = predicted * (truth != task.ignore)
            scores.append(dice_by_label(truth, predicted, task.labels))
        network.train()
        means = [np.nanmean(row) for row in scores if not np.isnan(row).all()]
        return float(np.mean(means)) if means else 0.0


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Moves an exponential moving average of weights towards those of `network`.

    Args:
        average: A copy of the network.
        network: The network in training.
        decay: Share that stays; in the first steps less, (1 + step) / (10 + step), so that the start is forgotten.
        step: Steps taken.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)


def finetune(
    store: Store | Path | str,
    output: Path | str,
    *,
    config: FinetuneConfig | None = None,
    task: str | None = None,
    labels: str | int | Sequence[str] | None = None,
    init: Path | str | None = None,
    validation: bool | None = None,
    steps: int | None = None,
    patch_size: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    auxiliary: dict[str, bool | dict[str, Any]] | None = None,
    **options: Any,
) -> Run:
    """Fine-tunes a network on some of a task's masks, or continues the run in `output`.

    Options that are not given are those of `config`, or the defaults of :class:`hssl.config.FinetuneConfig`.

    Args:
        store: The aggregated data.
        output: Run folder.
        config: Options; those given by name override them.
        task: The task.
        labels: Label budget: a share (``"5%"``), a number of subjects, or their ids.
        init: A run folder, usually of pre-training, ``hf://OWNER/NAME`` or ``"scratch"``.
        validation: Whether the masks of validation subjects choose the best step.
        steps: Optimiser steps.
        patch_size: Side of what the network sees, in pixels.
        batch_size: Patches a step.
        seed: Fixes every draw.
        auxiliary: What is learned from besides masks: ``{"self_training": True, "pretext": {"weight": 0.1}}``.
        options: Any other field of :class:`hssl.config.FinetuneConfig`.

    Returns:
        The complete run; its weights are those of the best validation Dice, or the last ones without validation.

    Raises:
        ConfigError: An option is not valid or does not fit the data, or a logger is not installed.
        RunError: `output` holds something else, or `init` is not a complete run or has seen test subjects.
        StoreError: The task is not in the store, or has no masks.
        TrainingError: The loss is not finite.
    """
    named: dict[str, Any] = {"task": task, "label_budget": labels, "init": None if init is None else str(init)}
    named |= {"validation": validation, "steps": steps, "patch_size": patch_size, "batch_size": batch_size}
    config = FinetuneConfig.over(config, **options, **named, seed=seed, auxiliary=auxiliary)
    # Spelled out, for the record and for the comparison with a run to continue.
    spelled = {name: checked_options(name, given).model_dump(mode="json") for name, given in config.auxiliaries.items()}
    config = config.model_copy(update={"auxiliary": dict.fromkeys(config.auxiliary, False) | spelled})
    return _finetune(store if isinstance(store, Store) else Store.open(store), Path(output), config)


def _finetune(store: Store, output: Path, config: FinetuneConfig) -> Run:
    check_batch_size(config.batch_size, config, "batch size", least=1)
    budget = config.label_budget if isinstance(config.label_budget, str | int) else list(config.label_budget)
    labelled = store.labelled(config.task, budget, config.seed)
    if all(case.label_voxels == {} for case in store.cases(config.task, subjects=labelled, labelled=True)):
        raise StoreError(
            f"no mask of {', '.join(labelled[:4])} of '{config.task}' holds a label",
            path=store.path,
            hint="choose other labelled subjects, or more of them",
        )
    validation_set = validation_subjects(config, store)
    torch.manual_seed(config.seed)
    unet, source = load_start(config, store) or (build_network(config.network), None)
    before = source.config if source is not None and isinstance(source.config, PretrainConfig) else None
    auxiliaries = resolve_auxiliaries(config, before)
    info = _run_info(config, store, labelled, validation_set, source, whole=bool(auxiliaries))
    # Seeded again: the new head is the same whatever the network under it comes from.
    torch.manual_seed(config.seed)
    network = SegmentationNetwork(unet, store.tasks[config.task].classes, config.head)
    check_patch(config.patch_size, unet)
    run = Run.prepare(output, config, info)
    if run.info.complete:
        logger.info("%s is complete: nothing to do", run.path)
        return run
    check_loggers(config)
    store.check([config.task])
    loaded = source is not None
    stage = Finetuning(config, store, run, network, labelled, loaded=loaded, auxiliaries=auxiliaries, before=before)
    trainer = make_trainer(config, run.path, f"finetune {config.task}")
    run.create()  # only now, as in pre-training
    _announce(stage, source, validation_set)
    if trainer.is_global_zero:
        _announce_cost(stage)
    seconds = fit(stage, trainer)
    if stage.global_rank == 0:
        if not config.validation:
            run.save_weights(stage.kept)
        run.finish({"seconds": seconds, "labelled": labelled, **(stage.extra if config.validation else {})})
    return as_finished(run, trainer)


def _run_info(
    config: FinetuneConfig,
    store: Store,
    labelled: list[str],
    validation_set: list[str],
    source: Run | None,
    *,
    whole: bool,
) -> RunInfo:
    """What the run sees; with `whole` the images of all training subjects."""
    masks = {config.task: sorted({*labelled, *validation_set})}
    images = {*masks[config.task], *(store.split(config.task).train if whole else ())}
    info = RunInfo(
        stage="finetune",
        network=config.network,
        task=store.tasks[config.task],
        subjects_seen={config.task: sorted(images)},
        masks_seen=masks,
        components=_component_rule(config, store, labelled),
        provenance=provenance(config, store),
    )
    return info if source is None else with_source(info, source)


def _component_rule(config: FinetuneConfig, store: Store, labelled: list[str]) -> ComponentRule:
    """The components rule of the labelled masks; an empty one where masks are drawn in part."""
    task = store.tasks[config.task]
    masks = [store.label(case) for case in store.cases(task.name, subjects=labelled, labelled=True)]
    in_part = task.ignore is not None and any((mask == task.ignore).any() for mask in masks)
    if config.labelled_slices is not None or in_part:
        return ComponentRule()
    return learn_rule(masks, list(task.labels))


def _announce(stage: Finetuning, source: Run | None, validation_set: list[str]) -> None:
    config, store, labelled = stage.config, stage.store, stage.labelled
    if source is None:
        logger.info("from scratch: encoder, decoder and segmentation head are new")
    else:
        logger.info("loaded encoder and decoder of %s; new: segmentation head", config.init)
    names = ", ".join(labelled[:4]) + " ..." * (len(labelled) > 4)
    logger.info(
        f"{config.task}: masks of {len(labelled)} of the {len(store.labelled(config.task, '100%'))} training subjects "
        f"that have one ({names})"
        + (f", {config.labelled_slices} slices of each case" if config.labelled_slices else "")
        + (f" and, to choose the checkpoint, of {len(validation_set)} for validation" if validation_set else "")
    )
    if single := stage.run.info.components.describe(store.tasks[config.task].labels):
        logger.info(
            "one piece in each of these masks, so prediction keeps the largest (--no-components: all): %s",
            single,
        )
    if source is not None and (known := source.info.masks_seen.get(config.task)):
        logger.warning(
            f"{source.path} was trained on masks of {len(known)} subjects of {config.task}, which count as labels too"
        )
    for name, auxiliary in stage.auxiliary.items():
        count = len(store.split(config.task).train)
        logger.info("auxiliary %s on the images of all %d training subjects: %s", name, count, auxiliary.describe())


def _announce_cost(stage: Finetuning) -> None:
    config = stage.config
    parameters = sum(p.numel() for p in stage.network.parameters())
    logger.info(
        f"{parameters / 1e6:.2f} M parameters, {config.steps} steps of {config.batch_size} patches at "
        f"{config.patch_size}x{config.patch_size}; {cost_in_words(stage, besides=stage.validation_seconds())}"
    )


def validation_subjects(config: FinetuneConfig, store: Store) -> list[str]:
    """Subjects whose masks choose the checkpoint; none without validation.

    Raises:
        ConfigError: There is no validation subject with a mask.
    """
    if not config.validation:
        return []
    if found := sorted({case.subject for case in store.cases(config.task, part="val", labelled=True)}):
        return found
    raise ConfigError(f"task '{config.task}' has no validation subject with a mask", hint="use --no-validation")


__all__ = ["Finetuning", "finetune", "update_average", "validation_subjects"]
