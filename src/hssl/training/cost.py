"""What a training will take, measured before it starts."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.optim import AdamW

from hssl.distributed import alone
from hssl.objectives import total
from hssl.text import duration
from hssl.training.loop import Stage, expected_device, oom_as_error, wants_bf16


def cost_in_words(stage: Stage, *, besides: float = 0.0) -> str:
    """Time and memory of a training, from a few steps on a copy of it, which leave the training itself untouched.

    Args:
        stage: The training, not yet started.
        besides: Seconds for all that is no step, such as validation.

    Returns:
        ``about 12 min and 1.5 GiB``.

    Raises:
        TrainingError: A step does not fit into memory.
    """
    config = stage.config
    seconds, memory = measure_step(stage)
    time_needed = duration(seconds * config.steps + besides)
    return f"about {time_needed} and {memory / 2**30:.1f} GiB{' a device' * (config.devices * config.nodes > 1)}"


def measure_step(stage: Stage) -> tuple[float, float]:
    """Seconds and bytes of a step on one device: reading, losses, gradient and update.

    Raises:
        TrainingError: A step does not fit into memory.
    """
    with oom_as_error(), alone():  # the first rank measures, and the others do not
        return _measure(stage)


def _measure(stage: Stage) -> tuple[float, float]:
    config, device = stage.config, expected_device(stage.config)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    shared: dict[int, Any] = {id(each): each for each in (stage.run, getattr(stage, "store", None))}
    probe = copy.deepcopy(stage, shared).to(device)
    optimizer = AdamW(probe.parameter_groups(), lr=config.learning_rate)
    data: Any = probe.data(0, config.devices * config.nodes)
    seconds = math.inf
    for number in range(min(3, config.steps)):
        step = config.steps - 1 - number  # when every auxiliary has begun
        began = time.monotonic()
        batch = move_data_to_device(data[step], device)
        generator = torch.Generator(device).manual_seed(0)
        with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(config)):
            losses = probe.losses(batch, step, generator)
        optimizer.zero_grad()
        total(losses).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        seconds = min(seconds, time.monotonic() - began)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    del probe, optimizer, batch, losses
    if cuda:
        torch.cuda.empty_cache()
    return seconds, float(memory)
