"""Raw challenges as :class:`~hssl.sources.base.Case` objects: one reader a layout, found from the path.

A new layout is one file with a :class:`~hssl.sources.folder.Layout`, and one line in :data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from pathlib import Path

from hssl.errors import ConfigError, SourceError
from hssl.sources import dicom, images2d, msd, nifti, nnunet
from hssl.sources.base import Case, Geometry, Source
from hssl.sources.folder import Layout, Options

__all__ = ["LAYOUTS", "Case", "Geometry", "Source", "find_sources"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (msd.LAYOUT, nnunet.LAYOUT, nifti.LAYOUT, images2d.LAYOUT, dicom.LAYOUT)
}

_PLAIN = (nifti.LAYOUT, images2d.LAYOUT)
_PART = re.compile(r"(images?|labels?|masks?)(tr|ts)?", re.IGNORECASE)


def find_sources(
    path: Path,
    *,
    layout: str | None = None,
    subject: str | None = None,
    channel: str | int | None = None,
    task: str | None = None,
) -> list[Source]:
    """Finds the tasks in a folder of raw data; no image is read.

    Args:
        path: A challenge folder, a folder that holds several, or a single image file.
        layout: Name of the reader, a key of :data:`LAYOUTS`; None finds it from the path.
        subject: Regular expression over the case id whose first group, or whole match, is the subject;
            None for the rule of :func:`hssl.sources.folder.subject_of`.
        channel: Channel by name or number, where images have several; None for one task of each.
        task: Name of the task; None takes it from the folder.

    Returns:
        The sources, sorted by folder; tasks are unique.

    Raises:
        SourceError: Nothing matches, several layouts match one folder, DICOM series lie among other images, folders
            are one patient each, or there is no such channel.
        ConfigError: `layout` is unknown, `subject` is not a regular expression, or `task` is to name several.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"no layout '{layout}'", hint=f"there are: {', '.join(LAYOUTS)}")
    if subject is not None:
        try:
            re.compile(subject)
        except re.error as error:
            raise ConfigError(f"subject rule '{subject}' is not a regular expression: {error}") from error
    if not path.exists():
        raise SourceError("no such file or folder", path=path)

    options = Options(subject=subject, channel=channel, task=task)
    found = [(folder, match) for folder in [path] if (match := _layout_of(folder, layout))]
    if not found:
        found = [(folder, match) for folder in _folders(path) if (match := _layout_of(folder, layout, inner=True))]
    if not found:
        candidates = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
        looked_for = "; ".join(f"{candidate.name}: {candidate.looks_for}" for candidate in candidates)
        raise SourceError(
            f"no images found, here or in its folders; looked for {looked_for}",
            path=path,
            hint="choose a reader with --layout, or link the files of a deeper tree into one folder"
            if layout is None
            else None,
        )
    if task is not None and len(found) > 1:
        raise ConfigError(f"task '{task}' cannot name {len(found)} folders", path=path)
    sources = [source for folder, match in found for source in match.read(folder, options)]
    if len(found) > 2 and all(match in _PLAIN for _, match in found) and all(_is_one_subject(each) for each in sources):
        raise SourceError(
            f"{len(found)} folders of one subject each, which seem to be patients and not challenges",
            path=path,
            hint="link their files into one folder, or give each folder by itself if it is a challenge",
        )
    return _unique(sources)


def _folders(path: Path) -> list[Path]:
    """Folders that may each be a challenge: the parts of one that has lost its list are not."""
    if not path.is_dir():
        return []
    return sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and not child.name.startswith(".") and not _PART.fullmatch(child.name)
    )


def _layout_of(path: Path, name: str | None, *, inner: bool = False) -> Layout | None:
    """How a folder is laid out: as `name` says or, if that is None, as it looks; `inner` folders hold no others."""
    if name is not None:
        layout = LAYOUTS[name]
        return layout if (layout.may_be or layout.matches)(path) else None
    matching = [layout for layout in LAYOUTS.values() if layout.matches(path)]
    plain = [layout for layout in matching if layout in _PLAIN]
    # Series below pictures, or pictures among series, would be passed over without a word.
    if (plain or (inner and not matching)) and dicom.LAYOUT not in matching and dicom.holds_series(path):
        matching.append(dicom.LAYOUT)
        if len(matching) == 1:
            raise SourceError("holds DICOM series and other images", path=path, hint="choose one with --layout")
    if len(matching) > 1:
        names = " and ".join(layout.name for layout in matching)
        raise SourceError(f"may be read as {names}", path=path, hint="choose one with --layout")
    return matching[0] if matching else None


def _is_one_subject(source: Source) -> bool:
    return len({case.subject for case in source.cases()}) == 1


def _unique(sources: list[Source]) -> list[Source]:
    seen: dict[str, Source] = {}
    for source in sources:
        if source.task in seen:
            raise SourceError(f"task '{source.task}' is also in {seen[source.task].path}", path=source.path)
        seen[source.task] = source
    return sources
