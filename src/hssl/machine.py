"""What this process may use of the machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """Cores that this process may run on: those of its job, where a scheduler gave it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_pays(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 natively; elsewhere it is slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


class Terminated(KeyboardInterrupt):
    """Ctrl-C by other means: ``kill``, a scheduler, a closed terminal."""


@contextmanager
def ends_as_interrupted() -> Iterator[list[int]]:
    """Makes SIGTERM and SIGHUP end what is running as Ctrl-C does: partial files go, workers and jobs are cancelled.

    Gives a list, which then holds the signals that have come.

    Raises:
        Terminated: A signal has come.
    """
    come: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield come
        return

    def end(number: int, _: object) -> None:
        come.append(number)
        raise Terminated(signal.Signals(number).name)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Under nohup the second is ignored, and has to stay so.
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is signal.SIG_DFL}
    for number in before:
        signal.signal(number, end)
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
