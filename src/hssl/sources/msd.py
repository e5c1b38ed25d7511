"""Folders of the Medical Segmentation Decathlon: a ``dataset.json`` that lists NIfTI images and masks.

Images of several modalities are 4D, one channel a modality, and give one task a channel: ``Task_Channel``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hssl.errors import SourceError
from hssl.sources.base import Source
from hssl.sources.files import stem
from hssl.sources.folder import (
    CaseFiles,
    FolderSource,
    Layout,
    Options,
    channel_names,
    choose_channels,
    dataset_json,
    listed_file,
    parse_labels,
    safe_name,
    task_name,
)


def matches(path: Path) -> bool:
    """Whether `path` has a ``dataset.json`` with a list of training cases."""
    return "training" in dataset_json(path)


def read(path: Path, options: Options) -> list[Source]:
    """The task of each modality, with the training cases and the unlabelled test images.

    Raises:
        SourceError: ``dataset.json`` lacks an entry, lists a file outside of its folder, or has no such channel.
    """
    dataset, listing = dataset_json(path), path / "dataset.json"
    labels = parse_labels(dataset.get("labels"), listing)
    lists = {name: dataset.get(name) or [] for name in ("training", "test")}
    for name, entries in lists.items():
        if not isinstance(entries, list):
            raise SourceError(f"'{name}' is not a list of cases", path=listing, hint="write a list [ ... ]")
    files = [_files(path, entry, options, labelled=True) for entry in lists["training"]]
    files += [_files(path, entry, options, labelled=False) for entry in lists["test"]]
    modalities = channel_names(dataset.get("modality", ""), listing)
    task, several = task_name(path, options), len(modalities) > 1
    return [
        FolderSource(
            task=f"{task}_{safe_name(modalities[channel])}" if several else task,
            path=path,
            layout=LAYOUT.name,
            files=files,
            find_labels=labels.copy,
            modality=modalities[channel],
            channel=channel if several else None,
            subject=options.subject,
        )
        for channel in choose_channels(modalities, options.channel, listing)
    ]


def _files(folder: Path, entry: Any, options: Options, *, labelled: bool) -> CaseFiles:
    """Files of one entry: ``{"image": ..., "label": ...}``, or the image alone as a string."""
    image = entry.get("image") if isinstance(entry, dict) else entry
    label = entry.get("label") if isinstance(entry, dict) and labelled else None
    if not isinstance(image, str) or (labelled and not isinstance(label, str)):
        needed = "an 'image' and a 'label'" if labelled else "an image"
        raise SourceError(
            f"entry {entry!r} does not name {needed}", path=folder / "dataset.json", hint="correct the list"
        )
    listing = folder / "dataset.json"
    mask = listed_file(folder, label, options, listing) if label else None
    return CaseFiles(stem(Path(image)), listed_file(folder, image, options, listing), mask)


LAYOUT = Layout("msd", "a dataset.json that lists 'training' cases", matches, read)
