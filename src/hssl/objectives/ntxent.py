"""NT-Xent (Chen et al., SimCLR, ICML 2020) with left-out pairs and graded positives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl.networks.gather import gather, rank


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
    all ranks. The mean is over this rank's rows: see :func:`hssl.networks.gather.gather`.

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
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    count = len(first)
    all_first, all_second = gather(first), gather(second)
    total = len(all_first)
    # Autocast would round similarities to bf16 before the temperature magnifies the error. The temperature divides the
    # small factor, and pairs are left out in place: each other way passes over all N x N logits once more.
    with torch.autocast(first.device.type, enabled=False):
        logits = (torch.cat((first, second)) / temperature) @ torch.cat((all_first, all_second)).T
    rows = torch.arange(count, device=first.device)
    own = rows + rank() * count

    left_out = torch.zeros((count, total), dtype=torch.bool, device=first.device) if ignore is None else ignore.clone()
    left_out[rows, own] = False
    left_out = left_out.repeat(2, 2)
    left_out[rows, own] = True
    left_out[rows + count, own + total] = True
    logits = logits.masked_fill_(left_out, float("-inf"))

    pair = torch.cat((own + total, own))
    if affinity is None:
        return F.cross_entropy(logits, pair)
    target = affinity.float() / 2
    target[rows, own] = 0
    target = target.repeat(2, 2).masked_fill(left_out, 0)
    target[torch.arange(2 * count, device=first.device), pair] = 1
    target = target / target.sum(1, keepdim=True)
    log_probability = F.log_softmax(logits, dim=1).masked_fill(left_out, 0)
    return -(target * log_probability).sum(1).mean()


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
