"""What is in a store: a paragraph and a table of labels for each task, and a contact sheet to see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hssl.files import replacing
from hssl.palette import label_colours
from hssl.sources.base import Geometry
from hssl.store.store import CaseRecord, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND = (
    "Above each slice: its case, and which of the case's slices it is. Letters: where the right and the lower edge lie "
    "in the body (Right, Left, Anterior, Posterior, Inferior, Superior). Contours: the masks, in the colours of the "
    "labels at the end of the row."
)
_ONE_SLICE = (
    "one slice a case, and directions as of a body scan: if these are radiographs or photographs, ignore the letters"
)
_LOST = "the headers give no reliable directions: compare the letters with the pictures"


class LabelSummary(BaseModel):
    """One label of a task.

    Attributes:
        name: Its name.
        cases: Masks that show it.
        volume_ml: Median volume where it is shown, in millilitres; None for images of one slice and where it never is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    cases: int
    volume_ml: float | None


class TaskSummary(BaseModel):
    """One task of a store.

    Attributes:
        task: Its name.
        modality: As its source names it.
        cases: Number of images.
        masks: Number of images with a mask.
        subjects: Number of subjects.
        split: Subjects for training, validation and test.
        slices: Slices of all cases together.
        shape: Median of stored slices, rows and columns.
        spacing: Median of stored slices, rows and columns in mm.
        intensity: Lowest intensity stored as 0 and highest stored as 1, in the units of the files.
        labels: One for each label value.
        doubts: What may be wrong with the directions of the files, one line each.
        skipped: Bad cases that were left out, one line each.
        duplicates: Cases with the image of another case, and tasks of other folders that share scans, one line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    modality: str
    cases: int
    masks: int
    subjects: int
    split: tuple[int, int, int]
    slices: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    intensity: tuple[float, float]
    labels: dict[int, LabelSummary]
    doubts: list[str]
    skipped: list[str]
    duplicates: list[str]


def summarise(store: Store) -> list[TaskSummary]:
    """Summarises each task of a store from its index; no array is read."""
    cases: dict[str, list[CaseRecord]] = {task: [] for task in store.tasks}
    for case in store.index.cases:
        cases[case.task].append(case)
    return [_summary(store, task, listed) for task, listed in cases.items()]


def summary_table(store: Store) -> RenderableType:
    """The summary for a terminal of 80 columns: of each task what it holds, and its labels in a table."""
    parts: list[RenderableType] = [Text(str(store.path), style="bold")]
    for row in summarise(store):
        parts += _described(row)
        if row.labels:
            parts.append(_label_table(row))
    return Group(*parts)


def contact_sheet(store: Store, output: Path | str, *, columns: int = 6) -> Path:
    """Draws one row of slices for each task, masks as contours, their labels at the end of the row, and writes a PNG.

    Cases are taken at even steps through the task; of each the slice with the largest mask is drawn, or the middle
    one without a mask. Where that leaves a label out, the slice that shows most of it takes the place of another.
    Pixels are drawn at their true aspect. What the numbers and letters mean is written below, and below a row what may
    be wrong with its directions.

    Args:
        store: The store.
        output: The PNG to write, in one step.
        columns: Slices of each task.

    Returns:
        `output`.
    """
    from matplotlib.figure import Figure  # slow to import, and needed here only
    from matplotlib.patches import Patch

    output = Path(output)
    figure = Figure(figsize=(1.8 * (columns + 1), 1.9 * len(store.tasks) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(store.tasks), columns + 1, squeeze=False)
    for row, (task, info) in zip(axes, store.tasks.items(), strict=True):
        for axis in row:
            axis.axis("off")
        cases, colours = store.cases(task), label_colours(info.labels)
        for axis, (case, number) in zip(row[:columns], telling_slices(store, task, columns), strict=False):
            _draw(axis, store, case, number, colours)
        if orientation := info.preprocessing.orientation:
            for x, y, letter in ((0.98, 0.5, orientation[1]), (0.5, 0.05, orientation[0])):
                row[0].text(x, y, letter, transform=row[0].transAxes, color="w", fontsize=7, ha="right")
        names, place = [Patch(color=colours[value], label=name) for value, name in info.labels.items()], "center left"
        drawn = f"{min(columns, len(cases))} of {len(cases)} cases"
        row[0].set_title(f"{task}  {info.modality}  ({drawn})\n\n", loc="left", fontsize=8, fontweight="bold")
        if doubts := _doubts(cases, orientation):
            # In the last column, below the labels: beside the slices it would lie over the next row.
            lines = [line for doubt in doubts for line in wrap(doubt, 34)]
            row[-1].text(0, 0, "\n".join(lines), transform=row[-1].transAxes, color="#b45309", fontsize=6, va="bottom")
            place = "upper left"
        if names:
            row[-1].legend(handles=names, loc=place, fontsize=5.5, labelspacing=0.15, frameon=False)
    figure.supxlabel(LEGEND, fontsize=6, wrap=True)
    with replacing(output) as partial:
        figure.savefig(partial, format="png")
    return output


def slice_sheet(
    store: Store, slices: Sequence[tuple[CaseRecord, int]], titles: Sequence[str], output: Path, *, columns: int = 5
) -> Path:
    """Draws chosen slices without their masks, a title above each, and writes a PNG in one step.

    Args:
        store: The store.
        slices: Case and number of each, at least one.
        titles: A line for each.
        output: The PNG.
        columns: Slices in a row.

    Returns:
        `output`.
    """
    from matplotlib.figure import Figure  # slow to import, and needed here only

    rows = -(-len(slices) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.2 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (case, number), title in zip(axes, slices, titles, strict=False):
        _draw(axis, store, case, number, {})
        axis.set_title(f"{title}\n{axis.get_title()}", fontsize=6)
    with replacing(output) as partial:
        figure.savefig(partial, format="png")
    return output


def telling_slices(store: Store, task: str, count: int) -> list[tuple[CaseRecord, int]]:
    """Up to `count` slices that show what a task holds, every label of its masks at least once where they suffice.

    Returns:
        Case and number of each slice, in the order of the cases.
    """
    cases = store.cases(task)
    places = np.unique(np.linspace(0, len(cases) - 1, count).astype(int)).tolist()
    chosen = {place: _widest(store, cases[place], None) for place in places}
    shown = {place: _labels_in(store, cases[place], number) for place, number in chosen.items()}
    for value in store.tasks[task].labels:
        if any(value in labels for labels in shown.values()):
            continue
        holding = [place for place, case in enumerate(cases) if (case.label_voxels or {}).get(value)]
        if not holding:
            continue
        place = max(holding, key=lambda place: (place in chosen, (cases[place].label_voxels or {})[value]))
        needed = {other: labels for other, labels in shown.items() if other != place}
        if place not in chosen and len(chosen) >= count:  # the slice whose labels are seen elsewhere makes room
            spare = min(needed, key=lambda other: _alone(other, shown))
            del chosen[spare], shown[spare]
        chosen[place] = _widest(store, cases[place], value)
        shown[place] = _labels_in(store, cases[place], chosen[place])
    return [(cases[place], chosen[place]) for place in sorted(chosen)]


def _alone(place: int, shown: dict[int, set[int]]) -> int:
    """How many labels are seen in this slice and in no other."""
    others = set().union(*(labels for other, labels in shown.items() if other != place))
    return len(shown[place] - others)


def _widest(store: Store, case: CaseRecord, value: int | None) -> int:
    """The slice that shows most of a label, or of all; the middle one without a mask."""
    if not case.label_voxels:
        return case.shape[0] // 2
    label = store.label(case)
    return int(np.count_nonzero(label if value is None else label == value, axis=(1, 2)).argmax())


def _labels_in(store: Store, case: CaseRecord, number: int) -> set[int]:
    return set(np.unique(store.label_slice(case, number)).tolist()) if case.has_label else set()


def _draw(axis: Axes, store: Store, case: CaseRecord, number: int, colours: dict[int, str]) -> None:
    """One slice with the contours of its mask."""
    _, height, width = store.tasks[case.task].preprocessing.stored_spacing(case.geometry)
    axis.imshow(store.image_slice(case, number).astype(np.float32), "gray", vmin=0, vmax=1, aspect=height / width)
    axis.set_title(f"{case.id}\nslice {number + 1} of {case.shape[0]}", fontsize=6)
    if case.has_label and colours:
        mask = store.label_slice(case, number)
        for value, colour in colours.items():
            if (mask == value).any():
                axis.contour(mask == value, [0.5], colors=[colour], linewidths=0.8)


def _described(row: TaskSummary) -> list[RenderableType]:
    """What a task holds, in words and numbers."""
    train, val, test = row.split
    masks = "all with masks" if row.masks == row.cases else f"{row.masks} with masks"
    slices, rows, columns = row.shape
    thickness, height, width = map(_number, row.spacing)
    deep = f", {slices} slices {thickness} mm apart" if slices > 1 else ", one slice"
    lines = [
        f"{row.cases} cases ({masks}) of {row.subjects} subjects: {train} train, {val} validate, {test} test",
        f"{row.slices} slices; median case {rows} x {columns} pixels of {height} x {width} mm{deep}",
        f"intensities {_number(row.intensity[0])} to {_number(row.intensity[1])} are stored as 0 to 1",
        *(f"note: {doubt}" for doubt in row.doubts),
        *(f"left out: {line}" for line in row.skipped),
        *(f"note: {line}" for line in row.duplicates),
    ]
    heading = Text(f"\n{row.task}", style="bold").append(f"  {row.modality}", style="not bold")
    return [heading, *(Padding(Text(line), (0, 0, 0, 2)) for line in lines)]


def _label_table(row: TaskSummary) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    volumes = any(label.volume_ml is not None for label in row.labels.values())
    table.add_column(" label", overflow="fold")
    table.add_column("masks", justify="right")
    if volumes:
        table.add_column("median ml", justify="right")
    for label in row.labels.values():
        cells = [f" {escape(label.name)}", str(label.cases)]
        table.add_row(*cells, *([_number(label.volume_ml)] if volumes else []))
    return table


def _summary(store: Store, task: str, cases: Sequence[CaseRecord]) -> TaskSummary:
    info, split = store.tasks[task], store.split(task)
    spacings = np.array([info.preprocessing.stored_spacing(case.geometry) for case in cases])
    labels = {value: LabelSummary(name=name, **_presence(cases, value)) for value, name in info.labels.items()}
    shape = np.median([case.shape for case in cases], axis=0).astype(int).tolist()
    return TaskSummary(
        task=task,
        modality=info.modality,
        cases=len(cases),
        masks=sum(case.has_label for case in cases),
        subjects=len({case.subject for case in cases}),
        split=(len(split.train), len(split.val), len(split.test)),
        slices=sum(case.shape[0] for case in cases),
        shape=tuple(shape),
        spacing=tuple(np.median(spacings, axis=0).tolist()),
        intensity=(min(case.intensity[0] for case in cases), max(case.intensity[1] for case in cases)),
        labels=labels,
        doubts=_doubts(cases, info.preprocessing.orientation),
        skipped=info.skipped,
        duplicates=info.duplicates,
    )


def _presence(cases: Sequence[CaseRecord], value: int) -> dict[str, Any]:
    """In how many masks a label is, and its median volume there."""
    shown = [case for case in cases if (case.label_voxels or {}).get(value)]
    volumes = [
        case.label_voxels[value] * abs(float(np.linalg.det(case.geometry.affine[:3, :3]))) / 1000
        for case in shown
        if case.label_voxels and min(case.source_shape) > 1
    ]
    return {"cases": len(shown), "volume_ml": float(np.median(volumes)) if volumes else None}


def _doubts(cases: Sequence[CaseRecord], orientation: str) -> list[str]:
    """What may be wrong with the directions of a task that is stored upright."""
    if not orientation:  # pictures, which claim none
        return []
    doubts = []
    if all(case.shape[0] == 1 for case in cases):
        doubts.append(_ONE_SLICE)
    if 2 * sum(_has_lost_directions(case.geometry) for case in cases) > len(cases):
        doubts.append(_LOST)
    return doubts


def _has_lost_directions(geometry: Geometry) -> bool:
    """Whether an affine is the one that converters write when they know none: straight, from 0 or around the middle."""
    axes, origin = geometry.affine[:3, :3], geometry.affine[:3, 3]
    if np.abs(axes - np.diag(np.diag(axes))).max() > 0:
        return False
    middle = origin + np.diag(axes) * (np.array(geometry.shape) - 1) / 2
    # Half a voxel of play: converters differ in what they call the middle.
    return not origin.any() or bool((np.abs(middle) <= 0.51 * np.abs(np.diag(axes))).all())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
