"""Tasks to groups: which challenges look alike to the network, found by clustering their mean features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist, squareform

from hssl.errors import ConfigError, StoreError
from hssl.features import pooled_features, spread_slices
from hssl.files import replacing, write_text
from hssl.networks import UNet
from hssl.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = "groups.json"
"""Name of the file in the folder of a pre-training that found groups."""


@dataclass(frozen=True)
class Grouping:
    """Groups of tasks and how they were found.

    Attributes:
        groups: Group number of each task, from 0, in the order of the tasks.
        tree: SciPy linkage matrix, float64 ``[tasks - 1, 4]``; None for groups that were set by hand.
        silhouettes: Mean silhouette of each number of groups that was tried.
    """

    groups: dict[str, int]
    tree: NDArray[np.float64] | None = None
    silhouettes: dict[int, float] | None = None

    def save(self, path: Path) -> None:
        """Writes the groups as JSON and, where there is a tree, its picture beside it (``.png``)."""
        content: dict[str, Any] = {"groups": self.groups, "silhouettes": self.silhouettes}
        content["tree"] = None if self.tree is None else self.tree.tolist()
        write_text(path, json.dumps(content, indent=1))
        if self.tree is not None:
            _draw_tree(self, path.with_suffix(".png"))


def find_groups(
    network: UNet, store: Store, tasks: Sequence[str], *, number: int | None = None, slices: int = 64
) -> Grouping:
    """Clusters tasks by their mean deep features.

    Each training slice is brought to a common size, encoded, and pooled on a coarse grid; the mean over a task's
    slices, centred over tasks and scaled by the spread within tasks, is its point. Average linkage on cosine distance
    joins the points; the number of groups is `number` or else the one with the largest mean silhouette, between 2 and
    the number of tasks less one (fewer than 3 tasks: one group each).

    Args:
        network: Any network, the longer pre-trained the better.
        store: The aggregated data; training subjects only, no masks.
        tasks: At least one task.
        number: Of groups, from 2 to the number of tasks less one; None finds it.
        slices: Slices per task, evenly spread.

    Returns:
        The groups, numbered in the order of the tasks.

    Raises:
        ConfigError: So few tasks have no such number of groups.
        StoreError: A task has no training subject.
    """
    if number is not None:
        check_group_count(len(tasks), number)
    if len(tasks) < 3:
        return Grouping({task: number for number, task in enumerate(tasks)})
    features = [_task_features(network, store, task, slices) for task in tasks]
    means = np.stack([rows.mean(0) for rows in features])
    # Scaled by the spread within tasks: a feature that varies as much inside a task as between tasks says little.
    spread = np.sqrt(np.mean([rows.var(0) for rows in features], axis=0))
    points = (means - means.mean(0)) / (spread + 1e-6)
    # A task in the middle of all others has no direction: as far from each as can be said of nothing, 1.
    distance = np.nan_to_num(pdist(points, "cosine"), nan=1.0).clip(min=0)
    tree = linkage(distance, "average")
    silhouettes = {
        count: silhouette(squareform(distance), cut_tree(tree, [count]).ravel()) for count in range(2, len(tasks))
    }
    best = number or max(silhouettes, key=lambda count: silhouettes[count])
    return Grouping(_numbered(tasks, cut_tree(tree, [best]).ravel().tolist()), tree, silhouettes)


def check_group_count(tasks: int, number: int) -> None:
    """Checks that so many groups can be found of so many tasks; of fewer than 3 tasks none are looked for.

    Raises:
        ConfigError: So many groups cannot be found.
    """
    if tasks > 2 and not 2 <= number < tasks:
        raise ConfigError(f"cannot find {number} groups of {tasks} tasks", hint=f"take 2 to {tasks - 1}")


def given_groups(tasks: Sequence[str], names: dict[str, str]) -> Grouping:
    """Groups that the user has set: a name for each task.

    Raises:
        ConfigError: A task has no group.
    """
    if missing := [task for task in tasks if task not in names]:
        raise ConfigError(f"groups: task '{missing[0]}' has none", hint="name a group for every task")
    return Grouping(_numbered(tasks, [names[task] for task in tasks]))


def silhouette(distance: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Mean silhouette (Rousseeuw 1987) of a clustering; a cluster of one counts 0.

    Args:
        distance: Square matrix of distances.
        labels: Cluster of each row.
    """
    from sklearn.metrics import silhouette_score

    if len(set(labels.tolist())) < 2:
        return -1.0
    return float(silhouette_score(distance, labels, metric="precomputed"))


def _task_features(network: UNet, store: Store, task: str, slices: int) -> NDArray[np.float64]:
    cases = store.cases(task, part="train")
    if not cases:
        raise StoreError(
            f"task '{task}' has no training subject to look at",
            path=store.path,
            hint="leave this task out, or aggregate with a split of your own (--splits)",
        )
    chosen = spread_slices(cases, slices)
    return pooled_features(network, [store.image_slice(case, number) for case, number in chosen])


def _numbered(tasks: Sequence[str], labels: Sequence[object]) -> dict[str, int]:
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return {task: order[label] for task, label in zip(tasks, labels, strict=True)}


def plot_tree(axes: Axes, groups: Mapping[str, int], tree: NDArray[np.float64], *, grey: str) -> None:
    """Draws the tree by which groups were found, a line where it was cut, and each task's group behind its name.

    Args:
        axes: Where to.
        groups: Group of each task, in the order of the tree's leaves.
        tree: Linkage matrix of the tasks.
        grey: Colour of the line and of what lies above it.
    """
    from scipy.cluster.hierarchy import dendrogram

    count, heights = len(set(groups.values())), tree[:, 2]
    cut = float((heights[-count] + heights[1 - count]) / 2)
    labels = [f"{task}  ({group})" for task, group in groups.items()]
    dendrogram(tree, labels=labels, orientation="left", color_threshold=cut, above_threshold_color=grey, ax=axes)
    axes.axvline(cut, color=grey, linestyle=":", linewidth=1)
    axes.set_xlabel("cosine distance of mean features")


def _draw_tree(grouping: Grouping, path: Path) -> None:
    from matplotlib.figure import Figure

    if grouping.tree is None or grouping.silhouettes is None:
        return
    figure = Figure(figsize=(7, 0.4 * len(grouping.groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    plot_tree(axes, grouping.groups, grouping.tree, grey="0.5")
    count = len(set(grouping.groups.values()))
    axes.set_title(f"{count} groups (mean silhouette {grouping.silhouettes[count]:.2f})", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
