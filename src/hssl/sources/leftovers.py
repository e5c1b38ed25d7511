"""Files beside the images and masks of a source that nobody reads: listed once with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hssl.sources.base import Source
from hssl.sources.files import NIFTI, PICTURES, stem, walk_files
from hssl.sources.plain import image_name, is_called_mask, root_of

_NO_IMAGES = (  # beside images they say something about them, or nothing
    *(".json", ".txt", ".md", ".rst", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html", ".pdf", ".xlsx", ".xls"),
    *(".bval", ".bvec", ".py", ".ipynb", ".sh", ".log", ".docx", ".license", ".cff", ".ini", ".db"),
)
_NAMED = 3


@dataclass(frozen=True)
class Unused:
    """Files of one folder that are not used, for one reason.

    Attributes:
        folder: Where they lie.
        reason: Why.
        files: The files, sorted.
        masks: Those that their name, or their folder's, calls masks.
    """

    folder: Path
    reason: str
    files: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __str__(self) -> str:
        names = ", ".join(file.name for file in self.files[:_NAMED])
        more = f" and {len(self.files) - _NAMED} more" if len(self.files) > _NAMED else ""
        return f"{self.folder}: not used, {self.reason}: {names}{more}"


def unused_files(path: Path, sources: Sequence[Source]) -> list[Unused]:
    """What lies below a folder and is no part of the sources that were found there.

    Documents and tables are left out, and what is hidden.

    Args:
        path: The folder that `sources` were found in; for a single file nothing is listed.
        sources: The sources.

    Raises:
        SourceError: As :meth:`~hssl.sources.base.Source.cases`.
    """
    if not path.is_dir():
        return []
    used: set[Path] = set()
    for source in sources:
        for case in source.cases():
            files = (*(case.image_files or (case.image_path,)), *((case.label_path,) if case.label_path else ()))
            used.update(file.absolute() for file in files)
    folders = {file.parent for file in used}
    listed = any(source.layout in ("msd", "nnunet") for source in sources)
    dicom = any(source.layout == "dicom" for source in sources)
    found: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for files_here in walk_files(root_of(path).absolute()):
        for file in files_here:
            if file not in used and (reason := _reason(file, folders, listed=listed, dicom=dicom)):
                found[file.parent, reason].append(file)
    return [
        Unused(folder, reason, tuple(files), tuple(file for file in files if is_called_mask(file)))
        for (folder, reason), files in sorted(found.items())
    ]


def named_like_images(source: Source, unused: Sequence[Unused]) -> dict[Path, int]:
    """Folders beside the images of a plain folder that are not read, and how many files there have names of images.

    They may be masks in a folder of another name than those that are known.
    """
    endings = {"nifti": NIFTI, "images2d": PICTURES}.get(source.layout)
    if endings is None:
        return {}
    images = {stem(case.image_path) for case in source.cases()}
    root, found = root_of(source.path), dict[Path, int]()
    for group in unused:
        files = [file for file in group.files if file.name.lower().endswith(endings) and image_name(file, images)]
        if files and group.folder.resolve().parent == root:
            found[group.folder] = found.get(group.folder, 0) + len(files)
    return found


def _reason(file: Path, folders: set[Path], *, listed: bool, dicom: bool) -> str | None:
    """Why a file is not used; None for one that is no image in any case."""
    ending = next((ending for ending in NIFTI if file.name.lower().endswith(ending)), file.suffix.lower())
    if file.is_symlink() and not file.exists():
        return "a broken link"
    if ending in _NO_IMAGES or (not ending and not dicom):
        return None
    if dicom and ending not in (*NIFTI, *PICTURES):
        return None if file.name.upper() == "DICOMDIR" else "no slices of a scan"
    if ending not in (*NIFTI, *PICTURES):
        return f"no reader for '{ending}' (convert to NIfTI or PNG)"
    if file.parent not in folders and not is_called_mask(file):
        return "in a folder that is not read"
    return "not in dataset.json" if listed else "of another kind than the images"
