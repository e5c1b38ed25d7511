"""Plain folders of NIfTI volumes, in the folder itself or in ``images``, with or without masks.

Masks have the name of their image and lie in ``labels`` or ``masks``. Label names come from an optional
``labels.json`` (``{"liver": 1}``); without it, each value in the masks is a label.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hssl.errors import SourceError
from hssl.sources.base import Source
from hssl.sources.files import NIFTI, channel_count, read_label
from hssl.sources.folder import CaseFiles, FolderSource, Layout, Options, choose_channels
from hssl.sources.plain import Labels, list_images, listed_labels, pair_masks, plain_task, present_labels


def matches(path: Path) -> bool:
    """Whether `path`, or its ``images`` folder, holds NIfTI files, or is one."""
    return bool(list_images(path, NIFTI))


def read(path: Path, options: Options) -> list[Source]:
    """The task of the folder; if its images are 4D, one task a channel, ``Task_0``, ``Task_1`` and so on.

    Raises:
        SourceError: A mask has no image, there are both mask folders, or there is no such channel.
    """
    files, task = pair_masks(path, NIFTI), plain_task(path, options)
    names = [str(number) for number in range(_channel_count(files))]
    several = len(names) > 1
    return [
        FolderSource(
            task=f"{task}_{channel}" if several else task,
            path=path,
            layout=LAYOUT.name,
            files=files,
            find_labels=partial(_labels, path, files),
            channel=channel if several else None,
            subject=options.subject,
        )
        for channel in choose_channels(names, options.channel, path)
    ]


def _channel_count(files: list[CaseFiles]) -> int:
    for case in files:
        try:
            return channel_count(case.image)
        except SourceError:
            continue  # named, and left out if the user so wishes, when its case is read
    return 1


def _labels(path: Path, files: list[CaseFiles]) -> Labels:
    listed = listed_labels(path) if any(case.label for case in files) else {}
    return present_labels(files, read_label) if listed is None else listed


LAYOUT = Layout("nifti", "*.nii.gz or *.nii in the folder or in 'images'", matches, read)
