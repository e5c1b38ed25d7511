"""The figures of the report, each as a data URI to put into the page."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from hssl.benchmark.report.pictures import Features, Overlay
from hssl.benchmark.statistics import Difference, Summary
from hssl.grouping import plot_tree
from hssl.palette import distinct_colours, label_colours

WIDTH, NARROW = 9.2, 3.7
"""Inches: the width of the page, and on a phone."""
MAIN_COLOURS = ("#8b93a1", "#e08e2b", "#1d5fae", "#0b2a55")
"""Of scratch, single-domain, joint and adapted."""
OTHER_COLOURS = ("#3a9a77", "#a44a9c", "#c4453c", "#7a6a2f", "#5a55c0", "#2f8fa8", "#93602f", "#4d4d4d")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c8d0",
    "axes.labelcolor": "#374151",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.hashsalt": "hssl",
    "text.parse_math": False,  # a name may hold any character
}


def colours(main: Sequence[str | None], others: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, the same in every figure; `main` has those of `MAIN_COLOURS`, None where there is none."""
    more = [*OTHER_COLOURS, *distinct_colours(max(0, len(others) - len(OTHER_COLOURS)))]
    shared = dict(zip(others, more, strict=False))
    return {arm: colour for arm, colour in zip(main, MAIN_COLOURS, strict=True) if arm is not None} | shared


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        caption: Below it.
        image: Data URI.
        narrow: The same for a phone; without one, `image` is as wide there as it is elsewhere, and can be moved.
    """

    caption: str
    image: str
    narrow: str = ""


def both_widths(caption: str, draw: Callable[[float], str]) -> Picture:
    """A chart as it is drawn for the page, and for a phone.

    Args:
        caption: Below it.
        draw: Makes the data URI of a width in inches.
    """
    return Picture(caption, draw(WIDTH), draw(NARROW))


def gain_bars(
    groups: Mapping[str, Sequence[Difference]], colour: Mapping[str, str], unit: str, width: float = WIDTH
) -> str:
    """Bars of paired differences with their intervals, one block a task.

    Args:
        groups: Differences to draw, by the name of their series.
        colour: Of each series.
        unit: What the axis shows.
        width: In inches.
    """
    tasks = list(dict.fromkeys(each.task for series in groups.values() for each in series))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.9 + len(tasks) * (0.2 * len(groups) + 0.16)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(groups)
        bars: dict[str, Artist] = {}
        for number, (name, series) in enumerate(groups.items()):
            at = [tasks.index(each.task) + (number + 0.5) * height - 0.4 for each in series]
            values = [100 * each.mean for each in series]
            bars[name] = axes.barh(at, values, height * 0.86, color=colour[name])[0]
            for y, each in zip(at, series, strict=True):
                if each.low is not None and each.high is not None:
                    axes.plot([100 * each.low, 100 * each.high], [y, y], color="#1f2937", linewidth=1)
        axes.axvline(0, color="#374151", linewidth=0.8)
        axes.set_yticks(range(len(tasks)), [_broken(task, width) for task in tasks])
        axes.set_ylim(len(tasks) - 0.45, -0.55)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel(unit)
        axes.spines["left"].set_visible(False)
        _legend(figure, bars)
        return _svg(figure)


def efficiency_curves(
    summaries: Sequence[Summary],
    shares: Mapping[tuple[str, str], float],
    arms: Sequence[str],
    colour: Mapping[str, str],
    width: float = WIDTH,
) -> str:
    """Dice over the share of the labels, one small chart a task; bars are the standard deviation over seeds.

    Args:
        summaries: What to draw.
        shares: By task and labels as the experiment has them.
        arms: A line for each.
        colour: Of each arm.
        width: In inches.
    """
    tasks = list(dict.fromkeys(each.task for each in summaries))
    columns = min(max(1, int(width / 3)), len(tasks))
    rows = -(-len(tasks) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.2 * rows + 0.4), layout="constrained")
        lines: dict[str, Artist] = {}  # an arm may lack any one task yet
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(tasks) :]:
            axes.remove()
        for axes, task in zip(grid.flat, tasks, strict=False):
            for arm in arms:
                points = sorted(
                    (shares[task, each.label_budget], 100 * each.mean, 100 * (each.spread or 0))
                    for each in summaries
                    if (each.task, each.arm) == (task, arm) and each.mean is not None
                )
                if points:
                    x, y, spread = zip(*points, strict=True)
                    line = {"color": colour[arm], "linewidth": 1.6, "markersize": 3.5, "capsize": 2, "elinewidth": 0.8}
                    lines[arm] = axes.errorbar(x, y, spread, marker="o", **line)[0]
            axes.set_title(_broken(task, width / columns * 2))
            axes.set_xscale("log")
            ticks = {shares[task, each.label_budget]: each.label_budget for each in summaries if each.task == task}
            axes.set_xticks(list(ticks), [label_budget.replace("%", " %") for label_budget in ticks.values()])
            axes.minorticks_off()
            axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
        figure.supxlabel("labelled training subjects", fontsize=9, color="#374151")
        figure.supylabel("Dice (%)", fontsize=9, color="#374151")
        _legend(figure, {arm: lines[arm] for arm in arms if arm in lines})
        return _svg(figure)


def group_tree(groups: Mapping[str, Any], width: float = WIDTH) -> str:
    """The tree of tasks by which groups were found.

    Args:
        groups: What ``groups.json`` of a pre-training holds, with a tree.
        width: In inches.
    """
    members = {_broken(task, width): group for task, group in groups["groups"].items()}
    tree = np.array(groups["tree"], np.float64)
    with mpl.rc_context({**STYLE, "lines.linewidth": 1.6}):
        figure = Figure(figsize=(width, 0.34 * len(members) + 0.8), layout="constrained")
        axes = figure.subplots()
        plot_tree(axes, members, tree, grey="#9ca3af")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", labelsize=9)
        return _svg(figure)


def feature_map(before: Features, after: Features, width: float = WIDTH) -> str:
    """Two maps of slices, a colour for each task: side by side, or on a phone one above the other.

    Args:
        before: The first.
        after: The second.
        width: In inches.
    """
    tasks = list(dict.fromkeys(after.tasks))
    colour = dict(zip(tasks, distinct_colours(len(tasks)), strict=True))
    with mpl.rc_context(STYLE):
        shape = (1, 2) if width > NARROW else (2, 1)
        figure = Figure(figsize=(width, 0.47 * width * shape[0] * 2 / shape[1]), layout="constrained")
        for axes, features, title in zip(
            figure.subplots(*shape), (before, after), ("random start", "after joint pre-training"), strict=True
        ):
            names = np.array(features.tasks)
            for task in tasks:
                x, y = features.points[names == task].T
                axes.scatter(x, y, s=9, color=colour[task], linewidths=0, alpha=0.85)
            text = f"{title}: {100 * features.purity:.0f} % nearest to their own task"
            axes.set_title(textwrap.fill(text, int(11 * width / shape[1])))
            axes.set(xticks=[], yticks=[])
            axes.spines[["left", "bottom"]].set_visible(False)
        _legend(figure, {task: Patch(color=colour[task]) for task in tasks}, "outside lower center", 8)
        return _uri(_png(figure))


def overlay_rows(overlays: Sequence[Overlay]) -> str:
    """A row for each case: image, truth, and the mask of each arm."""
    return _uri(overlay_picture(overlays))


def overlay_picture(overlays: Sequence[Overlay]) -> bytes:
    """The same as a PNG file's content; the labels have a legend where all cases have the same ones."""
    columns = ["image", "truth", *overlays[0].masks]
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        figure = Figure(figsize=(1.45 * len(columns), 1.62 * len(overlays) + 0.25), layout=layout)
        grid = figure.subplots(len(overlays), len(columns), squeeze=False)
        for row, overlay in zip(grid, overlays, strict=True):
            for axes, name in zip(row, columns, strict=True):
                axes.imshow(overlay.image, "gray", vmin=0, vmax=1, aspect=overlay.aspect)
                if name != "image":
                    mask = overlay.truth if name == "truth" else overlay.masks[name]
                    _draw_mask(axes, mask, label_colours(overlay.labels))
                title = {"image": f"image ({overlay.place} case)", "truth": "truth"}.get(name)
                axes.set_title(title or f"{name}  {100 * overlay.dice[name]:.0f}", fontsize=7)
                axes.set_axis_off()
            row[0].text(
                -0.05, 0.5, overlay.case, fontsize=5, rotation=90, ha="right", va="center", transform=row[0].transAxes
            )
        if all(overlay.labels == overlays[0].labels for overlay in overlays):
            colour = label_colours(overlays[0].labels)
            masks = [mask for each in overlays for mask in (each.truth, *each.masks.values())]
            seen = {value for mask in masks for value in np.unique(mask).tolist()}
            patches = {name: Patch(color=colour[v]) for v, name in sorted(overlays[0].labels.items()) if v in seen}
            _legend(figure, patches, "outside lower center", 6)
        return _png(figure)


def _broken(name: str, width: float) -> str:
    """A name in lines that leave room for what it stands beside, in a figure so many inches wide."""
    return "\n".join(textwrap.wrap(name, max(12, int(5 * width)))) or name


def _draw_mask(axes: Axes, mask: np.ndarray[Any, Any], colour: Mapping[int, str]) -> None:
    for value in np.unique(mask[mask > 0]).tolist():
        layer = np.zeros((*mask.shape, 4))
        layer[mask == value] = to_rgba(colour[value], 0.4)
        axes.imshow(layer, interpolation="nearest", aspect=axes.get_aspect())
        axes.contour(mask == value, [0.5], colors=[colour[value]], linewidths=0.7)


def _legend(
    figure: Figure,
    entries: Mapping[str, Artist],
    place: Literal["outside upper left", "outside lower center"] = "outside upper left",
    size: float = 9,
) -> None:
    """A legend in as many columns as its longest name leaves room for, on a figure that grows by its other lines."""
    if not entries:
        return
    # A letter takes 0.65 of the size of the font, and what is beside the name 5 of it.
    column = (0.65 * max(map(len, entries)) + 5) * size / 72
    ncols = max(1, min(len(entries), int(figure.get_figwidth() / column)))
    figure.set_figheight(figure.get_figheight() + (-(-len(entries) // ncols) - 1) * 1.6 * size / 72)
    legend = figure.legend([*entries.values()], ["name"] * len(entries), loc=place, ncols=ncols, fontsize=size)
    for text, name in zip(legend.get_texts(), entries, strict=True):
        text.set_text(name)  # given as a label, matplotlib would leave out a name that begins with an underscore


def _svg(figure: Figure) -> str:
    with io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _png(figure: Figure) -> bytes:
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=150)
        return file.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
