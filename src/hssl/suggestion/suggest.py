"""What to draw next, as a ranking, a picture, and files to draw in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hssl.errors import ConfigError, RunError
from hssl.networks import to_device
from hssl.prediction.predictor import Predictor
from hssl.runs import Run, load_unet
from hssl.store import Store, TaskInfo, slice_sheet
from hssl.suggestion.export import export_cases
from hssl.suggestion.ranking import Suggestions, rank_undrawn
from hssl.suggestion.selection import Selection


def suggest(
    store: Store | Path | str,
    *,
    task: str,
    count: int = 5,
    slices: bool = False,
    run: Path | str | Sequence[Path | str] | None = None,
    by: Selection = "k-medoids",
    labels: str | int | Sequence[str] | None = None,
    seed: int = 0,
    sheet: Path | str | None = None,
    export: Path | str | None = None,
    device: str | None = None,
) -> Suggestions:
    """Ranks training subjects without a mask, or slices that are not drawn, by what their masks would add.

    They are compared by their features: those of a run, or the brightness of small pictures without one. Each
    suggestion is the one that brings all training scans nearest to a drawn one (``k-medoids``), or the one farthest
    from all drawn ones (``k-center``). A fine-tuned run adds its uncertainty: what it is unsure of counts for more.
    Nothing is random; `seed` is that of the label budget.

    Args:
        store: The data.
        task: The task.
        count: How many to suggest.
        slices: Suggest single slices, and not subjects.
        run: A pre-trained run, or one fine-tuned on the task, or several of these, whose probabilities are averaged, so
            that what they disagree on counts as uncertain. Features are those of the first. None needs none.
        by: How they are chosen.
        labels: Regard these training subjects as drawn, and no others, as the label budget of :func:`hssl.finetune`
            does (``3@5``: five slices of each of their cases). None: those that have a mask.
        seed: Seed of the label budget.
        sheet: Write a picture of what is suggested to this PNG.
        export: Write images, and masks to be drawn or corrected, into this new folder.
        device: As torch names it; None is a GPU where there is one.

    Returns:
        The suggestions; fewer than `count` where fewer are left.

    Raises:
        ConfigError: `count` is below 1, `export` is there already, or there is no such device.
        RunError: A run is incomplete, or was fine-tuned on another task.
        StoreError: There is no such task, or nothing is left to draw.
    """
    if count < 1:
        raise ConfigError("nothing is to be suggested", hint="give a count of 1 or more")
    store = store if isinstance(store, Store) else Store.open(store)
    info = store.tasks[store.cases(task)[0].task]
    if export is not None and Path(export).exists():  # before the long work
        raise ConfigError("already exists", path=export, hint="give a new folder")
    runs = [] if run is None else [run] if isinstance(run, Path | str) else list(run)
    predictor = _predictor(runs, info, device)
    found = rank_undrawn(
        store,
        task,
        count,
        slices=slices,
        network=to_device(load_unet(runs[0])[0], device) if runs else None,
        name=str(runs[0]) if runs else "brightness",
        predictor=predictor,
        by=by,
        labels=labels,
        seed=seed,
    )
    if sheet is not None:
        _draw(store, found, Path(sheet))
    if export is not None:
        export_cases(store, found, Path(export), predictor)
    return found


def _predictor(runs: Sequence[Path | str], info: TaskInfo, device: str | None) -> Predictor | None:
    """What predicts, where the runs are fine-tuned."""
    stages = [Run.open(run).info.stage for run in runs]
    if "finetune" not in stages:
        if len(stages) > 1:
            raise ConfigError("several pre-trained runs", hint="give one; only fine-tuned runs are averaged")
        return None
    predictor = Predictor(list(runs), device=device)
    task = predictor.task
    if (task.name, task.labels, task.preprocessing) != (info.name, info.labels, info.preprocessing):
        hint = f"give a run that was fine-tuned on '{info.name}' of this store, or a pre-trained one"
        raise RunError(f"was fine-tuned on '{task.name}', with other labels or another grid", path=runs[0], hint=hint)
    return predictor


def _draw(store: Store, found: Suggestions, output: Path) -> None:
    """The slice of each suggestion, the first on the left."""
    cases = {case.id: case for case in store.cases(found.task)}
    titles = [
        f"{item.rank}. stands for {item.stands_for}"
        + ("" if item.uncertainty is None else f", uncertainty {item.uncertainty:.2f}")
        for item in found.items
    ]
    slice_sheet(store, [(cases[item.cases[0]], item.slice) for item in found.items], titles, output)
