"""NT-Xent (Chen et al., SimCLR, ICML 2020) with left-out pairs and graded positives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hssl.distributed import gather, rank, world_size

BLOCK_CPU, BLOCK_GPU = 2**20, 2**24
"""Similarities held at a time: what stays in a CPU's cache, and what fills a GPU."""


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    ignore: Tensor | None = None,
    affinity: Tensor | None = None,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy over two views of each image.

    With :math:`z` the 2B normalised projections, :math:`s_{ij} = z_i^\top z_j / \tau` and :math:`i'` the other view
    of image :math:`i`:

    .. math:: L = -\frac{1}{2B} \sum_i \sum_j t_{ij} \log \frac{e^{s_{ij}}}{\sum_{k \in K_i} e^{s_{ik}}}

    where :math:`K_i` leaves out :math:`i` itself and every image that `ignore` names. Without `affinity`,
    :math:`t_{ij} = [j = i']`, which is NT-Xent. With it, the target is spread over images that are similar by other
    knowledge: :math:`t_{ii'} \propto 1` and :math:`t_{ij} \propto a_{ij} / 2` for both views of image j.

    Under a process group, images of all ranks take part, and `ignore` and `affinity` have one column per image of
    all ranks. The mean is over this rank's rows: see :func:`hssl.distributed.gather`.

    Args:
        first: Projections of the first view, ``[B, D]``.
        second: Projections of the second view, ``[B, D]``, row by row of the same images.
        temperature: :math:`\tau`, above 0.
        ignore: bool ``[B, N]`` over images; True where image j must not be a negative of image i.
            The diagonal (own views) is not read.
        affinity: ``[B, N]``, at least 0; the diagonal is not read, and an ignored pair counts nothing.

    Returns:
        The loss, a float32 scalar.
    """
    # Autocast would round similarities to bf16 before the temperature magnifies the error.
    with torch.autocast(first.device.type, enabled=False):
        queries = F.normalize(torch.cat((first.float(), second.float())), dim=1)
        keys = queries if world_size() == 1 else torch.cat([gather(view) for view in queries.chunk(2)])
        loss: Tensor = _NTXent.apply(queries, keys, temperature, ignore, affinity, rank() * len(first))  # type: ignore[no-untyped-call]
        return loss


class _NTXent(Function):
    """Loss and gradient in one pass over blocks of rows: no N x N matrix is held that is larger than a block.

    The gradient for the similarities is softmax less target: each block's is turned into its share of the gradients for
    queries and keys at once. Autograd would keep all blocks and go through them a second time.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        queries: Tensor,
        keys: Tensor,
        temperature: float,
        ignore: Tensor | None,
        affinity: Tensor | None,
        offset: int,
    ) -> Tensor:
        count, total = len(queries) // 2, len(keys) // 2
        loss = queries.new_zeros(())
        for_queries = torch.zeros_like(queries)
        for_keys = for_queries if keys is queries else torch.zeros_like(keys)
        images = max(1, (BLOCK_CPU if queries.device.type == "cpu" else BLOCK_GPU) // (4 * total))
        for start in range(0, count, images):
            stop = min(start + images, count)
            own = slice(start + offset, stop + offset)
            block = queries.view(2, count, -1)[:, start:stop].reshape(2 * (stop - start), -1) / temperature
            logits = block @ keys.T
            table, same = _as_table(logits, total, own)

            left_out = _left_out(ignore, slice(start, stop), own)
            target, weight = _target(affinity, slice(start, stop), own, left_out)
            if target is not None:
                pairs = same[0, 1] + same[1, 0]
                loss += (pairs * (1 - weight)).sum() - torch.einsum("vnwm,nm->", table, target)
            if left_out is not None:
                table.masked_fill_(left_out[:, None], float("-inf"))
            for view in range(2):
                same[view, view].fill_(float("-inf"))

            logits = F.log_softmax(logits, 1)
            table, same = _as_table(logits, total, own)
            forth, back = same[0, 1], same[1, 0]
            loss -= (forth + back).sum()
            # From here on `logits` is the softmax, then the gradient for the similarities, in place.
            logits.exp_()
            if target is not None:
                table -= target[:, None]
            for pair in (forth, back):
                pair -= weight
            if keys is queries and images >= count:
                # All rows at once: a similarity has the gradients of both its rows, so one product is enough.
                torch.mm(logits + logits.T, block, out=for_queries)
            else:
                for_queries.view(2, count, -1)[:, start:stop] += (logits @ keys).view(2, stop - start, -1) / temperature
                for_keys.addmm_(logits.T, block)
        ctx.save_for_backward(*((for_queries,) if for_keys is for_queries else (for_queries, for_keys)))
        return loss / len(queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # One process: queries and keys are one tensor, and so are their gradients.
        for_queries, *for_keys = ctx.saved_tensors
        scale = gradient / len(for_queries)
        return for_queries * scale, for_keys[0] * scale if for_keys else None, None, None, None, None


def _as_table(logits: Tensor, total: int, own: slice) -> tuple[Tensor, Tensor]:
    """The same memory as [view, image, other view, other image], and its diagonal, the views of the same image."""
    table = logits.view(2, len(logits) // 2, 2, total)
    return table, table[..., own].diagonal(dim1=1, dim2=3)


def _left_out(ignore: Tensor | None, rows: slice, own: slice) -> Tensor | None:
    """Images that are no negatives of a block of rows, bool; an image's own views are none of them."""
    if ignore is None:
        return None
    left_out = ignore[rows].clone()
    left_out[:, own].fill_diagonal_(False)
    return left_out


def _target(
    affinity: Tensor | None, rows: slice, own: slice, left_out: Tensor | None
) -> tuple[Tensor | None, Tensor | int]:
    """Share of the target for each view of each other image, and what is left for the pair."""
    if affinity is None:
        return None, 1
    target = affinity[rows].float() / 2
    if left_out is not None:
        target.masked_fill_(left_out, 0)
    target[:, own].fill_diagonal_(0)
    # Both views of each similar image, and 1 for the pair.
    weight = 1 / (1 + 2 * target.sum(1))
    return target * weight[:, None], weight


def near_neighbours(case: Tensor, index: Tensor, radius: int) -> Tensor:
    """Slices of one case that lie within `radius` slices of each other: nearly the same image.

    Args:
        case: Case number of each of this rank's images, int64 ``[B]``.
        index: Slice index of each, int64 ``[B]``.
        radius: Largest distance in slices.

    Returns:
        bool ``[B, N]`` against the images of all ranks.
    """
    same = case[:, None] == gather(case)[None]
    return same & ((index[:, None] - gather(index)[None]).abs() <= radius)
