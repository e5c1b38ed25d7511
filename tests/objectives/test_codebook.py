from __future__ import annotations

import torch
from torch import Tensor

from hssl.objectives.codebook import Codebooks

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])


def around_corners(seed: int) -> tuple[Tensor, Tensor]:
    """Points near four corners ``[2, 400, 2]`` and the number of the corner; the second row lies 50 further."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(4, (2, 400), generator=generator)
    points = CORNERS[corner] + 0.3 * torch.randn((2, 400, 2), generator=generator)
    points[1] += 50
    return points, corner


def test_each_task_finds_its_own_clusters() -> None:
    torch.manual_seed(0)
    codebooks = Codebooks(3, 12, 2)
    task = torch.tensor([2, 0])
    for step in range(6):
        points, corner = around_corners(step)
        codebooks.learn(points, task, torch.ones(2, 400, dtype=torch.bool))
    for row, codes in enumerate(codebooks(points, task)):
        # A cluster holds points of one corner: there are three centres for each.
        for code in codes.unique():
            assert len(corner[row][codes == code].unique()) == 1
        nearest = torch.cdist(points[row], codebooks.centres[task[row]]).amin(1)
        assert nearest.mean() < 0.4
    assert not codebooks.counts[1].any()  # a task that was never shown


def test_a_centre_is_the_mean_of_all_points_it_was_nearest_to() -> None:
    codebooks = Codebooks(1, 2, 1)
    codebooks.centres.copy_(torch.tensor([[[0.0], [10.0]]]))
    codebooks.counts.fill_(1)
    points = torch.tensor([[[3.0], [9.0], [11.0], [4.0]]])
    task = torch.tensor([0])
    codebooks.learn(points, task, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(codebooks.centres, torch.tensor([[[1.5], [10.0]]]))
    assert codebooks(points, task).tolist() == [[0, 1, 1, 0]]  # also of a point that was not learned from
    assert codebooks.counts.tolist() == [[2, 3]]


def test_left_out_points_seed_nothing() -> None:
    codebooks = Codebooks(1, 3, 1)
    codebooks.learn(torch.ones(1, 5, 1), torch.tensor([0]), torch.zeros(1, 5, dtype=torch.bool))
    assert not codebooks.centres.any()
    assert not codebooks.counts.any()
