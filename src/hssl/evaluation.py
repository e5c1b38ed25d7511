"""How good the masks of a fine-tuning run are on subjects that it has never seen."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import track

from hssl.errors import ConfigError, LeakError, RunError, SourceError, StoreError, first_mistake
from hssl.files import replacing, write_text
from hssl.metrics import SURFACE_TOLERANCE_MM, score_labels
from hssl.prediction import Predictor, ahead, dicom_seg
from hssl.prediction.sheet import DrawnCase, draw_sheet
from hssl.runs import Run, versions
from hssl.sources.dicom import list_series
from hssl.sources.dicom_series import Series
from hssl.sources.files import (
    NIFTI,
    PICTURES,
    check_same_place,
    list_files,
    read_geometry,
    read_label,
    read_white_label,
    stem,
)
from hssl.store import CaseRecord, Store, TaskInfo, widest_slice
from hssl.store.store import Part, file_hash

Mask = NDArray[np.integer[Any]]
PARTS: tuple[Part, ...] = get_args(Part)
METRICS = ("dice", "hd95", "surface_dice")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaseScore(_Entry):
    """One label of one case; fields as in :class:`hssl.metrics.LabelScore`."""

    case: str
    subject: str
    label: int
    name: str
    truth_voxels: int
    predicted_voxels: int
    dice: float | None
    hd95: float | None
    surface_dice: float | None


class Mean(_Entry):
    """Means of a label over cases, or of the task.

    Attributes:
        name: The label, or ``mean``: for each case the mean over its labels, then the mean over cases.
        cases: Cases that count: those where the label is in the truth or in the prediction.
        dice: In [0, 1]; None without cases.
        hd95: In mm.
        surface_dice: In [0, 1].
    """

    name: str
    cases: int
    dice: float | None
    hd95: float | None
    surface_dice: float | None


class EvaluationResult(_Entry):
    """What ``RUN/evaluation/PART.json`` holds.

    Attributes:
        run: The run folder.
        task: The task.
        part: Part of the split.
        space: ``source``: on the grid of the mask files; ``store``: on the store's grid, resampled in plane.
        leaked: Subjects that training had seen; a result with any says nothing about new ones.
        tolerance: Of surface Dice, in mm.
        predictions: Folder of the masks, if they did not come from the run's network.
        store_hash: Of the data.
        split_hash: Of the split.
        versions: Of the packages that matter.
        scores: A row for each case and label.
        labels: Means of each label.
        mean: Means of the task.
    """

    run: str
    task: str
    part: str
    space: Literal["source", "store"]
    leaked: list[str]
    tolerance: float
    predictions: str | None
    store_hash: str
    split_hash: str
    versions: dict[str, str]
    scores: list[CaseScore]
    labels: list[Mean]
    mean: Mean

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a result back.

        Raises:
            RunError: The file is missing or not a result.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", path=path, hint="evaluate again") from error
        except ValidationError as error:
            raise RunError(
                f"is not an evaluation of this version of hssl: {first_mistake(error)}",
                path=path,
                hint="evaluate again",
            ) from error

    def rows(self) -> list[dict[str, str | int | float | None]]:
        """The means of each label and of the task, ready to print; units in the names of the columns."""
        mark = " (seen in training)" if self.leaked else ""
        return [
            {
                "label": mean.name + mark,
                "cases": mean.cases,
                "Dice": mean.dice,
                "HD95 (mm)": mean.hd95,
                f"surface Dice ({self.tolerance:g} mm)": mean.surface_dice,
            }
            for mean in (*self.labels, self.mean)
        ]


def evaluate(
    run: Path | str,
    store: Store | Path | str | None = None,
    *,
    part: Part = "test",
    allow_leak: bool = False,
    predictions: Path | str | None = None,
    space: Literal["source", "store"] = "source",
    tolerance: float = SURFACE_TOLERANCE_MM,
    components: bool = True,
    device: str | None = None,
    sheet: Path | str | None = None,
    masks: Path | str | None = None,
) -> EvaluationResult:
    """Scores a run on a part of its task's subjects, case by case and label by label.

    The truth is the mask file that the store was made from, on its own grid and in mm; it must be unchanged.
    A label that is in neither mask does not count, and one that is in one of them counts as missed (see
    :mod:`hssl.metrics`). The result is written to ``RUN/evaluation/PART.json`` and ``.csv``; in the store's
    space to ``PART-store``, for ready masks to ``PART-predictions``. Where another store is given, its name comes last.
    No file of other data is replaced: of a second folder of masks, or of another store whose folder is called alike.

    Args:
        run: Folder of a fine-tuning run.
        store: The data; None for the store that the run was made from.
        part: ``test``, ``val`` or ``train``.
        allow_leak: Evaluate subjects that training has seen as well, and mark the result.
        predictions: Folder of ready masks to score instead of the network's, each named like its case or like
            its image file, on the grid of the true mask; of DICOM series also segmentations (``CASE.dcm``).
        space: ``store`` compares on the store's grid: quick, and possible without the source files.
        tolerance: Of surface Dice, in mm.
        components: As for :class:`hssl.prediction.Predictor`.
        device: As torch names it; None is a GPU where there is one.
        sheet: Draw the worst, the median and the best case by mean Dice into this PNG.
        masks: Keep the predicted masks in this folder: ``CASE.nii.gz``, of pictures ``CASE.png``, on the grid of the
            true masks, as `predictions` takes them.

    Returns:
        Rows and means.

    Raises:
        LeakError: Training has seen the image or mask of a subject.
        RunError: `run` is not a complete fine-tuning run, does not know its store, or holds the result of other data
            under the name of this one.
        StoreError: The store lacks the task, has no masks in this part or was preprocessed otherwise than
            the run's, or a mask file is missing or has changed.
        SourceError: The source is not where it was, or a ready mask is missing, lies elsewhere, is of another shape or
            holds a value that is no label.
        ConfigError: An option is not valid.
    """
    if part not in PARTS or space not in ("source", "store") or not tolerance >= 0:
        raise ConfigError(
            f"cannot evaluate part '{part}' in space '{space}' with tolerance {tolerance}",
            hint=f"parts are {', '.join(PARTS)}, spaces are source and store, a tolerance is 0 or more",
        )
    _check_choices(predictions, space, sheet, masks)
    opened = Run.open(run)
    name = opened.task.name
    store = store if isinstance(store, Store) else Store.open(store or _store_of(opened))
    cases, leaked = _cases_to_score(opened, store, part, allow_leak=allow_leak)
    folder = None if predictions is None else str(Path(predictions).absolute())
    path = _result_path(opened, store, part, space, folder)
    truths = _truths(store, cases) if space == "source" else {}
    task = store.tasks[name]
    predictor = None
    if predictions is None:
        predictor = _fitting_predictor(opened, store, device=device, components=components)
        found: Iterable[Callable[[], Mask]] = _predicted(predictor, store, cases, space)
    else:
        found = _ready_masks(Path(predictions), cases, task)
    kept = None if masks is None else Path(masks)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)

    def score(pair: tuple[CaseRecord, Callable[[], Mask]]) -> list[CaseScore]:
        case, mask = pair[0], pair[1]()
        if kept is not None:
            _keep_mask(mask, case, kept)
        if space == "source":
            return _score(case, task, truths[case.id](), mask, case.geometry.spacing, tolerance)
        return _score(case, task, store.label(case), mask, task.preprocessing.stored_spacing(case.geometry), tolerance)

    with ThreadPoolExecutor(1) as pool:  # scores one case while the network predicts the next
        scored = ahead(pool, score, zip(cases, found, strict=True))
        rows = [row for case in track(scored, "evaluate", total=len(cases)) for row in case]
    result = EvaluationResult(
        run=str(opened.path),
        task=name,
        part=part,
        space=space,
        leaked=leaked,
        tolerance=tolerance,
        predictions=folder,
        store_hash=store.hash,
        split_hash=store.split_hash,
        versions=versions("torch", "numpy", "scipy"),
        scores=rows,
        labels=[_mean(text, [[row] for row in rows if row.label == label]) for label, text in task.labels.items()],
        mean=_mean("mean", [list(case) for _, case in groupby(rows, key=lambda row: row.case)]),
    )
    _write(result, path)
    if sheet is not None and predictor is not None:
        _draw(result, predictor, store, Path(sheet))
    return result


def _check_choices(
    predictions: Path | str | None, space: str, sheet: Path | str | None, masks: Path | str | None
) -> None:
    """Refuses options that do not go together, before anything is read."""
    if predictions is not None and space == "store":
        raise ConfigError(
            "ready masks lie on the grid of their files, not on the store's",
            path=predictions,
            hint="leave --space store out",
        )
    if predictions is not None and (sheet is not None or masks is not None):
        raise ConfigError(
            "a sheet is drawn and masks are kept of the network's own predictions only",
            path=predictions,
            hint="leave --predictions out, or --sheet and --masks",
        )
    if masks is not None and space == "store":
        raise ConfigError(
            "masks are kept on the grid of the files", path=masks, hint="leave --space store or --masks out"
        )
    if sheet is not None and not Path(sheet).parent.is_dir():
        raise ConfigError("there is no such folder to write to", path=Path(sheet).parent, hint="make it first")


def _cases_to_score(run: Run, store: Store, part: Part, *, allow_leak: bool) -> tuple[list[CaseRecord], list[str]]:
    """The cases with masks of a part, and those of its subjects that training has seen.

    Raises:
        StoreError: There is no such case.
        LeakError: Training has seen one, and that is not allowed.
    """
    name = run.task.name
    cases = store.cases(name, part=part, labelled=True)
    if not cases:
        others = [other for other in PARTS if other != part and getattr(store.split(name), other)]
        hint = f"--part {' or '.join(others)}, or aggregate with a split of your own (--splits)"
        raise StoreError(f"task '{name}' has no masks of {part} subjects", path=store.path, hint=hint)
    leaked = sorted(run.seen(store, name).intersection(case.subject for case in cases))
    if leaked and not allow_leak:
        raise LeakError(
            f"training has seen {len(leaked)} of the {part} subjects: {', '.join(leaked[:5])}"
            + (" ..." if len(leaked) > 5 else ""),
            path=run.path,
            hint="--allow-leak evaluates them anyway and marks the result",
        )
    return cases, leaked


def _fitting_predictor(run: Run, store: Store, *, device: str | None, components: bool) -> Predictor:
    """The run's network, for a store whose task is the one it was trained on.

    Raises:
        StoreError: The task has another preprocessing or other labels.
    """
    predictor, task = Predictor(run.path, device=device, components=components), store.tasks[run.task.name]
    if task.preprocessing != predictor.task.preprocessing:
        what = f"task '{task.name}' has another preprocessing than the run's"
        raise StoreError(what, path=store.path, hint="retrain")
    if task.labels != predictor.task.labels:
        raise StoreError(
            f"task '{task.name}' has the labels {task.labels}, the run's has {predictor.task.labels}",
            path=store.path,
            hint="renumber the masks, and name the labels as the run does",
        )
    return predictor


def _keep_mask(mask: Mask, case: CaseRecord, folder: Path) -> None:
    """Writes a mask on the grid of the true one, in one step."""
    if case.source_ndim == 2:
        with replacing(folder / f"{case.id}.png") as temporary:
            Image.fromarray(mask[:, :, 0].astype(np.uint8)).save(temporary, format="PNG")
    else:
        image = nib.Nifti1Image(mask.astype(np.uint8), case.geometry.affine)  # type: ignore[no-untyped-call]
        with replacing(folder / f"{case.id}.nii.gz") as temporary:
            nib.save(image, temporary)


def _draw(result: EvaluationResult, predictor: Predictor, store: Store, output: Path) -> None:
    """Draws the worst, the median and the best case on the store's grid, where each has most of its mask."""
    records = {case.id: case for case in store.cases(result.task)}
    drawn = []
    for what, name, dice in worst_median_best(result):
        case = records[name]
        image, truth = store.image(case), store.label(case)
        number = widest_slice(truth)
        _, height, width = predictor.task.preprocessing.stored_spacing(case.geometry)
        title = f"{what}: {name}, slice {number + 1} of {len(image)}, Dice {dice:.3f}"
        drawn.append(DrawnCase(title, image[number], truth[number], predictor.mask(image)[number], height / width))
    if not drawn:
        raise StoreError("no case has a label to draw", path=store.path, hint="leave --sheet out")
    draw_sheet(drawn, store.tasks[result.task].labels, output)


def worst_median_best(result: EvaluationResult) -> list[tuple[str, str, float]]:
    """What each is, its case and its mean Dice over labels; fewer than three where there are fewer cases that count."""
    dice: dict[str, list[float]] = {}
    for row in result.scores:
        if row.dice is not None:
            dice.setdefault(row.case, []).append(row.dice)
    ranked = sorted(((fmean(values), name) for name, values in dice.items()))
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1} if ranked else {}
    chosen: dict[int, str] = {}
    for what, place in places.items():
        chosen.setdefault(place, what)
    return [(what, ranked[place][1], ranked[place][0]) for place, what in sorted(chosen.items())]


def _store_of(run: Run) -> str:
    """The path of the store that the run was made from."""
    path = run.info.provenance.get("store_path")
    if path is None:
        raise RunError("does not say where its store is", path=run.path, hint="give it with --store")
    if not Path(path).exists():
        raise StoreError("the store of this run is gone", path=path, hint="if it was moved, give it with --store")
    return str(path)


def _other_store(run: Run, store: Store) -> str | None:
    """Name of a store that holds other data than the run was made from; None for that one, moved or added to."""
    known, path = run.info.provenance, store.path.absolute()
    same = known.get("data") == {"store": store.hash, "split": store.split_hash}
    return None if same or known.get("store_path") in (None, str(path)) else path.name


def _result_path(run: Run, store: Store, part: str, space: str, predictions: str | None) -> Path:
    """Where the JSON of a result goes; what is there may only be an earlier result on the same data."""
    other = _other_store(run, store)
    kind = "-predictions" if predictions is not None else "-store" if space == "store" else ""
    path = run.path / "evaluation" / f"{part}{kind}{'' if other is None else f'-{other}'}.json"
    try:
        there = EvaluationResult.load(path)
    except RunError:  # nothing, or nothing that can be told apart
        return path
    # The run's own store may have been added to since.
    same = other is None or (there.store_hash, there.split_hash) == (store.hash, store.split_hash)
    if not same or (there.space, there.predictions) != (space, predictions):
        raise RunError("is the result of other data, which has the same name", path=path, hint="move it away first")
    return path


def _predicted(
    predictor: Predictor, store: Store, cases: Iterable[CaseRecord], space: str
) -> Iterator[Callable[[], Mask]]:
    """Runs the network case by case; masks come as functions, as those do that are read from files."""
    images = ((store.image(case), None if space == "store" else case.geometry) for case in cases)
    for mask in predictor.masks(images):
        yield partial(np.asarray, mask)


def _ready_masks(folder: Path, cases: Sequence[CaseRecord], task: TaskInfo) -> Iterable[Callable[[], Mask]]:
    """Finds the mask of every case, by the id of the case or the name of its image file."""
    if not folder.is_dir():
        raise SourceError("no such folder", path=folder, hint="give the folder that holds the masks")
    endings = (*NIFTI, *PICTURES, *([dicom_seg.ENDING] if task.layout == "dicom" else []))
    found = {stem(path): path for path in list_files(folder, endings)}
    series_in = cache(lambda folder: {series.id: series for series in list_series(folder)})
    masks = []
    for case in cases:
        path = found.get(case.id) or found.get(stem(Path(case.image_path)))
        if path is None:
            raise SourceError(
                f"has no mask of case '{case.id}'",
                path=folder,
                hint="a mask is called as its case or as the file of its image",
            )
        if path.suffix == dicom_seg.ENDING:
            masks.append(partial(_ready_segmentation, path, case, task, series_in))
            continue
        shape = read_geometry(path).shape
        if shape != case.source_shape:
            raise SourceError(
                f"has the shape {shape}, case '{case.id}' has {case.source_shape}",
                path=path,
                hint="bring the mask to the grid of its image",
            )
        check_same_place(path, case.geometry)
        masks.append(partial(_ready_mask, path, task))
    return masks


def _ready_segmentation(
    path: Path, case: CaseRecord, task: TaskInfo, series_in: Callable[[Path], Mapping[str, Series]]
) -> Mask:
    """Reads a DICOM segmentation of a case, whose series says where it lies."""
    series = series_in(Path(case.image_path)).get(case.id)
    if series is None:
        raise StoreError(f"has no series '{case.id}' any more", path=case.image_path, hint="put it back")
    return dicom_seg.read_segmentation(path, series, task.labels)


def _ready_mask(path: Path, task: TaskInfo) -> Mask:
    """Reads a mask whose values are labels of the task; black and white pictures have the one label 1."""
    white = [*task.labels] == [1] and path.name.lower().endswith(PICTURES)
    mask = read_white_label(path) if white else read_label(path)
    if unknown := sorted(set(np.unique(mask).tolist()) - {0, *task.labels}):
        raise SourceError(
            f"holds {unknown[0]}, which is not a label of '{task.name}' ({[*task.labels]})",
            path=path,
            hint="renumber the mask, or give the masks of this task",
        )
    return mask


def _truths(store: Store, cases: Iterable[CaseRecord]) -> dict[str, Callable[[], Mask]]:
    """What reads the mask of each case as its source has it.

    Raises:
        StoreError: A file is gone, or is not the one that the store was made from.
        SourceError: The source is not where it was.
    """
    hint = "put the source back, or aggregate again; in Python, space='store' does without"
    truths: dict[str, Callable[[], Mask]] = {}
    for case in cases:
        raw = store.source_case(case)
        if raw.label_path is None or raw.read_label is None:
            raise StoreError(f"case '{case.id}' has no mask any more", path=raw.image_path, hint=hint)
        if file_hash(raw.label_path) != case.label_sha256:
            raise StoreError("has changed since it was aggregated", path=raw.label_path, hint=hint)
        truths[case.id] = raw.read_label
    return truths


def _score(
    case: CaseRecord, task: TaskInfo, truth: Mask, mask: Mask, spacing: Sequence[float], tolerance: float
) -> list[CaseScore]:
    if task.ignore is not None:
        drawn = truth != task.ignore
        truth, mask = truth * drawn, mask * drawn
    scores = score_labels(truth, mask, spacing, task.labels, tolerance=tolerance)
    return [
        CaseScore(case=case.id, subject=case.subject, label=label, name=task.labels[label], **score._asdict())
        for label, score in scores.items()
    ]


def _mean(name: str, cases: Sequence[Sequence[CaseScore]]) -> Mean:
    """Mean over the labels of each case, then over cases; labels that are nowhere in a case are left out."""
    present = [[row for row in case if row.dice is not None] for case in cases]
    counted = [case for case in present if case]
    means = {
        metric: fmean(fmean(getattr(row, metric) for row in case) for case in counted) if counted else None
        for metric in METRICS
    }
    return Mean(name=name, cases=len(counted), **means)


def _write(result: EvaluationResult, path: Path) -> None:
    """Writes JSON and CSV, each in one step."""
    path.parent.mkdir(exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, CaseScore.model_fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in result.scores)
    write_text(path.with_name(f"{path.name.removesuffix('.json')}.csv"), table.getvalue())
    write_text(path, result.model_dump_json(indent=1))
