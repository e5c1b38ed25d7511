"""Tensors of all ranks, with gradient; without a process group, the tensor itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process compute by itself, as without a process group: one that others do not take part in would wait
    for them for ever.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def rank() -> int:
    """Number of this process; 0 without a process group."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _in_group() else 1


def gather(x: Tensor) -> Tensor:
    """Concatenates `x` of all ranks along the first axis, in rank order.

    The gradient that comes back to a rank is the sum over the losses of all ranks. Where each rank takes the mean
    over its own rows and the training loop averages gradients over ranks (DDP), the result is exactly the
    gradient of the mean over all rows.

    Args:
        x: ``[B, ...]``, the same shape on every rank.

    Returns:
        ``[world_size * B, ...]``.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # gloo has no reduce-scatter: sum everything and keep the own part.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
