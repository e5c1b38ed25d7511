"""Fine-tuning: the whole network, encoder and decoder, on a few masks of one task."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError, StoreError
from hssl.networks import SegmentationNetwork, build_network, predict_slabs
from hssl.objectives import WATCH, Objective, build_rehearsed
from hssl.runs.run import Run, RunInfo, provenance
from hssl.store import Store
from hssl.training.data import FinetuneBatch, FinetuneData, PretrainData
from hssl.training.loggers import check_loggers
from hssl.training.loop import Stage, as_finished, fit, make_trainer, wants_bf16
from hssl.training.pretrain import ask, check_batch_size, check_patch
from hssl.training.start import load_start, with_source
from hssl.views import follow, make_view

logger = logging.getLogger(__name__)


class Finetuning(Stage):
    """A segmentation network and its labelled subjects.

    Args:
        config: What to do.
        store: The aggregated data.
        run: Where it is kept.
        network: Encoder, decoder and new head.
        labelled: Subjects whose masks are trained on.
        loaded: Whether encoder and decoder come from pre-training.
        rehearsal: The pre-training to rehearse, cut to this task; None for fine-tuning on masks alone.
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
        rehearsal: PretrainConfig | None = None,
    ) -> None:
        super().__init__(config, run)
        self.store, self.labelled, self.loaded = store, labelled, loaded
        self.network = network
        self.rehearsal = rehearsal
        self.objective: Objective | None = None
        if rehearsal is not None:
            # Its heads are new: those of pre-training were thrown away.
            self.objective = build_rehearsed(rehearsal.objective, network.unet, config.task, rehearsal.options)
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        self.extra = {"best": -1.0}

    def losses(self, batch: FinetuneBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        """Dice and cross-entropy on one augmented view of each window, and the pretext losses that are rehearsed."""
        window, labels = batch.labelled
        view = make_view(window, self.config.patch_size, self.config.view, generator)
        label = follow(labels, view.grid)
        losses = {"dice_ce": self.loss(self.network(view.image).float(), label[:, None])}
        if self.objective is not None and self.rehearsal is not None and batch.rehearsed is not None:
            asked = ask(self.objective, self.network.unet, batch.rehearsed, self.rehearsal, generator)
            for name, loss in asked.items():
                if not name.startswith(WATCH):
                    losses[f"rehearsal/{name}"] = self.config.rehearsal * loss
        return losses

    def data(self, rank: int, world_size: int) -> Dataset[Any]:
        """Windows of the labelled subjects and, to rehearse on, of all training subjects of the task."""
        rehearsed = None
        if self.rehearsal is not None:
            rehearsed = PretrainData(self.store, (self.config.task,), self.rehearsal, rank=rank, world_size=world_size)
        return FinetuneData(
            self.store, self.labelled, self.config, rehearsed=rehearsed, rank=rank, world_size=world_size
        )

    def trained(self) -> dict[str, nn.Module]:
        """The segmentation network and, where it rehearses, the objective's heads."""
        return {"network": self.network, **({} if self.objective is None else {"objective": self.objective})}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The U-Net, the new head and the objective's heads, each with a rate of its own."""
        unet: dict[str, Any] = {"params": list(self.network.unet.parameters())}
        if self.loaded:
            unet |= {"rate": self.config.init_rate, "frozen": self.config.frozen}
        groups = [unet, {"params": list(self.network.head.parameters()), "rate": self.config.head_rate}]
        if self.objective is not None:
            groups.append({"params": [p for p in self.objective.parameters() if p.requires_grad]})
        return groups

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """As the schedule says for the group; loaded layers wait while they are frozen."""
        return 0.0 if step < group.get("frozen", 0) else super().rate(step, group)

    def after_step(self, step: int) -> None:
        """Lets the objective move its copies, validates now and then, and keeps the best weights."""
        if self.objective is not None:
            self.objective.after_step(self.network.unet)
        every, last = self.config.validate_every, step == self.config.steps
        if self.config.validation and (step % every == 0 or last):
            dice = self.validate()
            # While nothing is found, the later weights are no worse.
            best = dice > self.extra["best"] or dice == self.extra["best"] == 0
            if best:
                self.extra = {"best": dice, "best_step": step}
            if self.global_rank == 0:
                self.record(step, {"validation_dice": dice})
                if best:
                    self.run.save_weights(self.network)
                if last and not self.extra["best"]:
                    logger.warning("no validation has found any label: the last weights are kept")

    def validate(self) -> float:
        """Mean Dice over validation cases and labels, in the store's grid; 0 where there is nothing to score."""
        self.network.eval()
        task = self.store.tasks[self.config.task]
        options = {"patch_size": self.config.patch_size, "amp": wants_bf16(self.config)}
        scores = [
            dice_by_label(
                task.joined([*map(task.planes, predict_slabs(self.network, self.store.image(case), **options))]),
                self.store.label(case),
                list(task.labels),
            )
            for case in self.store.cases(self.config.task, self.store.split(self.config.task).val)
            if case.has_label
        ]
        self.network.train()
        means = [np.nanmean(row) for row in scores if not np.isnan(row).all()]
        return float(np.mean(means)) if means else 0.0


def dice_by_label(prediction: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], labels: list[int]) -> list[float]:
    """Dice of each label; NaN where both are empty."""
    values = []
    for label in labels:
        first, second = prediction == label, truth == label
        size = np.count_nonzero(first) + np.count_nonzero(second)
        values.append(2 * np.count_nonzero(first & second) / size if size else math.nan)
    return values


def finetune(store: Store | Path | str, output: Path | str, *, config: FinetuneConfig) -> Run:
    """Fine-tunes a network on some of a task's masks, or continues the run in `output`.

    Args:
        store: The aggregated data.
        output: Run folder.
        config: Task, labels, where to start from, schedule.

    Returns:
        The complete run; its weights are those of the best validation Dice, or the last ones without validation.

    Raises:
        ConfigError: An option does not fit the data, or a logger is not installed.
        RunError: `output` holds something else, or `init` is not a complete run or has seen test subjects.
        StoreError: The task is not in the store, or has no masks.
        TrainingError: The loss is not finite.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    check_batch_size(config.batch_size, config, "batch size", least=1)
    split = store.split(config.task)
    labels = config.labels if isinstance(config.labels, str | int) else list(config.labels)
    labelled = store.labelled(config.task, labels, config.seed)
    if all(case.label_voxels == {} for case in store.cases(config.task, labelled) if case.has_label):
        raise StoreError(f"no mask of {', '.join(labelled[:4])} of '{config.task}' holds a label", path=store.path)
    validation = validation_subjects(config, store)
    masks = {config.task: sorted({*labelled, *validation})}
    info = RunInfo(
        stage="finetune",
        network=config.network,
        task=store.tasks[config.task],
        subjects_seen=masks,
        masks_seen=masks,
        provenance=provenance(config, store),
    )
    torch.manual_seed(config.seed)
    unet, source = load_start(config, store) or (build_network(config.network), None)
    if source is not None:
        info = with_source(info, source)
    before = source.config if source is not None else None
    rehearsal = rehearsed_pretraining(config, before if isinstance(before, PretrainConfig) else None)
    if rehearsal is not None:
        seen = info.subjects_seen | {config.task: sorted({*info.subjects_seen[config.task], *split.train})}
        info = info.model_copy(update={"subjects_seen": seen})
    # Seeded again: the new head is the same whatever the network under it comes from.
    torch.manual_seed(config.seed)
    network = SegmentationNetwork(unet, store.tasks[config.task].classes, config.head)
    check_patch(config.patch_size, unet)
    run = Run.prepare(Path(output), config, info)
    if run.info.complete:
        logger.info("%s is complete: nothing to do", run.path)
        return run
    check_loggers(config)
    loaded = source is not None
    stage = Finetuning(config, store, run, network, labelled, loaded=loaded, rehearsal=rehearsal)
    trainer = make_trainer(config, run.path, f"finetune {config.task}")
    run.create()  # only now, as in pre-training
    count, available = len(labelled), len(store.labelled(config.task, "100%"))
    if source is None:
        logger.info("from scratch: encoder, decoder and segmentation head are new")
    else:
        logger.info("loaded encoder and decoder of %s; new: segmentation head", config.init)
    names = ", ".join(labelled[:4]) + " ..." * (count > 4)
    logger.info(
        f"{config.task}: masks of {count} of {available} training subjects ({names})"
        + (f" and, to choose the checkpoint, of {len(validation)} for validation" if validation else "")
    )
    if source is not None and (known := source.info.masks_seen.get(config.task)):
        logger.warning(
            f"{source.path} was trained on masks of {len(known)} subjects of {config.task}: they are labels, too"
        )
    if rehearsal is not None:
        logger.info("rehearses '%s' on the images of %d training subjects", rehearsal.objective, len(split.train))
    seconds = fit(stage, trainer)
    if stage.global_rank == 0:
        if not config.validation:
            run.save_weights(network)
        run.finish({"seconds": seconds, "labelled": labelled, **(stage.extra if config.validation else {})})
    return as_finished(run, trainer)


def validation_subjects(config: FinetuneConfig, store: Store) -> list[str]:
    """Whose masks choose the checkpoint; none without validation.

    Raises:
        ConfigError: There is none.
    """
    if not config.validation:
        return []
    cases = store.cases(config.task, store.split(config.task).val)
    if found := sorted({case.subject for case in cases if case.has_label}):
        return found
    raise ConfigError(f"task '{config.task}' has no validation subject with a mask", hint="use --no-validation")


def rehearsed_pretraining(config: FinetuneConfig, before: PretrainConfig | None) -> PretrainConfig | None:
    """The pre-training that `config` rehearses after `before`, cut to its task and schedule; None without one.

    Raises:
        ConfigError: Its batch does not suit the devices.
    """
    options = config.rehearsed(before)
    if not options:
        return None
    name, hint = "option 'rehearsal_batch_size':", "at least 2 each, or rehearsal=0"
    check_batch_size(config.rehearsal_batch_size, config, name, hint)
    return PretrainConfig(
        **options,
        tasks=(config.task,),
        batch_size=config.rehearsal_batch_size,
        patch_size=config.patch_size,
        window_size=config.window_size,
        steps=config.steps,
        seed=config.seed,
        groups="none",
    )


__all__ = ["Finetuning", "finetune", "rehearsed_pretraining", "validation_subjects"]
