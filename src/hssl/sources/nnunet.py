"""Raw folders of nnU-Net: ``DatasetXXX_Name`` with one file a channel, ``imagesTr/CASE_0000.nii.gz``.

Several channels give one task each, ``Task_Channel``. Images of ``imagesTs`` are read without masks.
"""

from __future__ import annotations

from pathlib import Path

from hssl.errors import SourceError
from hssl.sources.base import Source
from hssl.sources.files import NIFTI, PICTURES, list_files
from hssl.sources.folder import (
    CaseFiles,
    FolderSource,
    Layout,
    Options,
    channel_names,
    choose_channels,
    dataset_json,
    parse_labels,
    safe_name,
    task_name,
)


def matches(path: Path) -> bool:
    """Whether `path` has a ``dataset.json`` with channel names."""
    return "channel_names" in dataset_json(path)


def read(path: Path, options: Options) -> list[Source]:
    """The task of each channel, with the training cases and the unlabelled test images.

    A colour picture is one file with three channel names; it is one task, of its luminance.

    Raises:
        SourceError: ``dataset.json`` is not complete, an image has no channel number, or there is no
            such channel.
    """
    dataset, listing = dataset_json(path), path / "dataset.json"
    labels = parse_labels(dataset.get("labels"), listing)
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if ending not in (*NIFTI, *PICTURES):
        raise SourceError(f"files ending in '{ending}' cannot be read", path=listing, hint="convert to NIfTI")
    names = channel_names(dataset["channel_names"], listing)
    training, test = path / "imagesTr", path / "imagesTs"
    if ending in PICTURES and not list_files(training, (f"_0001{ending}",)):
        names = [" ".join(names)]
    task, several = task_name(path, options), len(names) > 1

    def files(channel: int) -> list[CaseFiles]:
        part = f"_{channel:04d}{ending}"
        return [
            CaseFiles(case, training / f"{case}{part}", path / "labelsTr" / f"{case}{ending}")
            for case in _case_ids(training, ending)
        ] + [CaseFiles(case, test / f"{case}{part}") for case in _case_ids(test, ending)]

    return [
        FolderSource(
            task=f"{task}_{safe_name(names[channel])}" if several else task,
            path=path,
            layout=LAYOUT.name,
            files=files(channel),
            find_labels=labels.copy,
            modality=names[channel],
            subject=options.subject,
        )
        for channel in choose_channels(names, options.channel, listing)
    ]


def _case_ids(folder: Path, ending: str) -> list[str]:
    """Ids of the cases that have a file of any channel in `folder`."""
    ids = set()
    for path in list_files(folder, (ending,)):
        case, mark, number = path.name[: -len(ending)].rpartition("_")
        if not (case and mark and len(number) == 4 and number.isdecimal()):
            raise SourceError(
                "has no channel number, as in CASE_0000",
                path=path,
                hint="rename it, or move it away if it is no image of a case",
            )
        ids.add(case)
    return sorted(ids)


LAYOUT = Layout("nnunet", "a dataset.json with 'channel_names'", matches, read)
