"""The volumes of the page in a notebook, by ipyniivue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hssl.errors import ConfigError, StoreError, install
from hssl.palette import distinct_colours, label_colours
from hssl.sources.files import NIFTI, read_geometry, read_image, read_label, stem
from hssl.store import Store
from hssl.viewer.volumes import case_affine, to_nifti

if TYPE_CHECKING:
    from ipyniivue import NiiVue


def show(
    what: Store | Path | str,
    task: str | None = None,
    case: str | None = None,
    *,
    mask: Path | str | None = None,
    opacity: float = 0.5,
) -> NiiVue:
    """A volume with its mask in a notebook: three planes and 3D.

    Args:
        what: A store, or a NIfTI file.
        task: Of the case of a store; None is its first.
        case: Id of the case; None is the first of the task.
        mask: A mask over a NIfTI file, on the same grid or another; a case of a store brings its own.
        opacity: Of the mask, in [0, 1].

    Returns:
        The widget, which a notebook draws where it is the last value of a cell.

    Example:
        ``hssl.show("store", "Task02_Heart", "la_003")`` or ``hssl.show("scan.nii.gz", mask="masks/scan.nii.gz")``

    Raises:
        ConfigError: The extra ``notebook`` is not installed, or options do not fit together.
        StoreError: There is no such task or case.
        SourceError: A file cannot be read.
    """
    try:
        from ipyniivue import NiiVue, SliceType
    except ImportError as error:
        raise ConfigError(f"volumes in a notebook need {error.name}", hint=install("notebook")) from error
    volumes = (
        _of_file(Path(what), mask)
        if isinstance(what, Path | str) and str(what).lower().endswith(NIFTI)
        else _of_store(what if isinstance(what, Store) else Store.open(what), task, case, mask)
    )
    for volume in volumes[1:]:
        volume["opacity"] = opacity
    labels = [volume.pop("labels", None) for volume in volumes]
    widget = NiiVue(is_radiological_convention=True, is_nearest_interpolation=True)
    widget.load_volumes(volumes)
    for number, colours in enumerate(labels):
        if colours:
            widget.volumes[number].set_colormap_label(_colour_table(colours))
    widget.set_slice_type(SliceType.MULTIPLANAR)
    return widget


def _of_file(path: Path, mask: Path | str | None) -> list[dict[str, Any]]:
    # Given as arrays: NiiVue draws a file whose header contradicts itself askew.
    volumes: list[dict[str, Any]] = [{**_volume(path, read_image(path)), "colormap": "gray"}]
    if mask is not None:
        label = read_label(Path(mask))
        values = [value for value in np.unique(label).tolist() if value]
        colours = dict(zip(values, distinct_colours(len(values)), strict=True))
        labels = {value: (str(value), colour) for value, colour in colours.items()}
        volumes.append({**_volume(Path(mask), label), "labels": labels})
    return volumes


def _volume(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    affine = read_geometry(path).affine
    return {"name": f"{stem(path)}.nii", "data": to_nifti(array.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])}


def _of_store(store: Store, task: str | None, case: str | None, mask: Path | str | None) -> list[dict[str, Any]]:
    if mask is not None:
        raise ConfigError("a case of a store brings its own mask", hint="give a NIfTI file to lay another mask over it")
    cases = store.cases(task)
    found = [each for each in cases if case is None or each.id == case]
    if not found:
        raise StoreError(
            f"has no case '{case}'", path=store.path, hint=f"it has {', '.join(each.id for each in cases[:5])} ..."
        )
    record = found[0]
    affine = case_affine(store, record)
    image = {"name": f"{record.id}.nii", "data": to_nifti(store.image(record), affine)}
    volumes: list[dict[str, Any]] = [{**image, "colormap": "gray", "cal_min": 0.0, "cal_max": 1.0}]
    if record.has_label:
        info = store.tasks[record.task]
        colours = label_colours(info.labels)
        names = {value: (name, colours[value]) for value, name in info.labels.items()}
        volumes.append({"name": "mask.nii", "data": to_nifti(store.label(record), affine), "labels": names})
    return volumes


def _colour_table(labels: dict[int, tuple[str, str]]) -> dict[str, list[Any]]:
    """Colours of label values as NiiVue wants them; 0 is clear."""
    values = sorted(labels)
    parts = [[0, *(int(labels[value][1][at : at + 2], 16) for value in values)] for at in (1, 3, 5)]
    table: dict[str, list[Any]] = dict(zip("RGB", parts, strict=True))
    return table | {
        "A": [0, *(255 for _ in values)],
        "I": [0, *values],
        "labels": ["", *(labels[v][0] for v in values)],
    }
