"""NT-Xent forward + backward, in time and memory, beside plain torch, lightly and MONAI; one thread, float32.

Plain torch is what a careful user would write (one matrix product, the mask in place, ``cross_entropy``) and leaves out
the same neighbours as ours. lightly and MONAI cannot leave out neighbours, so against them ours does not either. All
values are compared before anything is timed. Memory is the peak of what the call allocates on top of its inputs,
counted by torch's profiler from every allocation, hence exact on a busy machine as well.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Row, alternate, pin_threads, publish, row
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hssl.objectives.ntxent import near_neighbours, nt_xent

SIZES = (128, 512, 2048, 8192)
"""Views in a batch, two of each image."""
MONAI_LIMIT = 512
"""Beyond this MONAI's ``[N, N, D]`` intermediate takes minutes."""
WIDTH = 128
TEMPERATURE = 0.1
SLICES_PER_CASE = 4
"""Images that a case gives to a batch, of which neighbours are left out."""
TOLERANCE = 1e-4
MIB = 2**20
Loss = Callable[[Tensor, Tensor], Tensor]
OURS, OURS_ALL, PLAIN, LIGHTLY, MONAI = "ours, masked", "ours", "plain torch, masked", "lightly", "MONAI"
GOAL = "<= plain torch"


def main() -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # The profiler tells of every start and stop.
    pin_threads(1)
    rows: list[Row] = []
    for views in SIZES:
        first, second, ignore = inputs(views // 2)
        losses = contestants(views, ignore)
        check(losses, first, second)
        calls = {name: call_of(loss, first, second) for name, loss in losses.items()}
        slow = {name: calls.pop(name) for name in [MONAI] if name in calls}
        large = views >= 4096
        seconds = alternate(calls, rounds=3 if large else 9, warm_up=0 if large else 1, least_seconds=0.1)
        # A call takes seconds, so few rounds must do; ours is timed again beside it.
        again = alternate({OURS_ALL: calls[OURS_ALL], **slow}, rounds=2, warm_up=0) if slow else {}
        peak = {name: peak_bytes(call) / MIB for name, call in {**calls, **slow}.items()}
        for name in (PLAIN, LIGHTLY, MONAI):
            if name in losses:
                ours, times = OURS if name == PLAIN else OURS_ALL, again if name == MONAI else seconds
                label = f"{name}, {'' if name == PLAIN else 'not '}leaving out neighbours".replace(", masked", "")
                part = f"NT-Xent forward + backward, {views} views, 128-d"
                rows.append(row(part, times[ours] * 1e3, times[name] * 1e3, label, "ms", GOAL, more=False))
                part = f"NT-Xent peak memory, {views} views, 128-d"
                rows.append(row(part, peak[ours], peak[name], label, "MiB", GOAL, more=False))
    publish(rows)


def inputs(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two correlated views of each image, and the pairs of images to leave out, ``[images, images]``."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(images, WIDTH, generator=generator)
    first, second = (common + 0.5 * torch.randn(images, WIDTH, generator=generator) for _ in range(2))
    case = torch.arange(images) // SLICES_PER_CASE
    index = torch.randint(0, 20, (images,), generator=generator)
    return first.requires_grad_(), second.requires_grad_(), near_neighbours(case, index, radius=3)


def contestants(views: int, ignore: Tensor) -> dict[str, Loss]:
    """Every loss that is installed and feasible for so many views."""
    losses: dict[str, Loss] = {
        OURS: lambda first, second: nt_xent(first, second, TEMPERATURE, ignore=ignore),
        OURS_ALL: lambda first, second: nt_xent(first, second, TEMPERATURE),
        PLAIN: lambda first, second: plain(first, second, ignore),
    }
    try:
        from lightly.loss import NTXentLoss

        losses[LIGHTLY] = NTXentLoss(TEMPERATURE)
    except ImportError as error:
        print(f"left out lightly: {error}")
    try:
        from monai.losses import ContrastiveLoss

        if views <= MONAI_LIMIT:
            losses[MONAI] = ContrastiveLoss(TEMPERATURE)
    except ImportError as error:
        print(f"left out MONAI: {error}")
    return losses


def plain(first: Tensor, second: Tensor, ignore: Tensor | None) -> Tensor:
    """NT-Xent as one would write it by hand, for one process.

    Args:
        first: Projections of the first view, ``[B, D]``.
        second: Of the second view.
        ignore: Pairs of images to leave out, bool ``[B, B]``; the diagonal is not read.
    """
    count = len(first)
    z = F.normalize(torch.cat((first, second)), dim=1)
    logits = z @ z.T / TEMPERATURE
    if ignore is None:
        mask = torch.eye(2 * count, dtype=torch.bool, device=z.device)
    else:
        mask = ignore.repeat(2, 2)
        images = torch.arange(count, device=z.device)
        mask[images, images + count] = False
        mask[images + count, images] = False
        mask.fill_diagonal_(True)
    pair = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(logits.masked_fill_(mask, float("-inf")), pair)


def check(losses: Mapping[str, Loss], first: Tensor, second: Tensor) -> None:
    """Stops where two that are defined alike do not agree, in value or gradient."""
    everything = plain(first, second, None)
    everything_gradient = torch.autograd.grad(everything, first)[0]
    masked = losses[PLAIN](first, second)
    masked_gradient = torch.autograd.grad(masked, first)[0]
    for name, loss in losses.items():
        value = loss(first, second)
        gradient = torch.autograd.grad(value, first)[0]
        expected, slope = (masked, masked_gradient) if name in (OURS, PLAIN) else (everything, everything_gradient)
        if abs(value.item() - expected.item()) > TOLERANCE or (gradient - slope).abs().max() > TOLERANCE:
            raise SystemExit(f"{name} gives {value.item():.6f} for {2 * len(first)} views, not {expected.item():.6f}")


def call_of(loss: Loss, first: Tensor, second: Tensor) -> Callable[[], None]:
    """A forward and a backward pass."""

    def call() -> None:
        first.grad = second.grad = None
        loss(first, second).backward()

    return call


def peak_bytes(call: Callable[[], object]) -> int:
    """The largest sum of what `call` holds at one time on top of what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], int(event["args"]["Bytes"])) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
