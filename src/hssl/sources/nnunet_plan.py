"""Options with which ``hssl aggregate`` stores slices as a plan of nnU-Net will see them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from hssl.errors import ConfigError, first_mistake
from hssl.sources.base import Source
from hssl.sources.discovery import find_sources
from hssl.sources.folder import safe_name

CONFIGURATION = "2d"
SPLITS = "splits_final.json"
_CT = "CTNormalization"
_START = "nnU-Net writes it when a training starts: start nnUNetv2_train, and stop it once the file is there"
logger = logging.getLogger(__name__)


class _Configuration(BaseModel):
    spacing: tuple[float, float]
    normalization_schemes: list[str]


class _Intensities(BaseModel):
    percentile_00_5: float
    percentile_99_5: float


class _Plans(BaseModel):
    transpose_forward: tuple[int, int, int]
    configurations: dict[str, Any]
    foreground_intensity_properties_per_channel: dict[str, Any]


class _Fold(BaseModel):
    train: list[str]
    val: list[str]


def options_like_nnunet(plans: Path | str, source: Path | str, *, fold: int | None = None) -> dict[str, Any]:
    """Options of :class:`hssl.config.AggregateConfig` for the slices that nnU-Net's configuration ``2d`` will see.

    Spacing and, for CT, the range of intensities are those of the plan. The orientation is that of most files, for
    nnU-Net takes arrays as the files hold them. With a fold, each case is a subject of its own, and the cases that
    nnU-Net validates on are for test.

    Args:
        plans: ``nnUNetPlans.json`` or the like.
        source: The raw folder that was planned.
        fold: Number of a fold in ``splits_final.json``, which lies beside the plans; None leaves the split alone.

    Returns:
        Options by name.

    Raises:
        ConfigError: A file is missing or damaged, there is no such configuration or fold, or `source` holds no case.
        SourceError: `source` cannot be read.
    """
    plans = Path(plans)
    plan = _read(plans, TypeAdapter(_Plans))
    if CONFIGURATION not in plan.configurations:
        hint = f"plan it: nnUNetv2_plan_and_preprocess -d ID -c {CONFIGURATION}"
        raise ConfigError(f"holds no configuration '{CONFIGURATION}'", path=plans, hint=hint)
    found = _checked(TypeAdapter(_Configuration), plan.configurations[CONFIGURATION], plans)
    if sorted(plan.transpose_forward) != [0, 1, 2]:
        raise ConfigError(
            "'transpose_forward' is not an order of three axes", path=plans, hint="plan the data set again"
        )
    options: dict[str, Any] = {"spacing": found.spacing}
    if found.normalization_schemes[:1] == [_CT]:
        given = plan.foreground_intensity_properties_per_channel.get("0")
        limits = _checked(TypeAdapter(_Intensities), given, plans)
        options["window"] = (limits.percentile_00_5, limits.percentile_99_5)
    sources = find_sources(Path(source), subject=".+" if fold is not None else None)
    if orientation := _orientation(sources, plan.transpose_forward):
        options["orientation"] = orientation
    if fold is not None:
        options["subject"] = ".+"
        options["splits"] = {Path(source).resolve().name: {"test": _validated(plans.parent / SPLITS, fold)}}
    return options


def _orientation(sources: list[Source], transpose: tuple[int, int, int]) -> str | None:
    """Where rows, columns and slices point in nnU-Net's arrays; None for pictures, which lie as they are."""
    geometries = [(case.image_path, case.read_geometry()) for source in sources for case in source.cases()]
    volumes = [(path, geometry.orientation) for path, geometry in geometries if geometry.ndim == 3]
    if not volumes:
        return None
    counts = Counter(orientation for _, orientation in volumes)
    most = counts.most_common(1)[0][0]
    if others := [path for path, orientation in volumes if orientation != most]:
        logger.warning(
            "%d of %d files do not lie as the others (%s), such as %s: they are turned to match; nnU-Net leaves them",
            len(others),
            len(volumes),
            most,
            others[0],
        )
    axes = most[::-1]  # nnU-Net reads z, y, x
    slices, rows, columns = (axes[axis] for axis in transpose)
    return f"{rows}{columns}{slices}"


def _validated(path: Path, fold: int) -> list[str]:
    """The cases that a fold validates on, as our cases are called."""
    if not path.is_file():
        raise ConfigError("there is no such file", path=path, hint=_START)
    folds = _read(path, TypeAdapter(list[_Fold]))
    if not 0 <= fold < len(folds):
        raise ConfigError(f"has no fold {fold}", path=path, hint=f"folds are 0 to {len(folds) - 1}")
    return [safe_name(case) for case in folds[fold].val]


def _read(path: Path, model: TypeAdapter[Any]) -> Any:
    try:
        return model.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path, hint="give a file of nnU-Net") from error
    except ValidationError as error:
        raise _unfit(error, path) from error


def _checked(model: TypeAdapter[Any], value: Any, path: Path) -> Any:
    try:
        return model.validate_python(value)
    except ValidationError as error:
        raise _unfit(error, path) from error


def _unfit(error: ValidationError, path: Path) -> ConfigError:
    return ConfigError(f"is not a file of nnU-Net: {first_mistake(error)}", path=path, hint="plan the data set again")
