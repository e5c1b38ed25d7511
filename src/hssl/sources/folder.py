"""What the layouts share: names, subjects, labels, channels, and the source made of files in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hssl.errors import SourceError, name_bad_file
from hssl.sources.base import Case, Source
from hssl.sources.files import read_geometry, read_image, read_label

# sub-01_ses-2_T1w is sub-01, as BIDS has it; patient001_frame12 is patient001; p7_t3, p7_visit2, p7_ED, p7_flair: p7.
_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)_")
_REPEAT = re.compile(
    r"([_-](?:(?:frame|t|time|visit|ses|session|slice)[_-]?\d+|4d|ED|ES|T1(?:w|c|ce|gd)|T2w|FLAIR|PD|DWI|ADC))+$",
    re.IGNORECASE,
)

_LARGEST_JSON = 64 << 20  # bytes


@dataclass(frozen=True)
class Options:
    """What a user can say about a folder.

    Attributes:
        subject: Regular expression over the case id; its first group, or whole match, is the subject.
        channel: Channel by name or number; None for one task of each.
        task: Name of the task; None for the folder's.
        follow_links: Whether what a ``dataset.json`` lists may lie outside of its folder.
    """

    subject: str | None = None
    channel: str | int | None = None
    task: str | None = None
    follow_links: bool = False


@dataclass(frozen=True)
class Layout:
    """One way of laying out raw data on disk, and how to read it.

    Attributes:
        name: What ``--layout`` calls it.
        looks_for: What it looks for in a folder, in words for an error message.
        matches: Whether a path is laid out like this; looks at names and ``dataset.json`` only.
        read: The sources in a path that matches.
        may_be: The same where the user has named the layout, and whatever else lies there does not matter.
    """

    name: str
    looks_for: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Options], list[Source]]
    may_be: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class CaseFiles:
    """Where one case lies: its id as in the file name, its image, and its mask if it has one."""

    id: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class FolderSource:
    """A :class:`~hssl.sources.base.Source` made of one image file, and at most one mask file, a case.

    Attributes:
        task: Name of the task.
        path: The folder.
        layout: Name of the layout.
        files: The files of each case.
        find_labels: Returns the labels; called once, when they are first needed.
        modality: As the source names it; empty where unknown.
        channel: Index along the fourth axis of each image file; None for files with one channel.
        subject: Regular expression for the subject; None for the default rule of :func:`subject_of`.
        read_label: Reads a mask file.
    """

    task: str
    path: Path
    layout: str
    files: list[CaseFiles] = field(repr=False)
    find_labels: Callable[[], dict[int, str]] = field(repr=False)
    modality: str = ""
    channel: int | None = None
    subject: str | None = None
    read_label: Callable[[Path], NDArray[np.integer]] = field(repr=False, default=read_label)

    @cached_property
    def labels(self) -> Mapping[int, str]:
        """Integer value of each label in the masks, without background; empty without masks."""
        return self.find_labels()

    def cases(self) -> Iterator[Case]:
        """Yields the cases sorted by id.

        Raises:
            SourceError: A file is missing, two cases have one id, or the subject rule does not match.
        """
        named: dict[str, CaseFiles] = {}
        for files in self.files:
            for path in filter(None, (files.image, files.label)):
                with name_bad_file(path):  # a list can hold names that no disk takes
                    if not path.is_file():
                        raise SourceError(
                            f"no such file, though case '{files.id}' needs it",
                            path=path,
                            hint="put it back, or take the case out of the list",
                        )
            name = safe_name(files.id)
            if name in named:
                raise SourceError(
                    f"two cases are called '{name}': {named[name].image}",
                    path=files.image,
                    hint="rename one of the two",
                )
            named[name] = files
        for name, files in sorted(named.items()):
            yield Case(
                id=name,
                subject=subject_of(name, self.subject, files.image),
                task=self.task,
                image_path=files.image,
                label_path=files.label,
                read_geometry=partial(read_geometry, files.image, self.channel),
                read_image=partial(read_image, files.image, self.channel),
                read_label=partial(self.read_label, files.label) if files.label else None,
            )


def safe_name(name: str) -> str:
    """`name` with everything that a file name should not hold replaced by an underscore."""
    return re.sub(r"^[.-]+", "_", re.sub(r"[^\w.-]", "_", name)) or "_"


def task_name(path: Path, options: Options) -> str:
    """Name of the task in `path`: as the user says, otherwise the folder's."""
    return safe_name(options.task or path.resolve().name)


def subject_of(case_id: str, rule: str | None, path: Path) -> str:
    """The subject of a case.

    Without a rule it is the case id; from ``sub-X_...`` it is ``sub-X``, and trailing marks of a repeat
    (``_frame12``, ``_t3``, ``_visit2``, ``_ses-2``, ``_slice040``, ``_ED``, ``_4d``) or of a sequence (``_t1w``,
    ``_flair``) are left out.

    Args:
        case_id: Id of the case.
        rule: Regular expression, searched for in the id; its first group, or whole match, is the subject.
        path: The image, for the error message.

    Raises:
        SourceError: The rule does not match, or what it finds is empty.
    """
    if rule is None:
        bids = _BIDS.match(case_id)
        return bids[1] if bids else _REPEAT.sub("", case_id) or case_id
    found = re.search(rule, case_id)
    subject = (found[1] if found.re.groups else found[0]) if found else None
    if not subject:
        raise SourceError(
            f"subject rule '{rule}' finds nothing in case '{case_id}'",
            path=path,
            hint="correct the rule: it is searched for in each case id",
        )
    return subject


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        SourceError: It cannot be read, is far larger than any such list, or is not an object.
    """
    with name_bad_file(path):
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise SourceError(f"has {size:,} bytes, and is no list of a challenge", path=path, hint="check the file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"not a readable JSON file: {error}", path=path, hint="correct it, or get it again from where it came"
        ) from error
    if not isinstance(content, dict):
        raise SourceError("not a JSON object", path=path, hint='write {"name": value, ...}')
    return content


def listed_file(folder: Path, entry: str, options: Options, listing: Path) -> Path:
    """The file that a list names, which comes with the data and may be anybody's: it has to lie in the folder.

    Args:
        folder: The folder of the list.
        entry: What it names.
        options: Whether files outside are allowed.
        listing: The list, for the message.

    Raises:
        SourceError: The file lies outside, by its name or by a link.
    """
    path = folder / entry
    outside = Path(entry).is_absolute() or ".." in Path(entry).parts
    with name_bad_file(listing):
        real = path.resolve()
    if not options.follow_links and (outside or not real.is_relative_to(folder.resolve())):
        where = "" if outside else f", which is a link to {real}"
        hint = "put the files into the folder, or allow it with --follow-links if you trust the list"
        raise SourceError(f"lists '{entry}'{where}, outside of its folder", path=listing, hint=hint)
    return path


def dataset_json(folder: Path) -> dict[str, Any]:
    """The ``dataset.json`` of a folder; empty where there is none."""
    path = folder / "dataset.json"
    return read_json(path) if path.is_file() else {}


def parse_labels(listed: object, path: Path) -> dict[int, str]:
    """Labels by value without background, from ``{"1": "liver"}`` or from ``{"liver": 1}``.

    A name with several values (a region, as nnU-Net has them) names none of them: a value that has no name
    of its own is called ``label_<value>``. A label called ``ignore``, as nnU-Net has it, marks what is not annotated.

    Raises:
        SourceError: `listed` is neither.
    """
    if not isinstance(listed, dict):
        raise SourceError("lists no 'labels'", path=path, hint='write {"background": 0, "liver": 1}')
    labels: dict[int, str] = {}
    regions: set[int] = set()
    for left, right in listed.items():
        try:
            if isinstance(right, list):
                regions.update(map(_whole, right))
                continue
            name, value = (str(right), int(left)) if left.isdecimal() else (left, _whole(right))
        except (TypeError, ValueError) as error:
            raise SourceError(
                f"label '{left}': '{right}' is not a name and an integer",
                path=path,
                hint='write {"background": 0, "liver": 1}',
            ) from error
        if value in labels:
            raise SourceError(
                f"labels '{labels[value]}' and '{name}' have one value, {value}",
                path=path,
                hint="give each label a value of its own",
            )
        labels[value] = name
    labels = {value: f"label_{value}" for value in regions} | labels
    return {value: labels[value] for value in sorted(labels) if value != 0}


def _whole(value: Any) -> int:
    """A label's number; 1.7 is none, nor is true."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError(value)
    return int(value)


def channel_names(listed: object, path: Path) -> list[str]:
    """Names of the channels in the order of their numbers, from ``{"0": "T1", "1": "T2"}`` or a list.

    Raises:
        SourceError: The numbers are not 0, 1, 2 ...
    """
    if not isinstance(listed, dict):
        return [str(name) for name in (listed if isinstance(listed, list) else [listed])]
    if len(listed) == 1:
        return [str(name) for name in listed.values()]
    numbers = {str(number) for number in range(len(listed))}
    if {str(key) for key in listed} != numbers:
        raise SourceError(f"channels are numbered {', '.join(map(str, listed))}", path=path, hint="number them from 0")
    return [str(listed[key]) for key in sorted(listed, key=int)]


def choose_channels(names: list[str], wanted: str | int | None, path: Path) -> list[int]:
    """Indices of the channels to read: all, or the one `wanted` by name or number.

    Raises:
        SourceError: There is no such channel; the message lists those there are.
    """
    if wanted is None:
        return list(range(len(names)))
    if wanted in names:
        return [names.index(str(wanted))]
    if str(wanted).isdecimal() and int(wanted) < len(names):
        return [int(wanted)]
    if len(names) == 1:
        raise SourceError("has one channel", path=path, hint="leave --channel out")
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise SourceError(f"no channel '{wanted}'", path=path, hint=f"there are: {listed}")
