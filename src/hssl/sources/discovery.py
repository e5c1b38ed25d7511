"""Raw challenges as :class:`~hssl.sources.base.Case` objects: one reader a layout, found from the path.

A new layout is one file with a :class:`~hssl.sources.folder.Layout`, and one line in :data:`hssl.registry.LAYOUTS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hssl.errors import ConfigError, SourceError
from hssl.registry import LAYOUTS
from hssl.sources import dicom, images2d, nifti
from hssl.sources.base import Case, Source
from hssl.sources.folder import Layout, Options
from hssl.sources.plain import SORTED, has_image_folder

_PLAIN = (nifti.LAYOUT, images2d.LAYOUT)
_PART = re.compile(
    r"(images?|imgs?|labels?|masks?|annotations?|gt|ground[_-]?truth|segmentations?|segs?)(tr|ts)?", re.IGNORECASE
)


def find_sources(
    path: Path,
    *,
    layout: str | None = None,
    subject: str | None = None,
    channel: str | int | None = None,
    task: str | None = None,
    follow_links: bool = False,
) -> list[Source]:
    """Finds the tasks in a folder of raw data; no image is read.

    Args:
        path: A challenge folder, a folder that holds several, or a single image file.
        layout: Name of the reader, a key of :data:`LAYOUTS`; None finds it from the path.
        subject: Regular expression over the case id whose first group, or whole match, is the subject;
            None for the rule of :func:`hssl.sources.folder.subject_of`.
        channel: Channel by name or number, where images have several; None for one task of each.
        task: Name of the task; None takes it from the folder.
        follow_links: Read files that a ``dataset.json`` lists outside of its folder, too.

    Returns:
        The sources, sorted by folder; tasks are unique.

    Raises:
        SourceError: Nothing matches, several layouts match one folder, DICOM series lie among other images, folders
            are one patient each, the folder is a part of a challenge, or there is no such channel.
        ConfigError: `layout` is unknown, `subject` is not a regular expression, or `task` is to name several.
    """
    path = Path(path)
    if layout is not None:
        LAYOUTS.check(layout)
    if subject is not None:
        try:
            re.compile(subject)
        except re.error as error:
            raise ConfigError(
                f"subject rule '{subject}' is not a regular expression: {error}",
                hint="write it as Python does, for example --subject '(p[0-9]+)_.*'",
            ) from error
    if not path.exists():
        raise SourceError("no such file or folder", path=path, hint="check the name, and that its disk is there")
    if layout is None:
        _check_whole(path)

    options = Options(subject=subject, channel=channel, task=task, follow_links=follow_links)
    found = [(folder, match) for folder in [path] if (match := _layout_of(folder, layout))]
    if not found:
        found = [(folder, match) for folder in _folders(path) if (match := _layout_of(folder, layout, inner=True))]
    if not found:
        raise _nothing_found(path, layout)
    if task is not None and len(found) > 1:
        raise ConfigError(
            f"task '{task}' cannot name {len(found)} folders",
            path=path,
            hint="leave it out, or give one folder a command",
        )
    sources = [source for folder, match in found for source in match.read(folder, options)]
    check_no_patients(sources)
    return _unique(sources)


def _nothing_found(path: Path, layout: str | None) -> SourceError:
    """What was looked for in a folder that no reader can read."""
    if layout is None and (path / "imagesTr").is_dir() and not (path / "dataset.json").exists():
        hint = "write one, or call the folders images and labels"
        return SourceError("holds imagesTr and no dataset.json", path=path, hint=hint)
    candidates = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
    looked_for = "; ".join(f"{candidate.name}: {candidate.looks_for}" for candidate in candidates)
    hint = "choose a reader with --layout, or link the files of a deeper tree into one folder"
    what = f"no images found, here or in its folders; looked for {looked_for}"
    return SourceError(what, path=path, hint="leave --layout out" if layout else hint)


def check_no_patients(sources: Sequence[Source]) -> None:
    """Checks that folders are challenges: three or more that are one patient each would become as many tasks.

    Raises:
        SourceError: All plain folders hold one subject each, or fewer files than there are folders, called the same in
            all.
    """
    plain = {layout.name for layout in _PLAIN}
    sources = [source for source in sources if source.layout in plain]
    if len({source.path for source in sources}) < 3:  # before any folder is listed
        return
    folders: dict[Path, list[Case]] = {}
    for source in sources:
        folders.setdefault(source.path, []).extend(source.cases())
    # With a folder of images of their own they are one sequence each, of patients that are called alike in all.
    names = [{case.id for case in cases} for path, cases in folders.items() if not has_image_folder(path)]
    alike = len(names) == len(folders) > len(names[0]) and all(each == names[0] for each in names)
    if alike or all(len({case.subject for case in cases}) == 1 for cases in folders.values()):
        raise SourceError(
            f"{len(folders)} folders "
            + ("with files of the same names" if alike else "of one subject each")
            + ", which seem to be patients and not challenges",
            path=os.path.commonpath(folders),
            hint=f"{SORTED}; or add each with a separate command if it is a challenge",
        )


def _check_whole(path: Path) -> None:
    """Refuses a part of a challenge: masks by themselves, and images whose masks lie beside their folder."""
    if not path.is_dir():
        return
    folder = path.absolute()
    above = f"give {folder.parent}, or say with --layout that it is all there is"
    part = _PART.fullmatch(folder.name)
    if part and not part[1].lower().startswith(("image", "img")):
        raise SourceError("is a folder of masks", path=path, hint=above)
    if folder.name.lower() == "imagestr" and (folder.parent / f"labels{folder.name[-2:]}").is_dir():
        raise SourceError("is a part of a challenge, whose masks lie beside it", path=path, hint=above)


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


def _unique(sources: list[Source]) -> list[Source]:
    seen: dict[str, Source] = {}
    for source in sources:
        if source.task in seen:
            raise SourceError(
                f"task '{source.task}' is also in {seen[source.task].path}",
                path=source.path,
                hint="rename one of the folders, or aggregate them one by one with --task NAME",
            )
        seen[source.task] = source
    return sources
