from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

from hssl import grouping
from hssl.config import AggregateConfig, NetworkConfig
from hssl.errors import ConfigError, StoreError
from hssl.features import GRID, spread_slices
from hssl.grouping import find_groups, given_groups, silhouette
from hssl.networks import UNet, build_network
from hssl.store import Split, Store, aggregate

TASKS = ["CT liver", "MR heart", "CT spleen", "MR brain", "X-ray hand", "X-ray chest"]
FAMILIES = {"CT": 0, "MR": 1, "X-": 2}


@pytest.fixture
def features(monkeypatch):
    """Tasks of three families, whose features point in three directions."""

    def point(_network, _store, task, _slices):
        family, own = (np.random.default_rng(seed) for seed in (FAMILIES[task[:2]], 10 + TASKS.index(task)))
        # Every other feature only varies inside a task: it must not count.
        mean = np.concatenate([5 + family.normal(0, 1, 64) + own.normal(0, 0.3, 64), own.normal(0, 0.3, 64)])
        spread = np.repeat([0.1, 3.0], 64)
        return mean + spread * np.array([[-1.0], [1.0]])

    monkeypatch.setattr(grouping, "_task_features", point)
    return point


@pytest.fixture(scope="module")
def store(phantom_root, tmp_path_factory) -> Store:
    sources = sorted(path for path in phantom_root.iterdir() if path.is_dir())
    return aggregate(sources, tmp_path_factory.mktemp("grouping") / "store", config=AggregateConfig(workers=1))


def test_families_are_found(features):
    found = find_groups(None, None, TASKS)
    assert list(found.groups.values()) == [0, 1, 0, 1, 2, 2]
    assert found.tree.shape == (5, 4)
    assert sorted(found.silhouettes) == [2, 3, 4, 5]
    assert max(found.silhouettes, key=found.silhouettes.get) == 3


def test_so_many_groups_as_are_asked_for(features):
    assert len(set(find_groups(None, None, TASKS, number=2).groups.values())) == 2
    assert list(find_groups(None, None, TASKS, number=5).groups.values()).count(0) in (1, 2)
    for number in (1, 6):
        with pytest.raises(ConfigError, match=f"cannot find {number} groups of 6 tasks"):
            find_groups(None, None, TASKS, number=number)


def test_tasks_that_cannot_be_told_apart(monkeypatch, tmp_path):
    # One data set under four names: every distance is the same, and a height of the tree cuts all links or none.
    monkeypatch.setattr(grouping, "_task_features", lambda *_: np.array([[1.0, 2.0], [3.0, 5.0]]))
    for number in (None, 2, 3):
        found = find_groups(None, None, TASKS[:4], number=number)
        assert sorted(found.silhouettes) == [2, 3]
        assert len(set(found.groups.values())) == (number or 2)
        found.save(tmp_path / "groups.json")
        assert (tmp_path / "groups.png").stat().st_size > 0


def test_numbers_follow_the_order_of_the_tasks(features):
    found = find_groups(None, None, TASKS[::-1])
    assert list(found.groups) == TASKS[::-1]
    assert list(found.groups.values()) == [0, 0, 1, 2, 1, 2]


def test_the_number_of_groups_is_the_one_with_the_best_silhouette(features):
    found = find_groups(None, None, TASKS)
    rows = np.stack([features(None, None, task, 0) for task in TASKS])
    points = rows.mean(1) - rows.mean((0, 1))
    points /= np.sqrt(rows.var(1).mean(0)) + 1e-6
    distance = squareform(pdist(points, "cosine"))
    tree = linkage(pdist(points, "cosine"), "average")
    np.testing.assert_allclose(found.tree, tree, rtol=1e-12)
    for count, value in found.silhouettes.items():
        labels = fcluster(tree, count, "maxclust")
        assert value == pytest.approx(silhouette_score(distance, labels, metric="precomputed"))


def test_silhouette_by_hand():
    points = np.array([0.0, 1.0, 10.0, 12.0])
    distance = np.abs(points[:, None] - points[None])
    # (b - a) / max(a, b) of each point: a to its own cluster, b to the other.
    expected = np.mean([(11 - 1) / 11, (10 - 1) / 10, (9.5 - 2) / 9.5, (11.5 - 2) / 11.5])
    assert silhouette(distance, np.array([1, 1, 2, 2])) == pytest.approx(expected)
    assert silhouette(distance, np.array([1, 2, 3, 3])) == pytest.approx((0 + 0 + (9 - 2) / 9 + (11 - 2) / 11) / 4)
    assert silhouette(distance, np.array([1, 1, 1, 1])) == -1


@pytest.mark.parametrize("tasks", [["A"], ["A", "B"]])
def test_fewer_than_three_tasks_are_groups_of_their_own(tasks):
    found = find_groups(None, None, tasks)
    assert found.groups == {task: number for number, task in enumerate(tasks)}
    assert found.tree is None


def test_three_tasks(features):
    assert find_groups(None, None, ["CT liver", "MR heart", "CT spleen"]).groups == {
        "CT liver": 0,
        "MR heart": 1,
        "CT spleen": 0,
    }


def test_given_groups():
    found = given_groups(["A", "B", "C"], {"C": "x", "A": "y", "B": "x", "Z": "other"})
    assert found.groups == {"A": 0, "B": 1, "C": 1}
    assert found.tree is None
    with pytest.raises(ConfigError, match="task 'B' has none"):
        given_groups(["A", "B"], {"A": "y"})


def test_saved_groups_can_be_read(features, tmp_path):
    found = find_groups(None, None, TASKS)
    found.save(tmp_path / "groups.json")
    content = json.loads((tmp_path / "groups.json").read_text())
    assert content["groups"] == found.groups
    assert content["silhouettes"] == {str(count): value for count, value in found.silhouettes.items()}
    np.testing.assert_array_equal(content["tree"], found.tree)
    from PIL import Image

    with Image.open(tmp_path / "groups.png") as picture:
        picture.load()
        assert min(picture.size) > 200
    assert {path.name for path in tmp_path.iterdir()} == {"groups.json", "groups.png"}


def test_given_groups_have_no_tree_to_draw(tmp_path):
    given_groups(["A"], {"A": "x"}).save(tmp_path / "groups.json")
    assert json.loads((tmp_path / "groups.json").read_text()) == {"groups": {"A": 0}, "silhouettes": None, "tree": None}
    assert not (tmp_path / "groups.png").exists()


def test_features_of_real_slices(store, monkeypatch):
    torch.manual_seed(0)
    network = UNet(NetworkConfig(features=(4, 8, 8)))
    monkeypatch.setattr(type(store), "label", lambda *_: pytest.fail("a mask was read"))
    read = []
    image = type(store).image_slice
    monkeypatch.setattr(
        type(store), "image_slice", lambda self, case, index: read.append(case) or image(self, case, index)
    )
    tasks = sorted(store.tasks)
    found = find_groups(network, store, tasks, slices=8)
    assert list(found.groups) == tasks
    assert sorted(set(found.groups.values())) == list(range(max(found.groups.values()) + 1))
    assert 2 <= max(found.groups.values()) + 1 < len(tasks)
    assert {(case.task, case.subject) for case in read} <= {
        (task, subject) for task in tasks for subject in store.split(task).train
    }
    again = find_groups(network, store, tasks, slices=8)
    assert again.groups == found.groups
    np.testing.assert_array_equal(again.tree, found.tree)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("strides", [((1, 1), (3, 5), (2, 2)), ((1, 1), (8, 8), (8, 16))])
def test_any_divisor_will_do(store, strides):
    network = UNet(NetworkConfig(features=(2, 2, 2), strides=strides))
    task = min(store.tasks)
    assert grouping._task_features(network, store, task, 2).shape == (2, 2 * GRID**2)


def test_slices_are_spread_evenly(store):
    class Recorder(torch.nn.Module):
        divisor = (4, 4)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def encode(self, x):
            self.seen = x
            return [x, x]

    network, task = Recorder(), min(store.tasks)
    total = sum(case.shape[0] for case in store.cases(task, part="train"))
    rows = grouping._task_features(network, store, task, 3)
    assert network.seen.shape == (3, 1, 96, 96)
    cases = store.cases(task, part="train")
    for case, index, seen in ((cases[0], 0, network.seen[0]), (cases[-1], -1, network.seen[2])):
        picture = torch.from_numpy(np.asarray(store.image(case)[index], np.float32))[None, None]
        expected = torch.nn.functional.interpolate(picture, size=(96, 96), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen, expected[0])
    np.testing.assert_allclose(rows, network.seen.view(3, 3, 32, 3, 32).mean((2, 4)).flatten(1), rtol=1e-5)
    assert len(spread_slices(cases, 10_000)) == total
    assert len(grouping._task_features(network, store, task, 10_000)) == total


def test_a_task_without_training_subjects_is_named(make_store):
    three = {"A": 3, "B": 3, "C": 3}
    tests_only = Split(train=[], val=[], test=[f"b{index}" for index in range(3)])
    store = make_store(three, splits={"B": tests_only})
    with pytest.raises(StoreError, match="task 'B' has no training subject"):
        find_groups(build_network(NetworkConfig(features=(4, 4, 4))), store, list(three))
