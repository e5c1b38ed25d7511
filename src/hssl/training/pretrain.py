"""Pre-training: the training subjects of many tasks, no masks, one network."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from hssl.config import NetworkConfig, PretrainConfig
from hssl.errors import ConfigError
from hssl.grouping import GROUPS, Grouping, find_groups, given_groups
from hssl.networks import UNet, build_network
from hssl.objectives import Domains, WindowBatch, build_objective, checked_options, compute_losses
from hssl.probing import can_probe, probe_task
from hssl.runs.run import Run, RunInfo, provenance
from hssl.store import Store
from hssl.training.checks import check_batch_size, check_groups, check_patch
from hssl.training.cost import cost_in_words
from hssl.training.data import BatchData, pretrain_windows
from hssl.training.loggers import check_loggers
from hssl.training.loop import Stage, as_finished, fit, make_trainer
from hssl.training.start import load_start, with_source

logger = logging.getLogger(__name__)


class Pretraining(Stage):
    """The network and a pretext objective, which this loop does not know by name.

    Args:
        config: What to do.
        store: The aggregated data.
        run: Where it is kept.
        tasks: Tasks to learn from.
        network: The encoder-decoder to continue with; None makes a new one.
    """

    config: PretrainConfig

    def __init__(
        self, config: PretrainConfig, store: Store, run: Run, tasks: tuple[str, ...], network: UNet | None = None
    ) -> None:
        super().__init__(config, run)
        self.store, self.tasks = store, tasks
        torch.manual_seed(config.seed)
        self.network = build_network(config.network) if network is None else network
        domains = Domains(tasks, groups_at_start(config, tasks))
        self.objective = build_objective(config.objective, self.network, domains, config.options)

    def losses(self, batch: WindowBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        """The objective's losses."""
        return compute_losses(self.objective, self.network, batch, self.config.patch_size, self.config.view, generator)

    def data(self, rank: int, world_size: int) -> BatchData[Any]:
        """Windows of the training subjects."""
        return pretrain_windows(self.store, self.tasks, self.config, rank, world_size)

    def trained(self) -> dict[str, nn.Module]:
        """The network and the objective's heads."""
        return {"network": self.network, "objective": self.objective}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters at one rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, step: int) -> None:
        """Lets the objective move its copies, and finds the groups when it is time."""
        self.objective.after_step(self.network)
        every = self.config.probe_every
        if every and (step % every == 0 or step == self.config.steps) and self.global_rank == 0:
            self._probe(step)
        if step == self.group_step:
            # Found once for all ranks: rounding on another card could tip a close call.
            number = self.config.groups if isinstance(self.config.groups, int) else None
            rank0 = self.global_rank == 0
            found = find_groups(self.network, self.store, self.tasks, number=number) if rank0 else None
            grouping = cast("Grouping", self.trainer.strategy.broadcast(found))
            self.objective.set_groups(torch.tensor([grouping.groups[task] for task in self.tasks]))
            if self.global_rank == 0:
                _report_groups(grouping, self.run)

    def _probe(self, step: int) -> None:
        network = self.network.eval()
        found = {task: probe_task(network, self.store, task)[1][-1].linear for task in self.probed}
        self.network.train()
        self.record(step, {f"probe/{task}": dice for task, dice in found.items()})
        logger.info("step %d: probe, Dice %s", step, ", ".join(f"{task} {dice:.3f}" for task, dice in found.items()))

    @property
    def probed(self) -> list[str]:
        """Tasks with masks to probe with."""
        return [task for task in self.tasks if can_probe(self.store, task)]

    @property
    def group_step(self) -> int | None:
        """The step after which groups are looked for; None where they are not."""
        found = self.config.groups == "auto" or isinstance(self.config.groups, int)
        wanted = self.objective.wants_groups and found and len(self.tasks) > 2
        return max(1, math.floor(self.config.group_start * self.config.steps)) if wanted else None


def pretrain(
    store: Store | Path | str,
    output: Path | str,
    *,
    config: PretrainConfig | None = None,
    tasks: Sequence[str] | None = None,
    init: Path | str | None = None,
    objective: str | None = None,
    network: str | NetworkConfig | None = None,
    groups: str | int | dict[str, str] | None = None,
    steps: int | None = None,
    patch_size: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> Run:
    """Pre-trains a network on the training subjects of a store, or continues the run in `output`.

    Options that are not given are those of `config`, or the defaults of :class:`hssl.config.PretrainConfig`.

    Args:
        store: The aggregated data.
        output: Run folder.
        config: Options; those given by name override them.
        tasks: Tasks to learn from; all of the store by default.
        init: A run folder to start from, ``hf://OWNER/NAME`` or ``"scratch"``.
        objective: Name of the pretext objective, or ``module:Class``.
        network: A preset (``small``, ``base``, ``large``) or a shape.
        groups: ``auto``, ``none``, how many, or the group of each task.
        steps: Optimiser steps.
        patch_size: Side of what the network sees, in pixels.
        batch_size: Images a step; each is seen in two views.
        seed: Fixes every draw.
        options: Any other field of :class:`hssl.config.PretrainConfig`; ``options={...}`` are those of the objective.

    Returns:
        The complete run.

    Raises:
        ConfigError: An option does not fit the data or the network, or a logger is not installed.
        RunError: `output` holds something else, or `init` is not a complete run or has seen test subjects.
        TrainingError: The losses are not finite, or the features have collapsed.
    """
    named: dict[str, Any] = {
        "tasks": tasks,
        "init": None if init is None else str(init),
        "objective": objective,
        "network": network,
    }
    named |= {"groups": groups, "steps": steps, "patch_size": patch_size, "batch_size": batch_size, "seed": seed}
    config = PretrainConfig.over(config, **options, **named)
    # Spelled out, for the record and for the comparison with a run to continue.
    config = config.model_copy(
        update={"options": checked_options(config.objective, config.options).model_dump(mode="json")}
    )
    return _pretrain(store if isinstance(store, Store) else Store.open(store), Path(output), config)


def _pretrain(store: Store, output: Path, config: PretrainConfig) -> Run:
    check_batch_size(config.batch_size, config, "batch size")
    chosen = tuple(config.tasks or store.tasks)
    check_groups(chosen, config.groups)
    seen = {task: store.split(task).train for task in chosen}
    info = RunInfo(
        stage="pretrain",
        network=config.network,
        subjects_seen=seen,
        masks_seen={},
        provenance=provenance(config, store),
    )
    if config.probe_every:  # nothing is learned from these masks, but the curve has seen them
        info.provenance["probed"] = f"masks of training and validation subjects, every {config.probe_every} steps"
    start, source = load_start(config, store) or (None, None)
    if source is not None:
        info = with_source(info, source)
    run = Run.prepare(output, config, info)
    if run.info.complete:
        logger.info("%s is complete: nothing to do", run.path)
        return run
    stage = Pretraining(config, store, run, chosen, start)
    if config.probe_every and not stage.probed:
        raise ConfigError(
            "no task has masks of training and validation subjects to probe with", hint="leave 'probe_every' out"
        )
    check_patch(config.patch_size, stage.network)
    stage.objective.check_domains(config.domains_per_batch)
    check_loggers(config)
    store.check(chosen)
    trainer = make_trainer(config, run.path, f"pretrain {len(chosen)} task{'s' * (len(chosen) > 1)}")
    if trainer.is_global_zero:
        announce(stage, len(chosen))
    if source is not None:
        logger.info("loaded encoder and decoder of %s; new: heads of '%s'", config.init, config.objective)
    run.create()  # only now: a folder with options that do not fit would refuse the corrected ones
    if isinstance(config.groups, dict) and stage.objective.wants_groups:
        _report_groups(given_groups(chosen, config.groups), run)
    seconds = fit(stage, trainer)
    if stage.global_rank == 0:
        run.save_weights(stage.network)
        run.finish({"losses": {name: float(value) for name, value in stage.latest.items()}, "seconds": seconds})
    return as_finished(run, trainer)


def announce(stage: Pretraining, tasks: int) -> None:
    """Says before the start how large the run is and what it will take."""
    config = stage.config
    parameters = sum(p.numel() for p in stage.network.parameters())
    logger.info(
        f"{parameters / 1e6:.2f} M parameters, {tasks} tasks, {config.steps} steps of {config.batch_size} images in "
        f"two views at {config.patch_size}x{config.patch_size}; {cost_in_words(stage)}"
    )


def groups_at_start(config: PretrainConfig, tasks: tuple[str, ...]) -> tuple[int, ...]:
    """The group of each task before the first step: all -1 where they are found later, all 0 where there are none."""
    if isinstance(config.groups, dict):
        return tuple(given_groups(tasks, config.groups).groups[task] for task in tasks)
    return (0 if config.groups == "none" or len(tasks) < 3 else -1,) * len(tasks)


def _report_groups(grouping: Grouping, run: Run) -> None:
    grouping.save(run.path / GROUPS)
    members: dict[int, list[str]] = {}
    for task, group in grouping.groups.items():
        members.setdefault(group, []).append(task)
    logger.info("groups: %s", "; ".join(", ".join(tasks) for tasks in members.values()))
