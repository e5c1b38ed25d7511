"""What is in a store: one row a task, and a contact sheet to see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.markup import escape
from rich.table import Table

from hssl.files import replacing
from hssl.store.store import CaseRecord, Store, widest_slice


class LabelSummary(BaseModel):
    """One label of a task.

    Attributes:
        name: Its name.
        cases: Masks that show it.
        volume_ml: Median volume where it is shown, in millilitres; None for 2D images and where it never is.
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
        skipped: Bad cases that were left out, one line each.
        duplicates: Cases with the image of another case, one line each.
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
    skipped: list[str]
    duplicates: list[str]


def summarise(store: Store) -> list[TaskSummary]:
    """Summarises each task of a store from its index; no array is read."""
    return [_summary(store, task) for task in store.tasks]


def summary_table(store: Store) -> Table:
    """The summary as a table for the terminal; bad and double cases are listed in its caption."""
    table = Table(title=escape(str(store.path)), caption_justify="left")
    for column in ("task", "modality"):
        table.add_column(column, overflow="fold")
    for column in ("cases", "subjects", "train/val/test", "slices", "shape", "spacing (mm)", "intensity"):
        table.add_column(column, justify="right")
    table.add_column("labels: median ml", overflow="fold")
    notes = []
    for row in summarise(store):
        labels = [f"{label.name} {_number(label.volume_ml)} ({label.cases})" for label in row.labels.values()]
        masks = "" if row.masks == row.cases else f" ({row.masks} with masks)"
        table.add_row(
            escape(row.task),
            escape(row.modality),
            f"{row.cases}{masks}",
            str(row.subjects),
            "/".join(map(str, row.split)),
            str(row.slices),
            "x".join(map(str, row.shape)),
            "x".join(map(_number, row.spacing)),
            f"{_number(row.intensity[0])} to {_number(row.intensity[1])}",
            escape(", ".join(labels)) or "none",
        )
        notes += [f"{row.task}: left out {line}" for line in row.skipped]
        notes += [f"{row.task}: {line}" for line in row.duplicates]
    table.caption = escape("\n".join(notes)) or None
    return table


def contact_sheet(store: Store, output: Path | str, *, columns: int = 6) -> Path:
    """Draws one row of slices for each task, masks as contours, their labels at the end of the row, and writes a PNG.

    Cases are taken at even steps through the task; of each the slice with the largest mask is drawn, or the
    middle one without a mask. Pixels are drawn at their true aspect. Letters on the first slice of a row say where its
    right and lower edges lie in the body, such as L and P.

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
    figure = Figure(figsize=(1.8 * (columns + 1), 2.0 * len(store.tasks)), dpi=110, layout="constrained")
    axes = figure.subplots(len(store.tasks), columns + 1, squeeze=False)
    for row, (task, info) in zip(axes, store.tasks.items(), strict=True):
        cases = store.cases(task)
        chosen = np.unique(np.linspace(0, len(cases) - 1, columns).astype(int))
        for axis in row:
            axis.axis("off")
        for axis, index in zip(row[:columns], chosen, strict=False):
            case = cases[index]
            number = _telling_slice(store, case)
            _, height, width = info.preprocessing.stored_spacing(case.geometry)
            axis.imshow(store.image(case)[number].astype(np.float32), "gray", vmin=0, vmax=1, aspect=height / width)
            axis.set_title(f"{case.id} [{number}]", fontsize=6)
            if case.has_label:
                mask = store.label(case)[number]
                for value in info.labels:
                    if (mask == value).any():
                        axis.contour(mask == value, [0.5], colors=[f"C{value % 10}"], linewidths=0.8)
        if orientation := info.preprocessing.orientation:
            for x, y, letter in ((0.98, 0.5, orientation[1]), (0.5, 0.05, orientation[0])):
                row[0].text(x, y, letter, transform=row[0].transAxes, color="w", fontsize=7, ha="right")
        names = [Patch(color=f"C{value % 10}", label=name) for value, name in info.labels.items()]
        if names:
            row[-1].legend(handles=names, loc="center left", fontsize=6, frameon=False)
        row[0].set_title(f"{task}  {info.modality}\n", loc="left", fontsize=8, fontweight="bold")
    with replacing(output) as partial:
        figure.savefig(partial, format="png")
    return output


def _summary(store: Store, task: str) -> TaskSummary:
    info, cases, split = store.tasks[task], store.cases(task), store.split(task)
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
        skipped=info.skipped,
        duplicates=info.duplicates,
    )


def _presence(cases: list[CaseRecord], value: int) -> dict[str, int | float | None]:
    """In how many masks a label is, and its median volume there."""
    shown = [case for case in cases if (case.label_voxels or {}).get(value)]
    volumes = [
        case.label_voxels[value] * float(np.prod(case.geometry.spacing)) / 1000
        for case in shown
        if case.label_voxels and case.source_ndim == 3
    ]
    return {"cases": len(shown), "volume_ml": float(np.median(volumes)) if volumes else None}


def _telling_slice(store: Store, case: CaseRecord) -> int:
    if case.label_voxels:
        return widest_slice(store.label(case))
    return case.shape[0] // 2


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
