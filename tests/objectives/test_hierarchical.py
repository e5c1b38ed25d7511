from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hssl.errors import ConfigError
from hssl.networks import UNet, at_points
from hssl.objectives import Domains, PretrainBatch, build_objective
from hssl.objectives.hierarchical import WEIGHTS, Hierarchical, _smooth
from hssl.objectives.ntxent import nt_xent
from hssl.objectives.points import draw_points
from hssl.views import map_points

MakeBatch = Callable[..., PretrainBatch]
ONE_TASK = Domains(("A",), (-1,))


class Stub:
    """Stands in for a network whose features are known."""

    def __init__(self, deepest: Tensor | None = None, decoded: Tensor | None = None) -> None:
        self.deepest, self.decoded = deepest, decoded

    def encode(self, x: Tensor) -> list[Any]:
        return [self.deepest]

    def decode(self, features: list[Any]) -> list[Any]:
        return [self.decoded]


def alone(level: str, network: UNet, domains: Domains, **options: Any) -> Hierarchical:
    options = {"weights": {level: 1.0}, "local_stage": 0, **options}
    return cast("Hierarchical", build_objective("hierarchical", network, domains, options))


def from_elsewhere(batch: PretrainBatch, **origin: Tensor) -> PretrainBatch:
    """The batch, its images said to come from elsewhere."""
    return replace(batch, origin=batch.origin._replace(**origin))


def value(objective: Hierarchical, stub: Stub, batch: PretrainBatch) -> Tensor:
    return cast("Tensor", objective(cast("UNet", stub), batch)[next(n for n, w in objective.weights.items() if w)])


def image_value(network: UNet, domains: Domains, batch: PretrainBatch, features: Tensor, **options: Any) -> Tensor:
    objective = alone("image", network, domains, **options)
    objective.image_head = cast("Any", nn.Identity())
    return value(objective, Stub(deepest=features), batch)


def random_features(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position_affinity", [0.0, 0.5])
def test_image_level_is_one_contrast_per_task(
    network: UNet, make_batch: MakeBatch, three_tasks: Domains, position_affinity: float
) -> None:
    batch, features = make_batch(6), random_features(12)
    expected = 0.0
    for task in range(3):
        first, second = features[:6][task::3], features[6:][task::3]
        apart = batch.origin.position[task] - batch.origin.position[task + 3]
        affinity = position_affinity * torch.exp(-0.5 * (apart / 0.3) ** 2).expand(2, 2)
        expected += nt_xent(first, second, 0.1, affinity=affinity).item() / 3
    options = {"position_affinity": position_affinity, "position_width": 0.3}
    assert image_value(network, three_tasks, batch, features, **options).item() == pytest.approx(expected, rel=1e-5)


def test_pictures_have_no_mates_at_the_same_place(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    one = torch.ones(4, dtype=torch.int64)
    batch = from_elsewhere(batch, slices=one, slice=one * 0, position=torch.zeros(4))
    features = random_features(8)
    first, second = features.reshape(2, 4, 5)
    loss = image_value(network, ONE_TASK, batch, features)
    torch.testing.assert_close(loss, nt_xent(first, second, 0.1))
    volumes = image_value(network, ONE_TASK, from_elsewhere(batch, slices=one * 9), features)
    assert abs(volumes.item() - loss.item()) > 1e-3


def test_neighbours_in_a_case_are_no_negatives(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    same = torch.zeros(4, dtype=torch.int64)
    batch = from_elsewhere(batch, subject=same, case=same, slice=torch.tensor([0, 3, 7, 20]))
    features = random_features(8).requires_grad_()
    rows = features.reshape(2, 4, 5)
    ignore = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    loss = image_value(network, ONE_TASK, batch, features)  # one subject: no other subject at the same place
    torch.testing.assert_close(loss, nt_xent(rows[0], rows[1], 0.1, ignore=ignore))
    everything = image_value(network, ONE_TASK, batch, features, neighbours=20)
    assert everything.item() == pytest.approx(0, abs=1e-6)


def position_code(theta: Tensor, size: int) -> Tensor:
    """Features that tell where in the window each pixel of a view lies, ``[B, 16, size, size]``."""
    where = F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False).permute(0, 3, 1, 2)
    waves = [wave(frequency * where) for frequency in (1, 2, 4, 8) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)


def coordinates(batch: PretrainBatch, tasks: int) -> Tensor:
    """What a perfect head would say of both views: x, y and slice for each task, wrong for all but the own."""
    views = []
    for view in (batch.first, batch.second):
        inside = 0.5 + 0.5 * view.grid.permute(0, 3, 1, 2)
        place = batch.origin.position.view(-1, 1, 1, 1).expand(-1, 1, *inside.shape[2:])
        own = torch.cat((inside, place), 1)
        every = torch.full((len(own), tasks, *own.shape[1:]), 9.0)
        every[torch.arange(len(own)), batch.origin.task] = own
        views.append(every.flatten(1, 2))
    return torch.cat(views)


@pytest.mark.parametrize("off", [0.0, 0.2])
def test_position_level_asks_for_slice_row_and_column(
    network: UNet, make_batch: MakeBatch, three_tasks: Domains, off: float
) -> None:
    batch = make_batch(6)
    objective = alone("position", network, three_tasks, position_stage=0)
    objective.position_head = cast("Any", nn.Identity())
    loss = value(objective, Stub(decoded=coordinates(batch, 3) + off), batch)
    assert loss.item() == pytest.approx(max(off - 0.025, 0), abs=1e-6)


def test_beyond_the_edge_of_the_slice_no_position_is_asked_for(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    objective = alone("position", network, ONE_TASK, position_stage=0)
    objective.position_head = cast("Any", nn.Identity())
    found = coordinates(batch, 1)
    outside = (found[:, :2] < 0).any(1) | (found[:, :2] > 1).any(1)
    assert outside.any()
    found = torch.where(outside[:, None], found + 5, found)
    assert value(objective, Stub(decoded=found), batch).item() == pytest.approx(0, abs=1e-6)


def test_local_level_knows_points_by_their_place(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, size=64)
    objective = alone("local", network, ONE_TASK, min_distance=0.15, local_temperature=0.02)
    objective.local_head = cast("Any", nn.Identity())
    first, second = (position_code(view.theta, 64) for view in (batch.first, batch.second))

    def seeded(second: Tensor, autocast: bool = False) -> Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return value(objective, Stub(decoded=torch.cat((first, second))), batch)

    right = seeded(second)
    assert right.item() < 0.05
    assert seeded(second.roll(1, 0)).item() > 10 * right.item()
    # Rounding of autocast reaches neither coordinates nor similarities.
    assert torch.equal(seeded(second, autocast=True), right)


def test_points_that_the_other_view_lacks_count_nothing(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    # The second view shows the left half of the window, the first all of it.
    whole, left = torch.eye(2, 3).expand(2, 2, 3), torch.tensor([[0.5, 0, -0.5], [0, 1, 0]]).expand(2, 2, 3)
    batch = replace(batch, first=replace(batch.first, theta=whole), second=replace(batch.second, theta=left))
    objective = alone("local", network, ONE_TASK, local_temperature=0.02)
    objective.local_head = cast("Any", nn.Identity())
    first, second = (position_code(theta, 32) for theta in (whole, left))
    decoded = torch.cat((first, second)).requires_grad_()
    torch.manual_seed(0)
    loss = value(objective, Stub(decoded=decoded), batch)
    loss.backward()
    assert decoded.grad is not None
    assert loss.item() < 0.2
    nowhere = torch.tensor([[1.0, 0, 5], [0, 1, 0]]).expand(2, 2, 3)
    unseen = replace(batch, second=replace(batch.second, theta=nowhere))
    assert value(objective, Stub(decoded=decoded), unseen).item() == 0


def test_cluster_level_asks_for_the_cluster_of_position_and_brightness(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    objective = alone("cluster", network, ONE_TASK, clusters=2, cluster_points=400)
    # One cluster is bright and at the lower edge, the other dark and at the upper.
    objective.codebooks.centres.copy_(torch.tensor([[[0.5, 1.0, 0.5, 1.5, 0.5], [0.5, 0.0, 0.5, 0.0, 0.5]]]))
    objective.codebooks.counts.fill_(1e9)
    learned: dict[str, Tensor] = {}

    class Told(nn.Module):
        def forward(self, decoded: Any, points: Tensor, task: Tensor) -> Tensor:
            """Answers from the undisturbed image and the map, both read at the points."""
            clean = torch.cat((batch.first.clean, batch.second.clean))
            grid = torch.cat((batch.first.grid, batch.second.grid)).permute(0, 3, 1, 2)
            kernel = clean.new_tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
            near = F.conv2d(F.pad(clean, (2, 2, 2, 2), "replicate"), torch.outer(kernel, kernel)[None, None])
            read = [F.grid_sample(x, points[:, None], align_corners=False)[:, 0, 0] for x in (near, grid[:, 1:])]
            # Squared distance to the second centre less that to the first.
            towards = 4.5 * read[0] + 2 * (0.5 + 0.5 * read[1]) - (1.5**2 + 1)
            learned["towards"] = towards
            return torch.stack((20 * towards, -20 * towards), -1)

    objective.cluster_head = cast("Any", Told())
    right = value(objective, Stub(), batch)
    assert learned["towards"].gt(0).any()
    assert learned["towards"].lt(0).any()
    objective.codebooks.centres.copy_(objective.codebooks.centres.flip(1))
    wrong = value(objective, Stub(), batch)
    assert right.item() < 0.5 < 3 < wrong.item()


def test_cluster_level_knows_the_disturbed_image_by_what_lies_under(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    disturbed = replace(batch, first=replace(batch.first, image=torch.rand_like(batch.first.image)))
    clusters = []
    for each in (batch, disturbed):
        torch.manual_seed(1)
        objective = alone("cluster", network, ONE_TASK, clusters=5)
        value(objective, cast("Any", network), each)
        objective.after_step(network)
        clusters.append(objective.codebooks.centres)
    assert clusters[0].any()
    assert torch.equal(*clusters)


def test_beyond_the_edge_of_the_slice_no_cluster_is_asked_for(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(4, tasks=1)
    beyond = torch.tensor([[2.0, 0.0], [0.5, 0.5]]).expand(4, 2, 2)
    objective = alone("cluster", network, ONE_TASK, clusters=5)
    assert value(objective, cast("Any", network), from_elsewhere(batch, frame=beyond)).item() == 0
    objective.after_step(network)
    assert not objective.codebooks.counts.any()


def test_map_points_leads_to_the_same_place(make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    here = torch.rand((3, 7, 2), generator=torch.Generator().manual_seed(0)) * 2 - 1
    there = map_points(here, batch.first.theta, batch.second.theta)

    def in_window(points: Tensor, theta: Tensor) -> Tensor:
        return torch.einsum("bij,bkj->bki", theta[:, :, :2], points) + theta[:, None, :, 2]

    torch.testing.assert_close(in_window(there, batch.second.theta), in_window(here, batch.first.theta))
    torch.testing.assert_close(map_points(here, batch.first.theta, batch.first.theta), here)


@pytest.mark.parametrize("visible", [0.0, 0.5])
def test_restoration_level_weighs_occluded_pixels_by_one(network: UNet, make_batch: MakeBatch, visible: float) -> None:
    batch = make_batch(2)
    objective = alone("restoration", network, ONE_TASK, visible=visible)
    objective.restoration_head = cast("Any", nn.Identity())
    restored = torch.rand((4, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for part, view in zip(restored.split(2), (batch.first, batch.second), strict=True):
        error = (part - view.clean).abs().double()
        error = torch.where(error < 0.1, error**2 / 0.2, error - 0.05)
        weight = torch.where(view.occluded, 1.0, visible).double()
        expected += (error * weight).sum().item() / weight.sum().item() / 2
    assert value(objective, Stub(decoded=restored), batch).item() == pytest.approx(expected, rel=1e-5)


# Which levels are on


def losses_of(network: UNet, domains: Domains, batch: PretrainBatch, **options: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = build_objective("hierarchical", network, domains, options)(network, batch)
    return found


@pytest.mark.parametrize("level", list(WEIGHTS))
def test_a_level_alone_and_a_level_off(network: UNet, make_batch: MakeBatch, three_tasks: Domains, level: str) -> None:
    batch = make_batch(6)
    alone_ = losses_of(network, three_tasks, batch, weights={level: 1.0})
    assert {name for name in alone_ if not name.startswith("watch/")} == {level}
    off = losses_of(network, three_tasks, batch, weights={**WEIGHTS, level: 0})
    assert {name for name in off if not name.startswith("watch/")} == set(WEIGHTS) - {level}


def test_weights_multiply(network: UNet, make_batch: MakeBatch, three_tasks: Domains) -> None:
    batch = make_batch(6)

    def found(weight: float) -> Tensor:
        torch.manual_seed(0)
        return losses_of(network, three_tasks, batch, weights={"task": weight})["task"]

    torch.testing.assert_close(found(3.0), 3 * found(1.0))


def test_group_level_waits_for_groups(network: UNet, make_batch: MakeBatch, three_tasks: Domains) -> None:
    batch = make_batch(6)
    unknown = Domains(three_tasks.tasks, (-1, -1, -1))
    objective = build_objective("hierarchical", network, unknown, {"weights": {"group": 1.0}})
    waiting = objective(network, batch)["group"]
    waiting.backward()
    assert waiting.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    objective.set_groups(torch.tensor([0, 0, 1]))
    objective(network, batch)["group"].backward()
    weight = network.encoder.stages[0][0].conv.weight  # type: ignore[index,union-attr]
    assert weight.grad.any()
    # The groups that were found are part of the checkpoint.
    other = build_objective("hierarchical", network, unknown, {"weights": {"group": 1.0}})
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(network, batch)["group"], objective(network, batch)["group"])


def test_one_task_asks_no_question_about_tasks(network: UNet, make_batch: MakeBatch) -> None:
    found = losses_of(network, ONE_TASK, make_batch(4, tasks=1))
    assert {name for name in found if not name.startswith("watch/")} == {
        *("image", "position", "local", "cluster", "restoration")
    }


def test_no_level_at_all_is_an_error(network: UNet, three_tasks: Domains) -> None:
    for domains, weights in ((three_tasks, {"image": 0}), (ONE_TASK, {"task": 1})):
        with pytest.raises(ConfigError, match="no level is on"):
            build_objective("hierarchical", network, domains, {"weights": weights})


@pytest.mark.parametrize("option", ["group_stage", "task_stage", "position_stage", "local_stage"])
def test_a_stage_that_is_not_there(network: UNet, three_tasks: Domains, option: str) -> None:
    with pytest.raises(ConfigError, match=f"'{option}': this network has stages 0 to"):
        build_objective("hierarchical", network, three_tasks, {option: 4})


def test_the_stage_of_a_level_that_is_off_does_not_matter(network: UNet, make_batch: MakeBatch) -> None:
    objective = build_objective("hierarchical", network, ONE_TASK, {"weights": {"restoration": 1}, "task_stage": 9})
    assert objective(network, make_batch(2, tasks=1))["restoration"] > 0
    assert not objective.wants_groups
    objective.check_domains(1)


def test_pixels_of_no_weight_are_no_loss(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(2, tasks=1)
    bare = replace(batch.first, occluded=torch.zeros_like(batch.first.occluded))
    objective = alone("restoration", network, ONE_TASK, visible=0)
    assert objective(network, replace(batch, first=bare, second=bare))["restoration"] == 0


# Small slices, turned views and borders


def test_points_of_a_small_slice_lie_within_it(network: UNet, make_batch: MakeBatch) -> None:
    """A slice that fills a ninth of the window: nearly all points drawn anywhere would lie beyond its edge."""
    batch = make_batch(4, tasks=1)
    small = torch.tensor([[0.5, 1.5], [0.5, 1.5]]).expand(4, 2, 2)
    torch.manual_seed(0)
    points, real = draw_points(batch.first, small, 16)
    in_window = points @ batch.first.theta[:, :, :2].mT + batch.first.theta[:, None, :, 2]
    inside = ((0.5 + 1.5 * in_window - 0.5).abs() < 0.5).all(-1)
    assert torch.equal(real, inside)
    assert real.float().mean() > 0.3  # of points drawn anywhere, a ninth at most
    _, everywhere = draw_points(batch.first, torch.tensor([[0.5, 0.1], [0.5, 0.1]]).expand(4, 2, 2), 16)
    assert everywhere.all()


def test_points_beyond_the_slice_are_no_positives_and_no_negatives(network: UNet, make_batch: MakeBatch) -> None:
    batch = make_batch(2, tasks=1)
    nowhere = torch.tensor([[5.0, 0.1], [0.5, 0.1]]).expand(2, 2, 2)
    objective = alone("local", network, ONE_TASK)
    objective.local_head = cast("Any", nn.Identity())
    features = torch.randn(4, 8, 32, 32)
    assert value(objective, Stub(decoded=features), from_elsewhere(batch, frame=nowhere)).item() == 0
    assert value(objective, Stub(decoded=features), batch).item() > 0


def test_what_a_turned_view_takes_from_beyond_the_window_is_no_cluster(network: UNet, make_batch: MakeBatch) -> None:
    """Nothing was read there, though the slice goes on: black pixels would be learned as dark tissue."""
    batch = make_batch(2, tasks=1)
    large = torch.tensor([[0.5, 0.1], [0.5, 0.1]]).expand(2, 2, 2)  # the slice is ten times the window
    beyond = replace(batch.first, grid=batch.first.grid + 3, clean=torch.zeros_like(batch.first.clean))
    objective = alone("cluster", network, ONE_TASK, clusters=5)
    found = value(
        objective, cast("Any", network), from_elsewhere(replace(batch, first=beyond, second=beyond), frame=large)
    )
    assert found.item() == 0
    objective.after_step(network)
    assert not objective.codebooks.counts.any()


def test_surroundings_of_a_pixel_end_where_the_window_does() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4] = 0.6
    real = torch.zeros(1, 8, 8, dtype=torch.bool)
    real[..., :4] = True
    smooth = _smooth(image, real, 3)
    torch.testing.assert_close(smooth[0, 0, :, :4], torch.full((8, 4), 0.6))


def test_features_at_the_border_of_a_view_do_not_fade() -> None:
    features = torch.ones(1, 3, 2, 2)
    corner = torch.tensor([[[-1.0, -1.0], [1.0, 0.0], [0.9, 0.9]]])
    torch.testing.assert_close(at_points(features, corner), torch.ones(1, 3, 3))
