"""Mini-batch k-means that learns while the network does: one codebook of feature vectors for each task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hssl.distributed import gather


class Codebooks(nn.Module):
    """Centres of clusters, for each task its own, that follow the points which they are shown.

    Sculley, *Web-scale k-means clustering*, WWW 2010: a centre is the mean of all points that were ever nearest to it,
    so it moves less and less. A centre that was never the nearest is put on a random point of its task. There is no
    data-dependent control flow, so there is no host synchronisation on a GPU; all ranks keep the same centres.

    Args:
        tasks: Number of tasks.
        codes: Centres of each.
        features: Length of a point.
    """

    def __init__(self, tasks: int, codes: int, features: int) -> None:
        super().__init__()
        self.centres: Tensor
        self.counts: Tensor
        self.register_buffer("centres", torch.zeros(tasks, codes, features))
        self.register_buffer("counts", torch.zeros(tasks, codes))

    @torch.no_grad()
    def forward(self, points: Tensor, task: Tensor) -> Tensor:
        """Says which centre of its task is nearest to each point.

        Args:
            points: float32 ``[B, N, features]``; every row of one task.
            task: Task of each row, int64 ``[B]``.

        Returns:
            Number of the centre, int64 ``[B, N]``; 0 for all before the first points were learned from.
        """
        return torch.cdist(points, self.centres[task]).argmin(-1)

    @torch.no_grad()
    def learn(self, points: Tensor, task: Tensor, valid: Tensor) -> None:
        """Moves the centres to the points of all ranks.

        Args:
            points: float32 ``[B, N, features]``; every row of one task.
            task: Task of each row, int64 ``[B]``.
            valid: Points to learn from, bool ``[B, N]``.
        """
        self._seed(points, task, valid)
        codes = self.centres.shape[1]
        nearest = (task[:, None] * codes + self(points, task)).flatten()
        weight = valid.flatten().float()
        hits = torch.zeros_like(self.counts).view(-1).index_add(0, nearest, weight)
        sums = (
            torch.zeros_like(self.centres).flatten(0, 1).index_add(0, nearest, points.flatten(0, 1) * weight[:, None])
        )
        hits = gather(hits[None]).sum(0).view_as(self.counts)
        sums = gather(sums[None]).sum(0).view_as(self.centres)
        self.counts += hits
        self.centres += (sums - hits[..., None] * self.centres) / self.counts.clamp(min=1)[..., None]

    def _seed(self, points: Tensor, task: Tensor, valid: Tensor) -> None:
        tasks, codes, _ = self.centres.shape
        device = points.device
        mine = task == torch.arange(tasks, device=device)[:, None]
        # The small number keeps the draw defined for a task that this rank does not show; `found` leaves it out.
        row = torch.multinomial(mine.float() + 1e-9, codes, replacement=True)
        point = torch.randint(points.shape[1], row.shape, device=device)
        found = valid[row, point] & mine.any(1, keepdim=True) & (self.counts == 0)
        every, seeds = gather(found[None].float()), gather(points[row, point][None])
        first = every.argmax(0)
        seed = seeds.gather(0, first[None, ..., None].expand(1, -1, -1, seeds.shape[-1]))[0]
        self.centres.copy_(torch.where(every.bool().any(0)[..., None], seed, self.centres))
