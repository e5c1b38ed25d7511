"""What lies beside images and is not used is listed with why."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl.errors import SourceError
from hssl.sources import find_sources
from hssl.sources.leftovers import unused_files
from hssl.store import aggregate

SHAPE = (8, 7, 6)


def write_nifti(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    nib.save(nib.Nifti1Image(rng.normal(size=SHAPE).astype(np.float32), np.diag([1.0, 1, 3, 1])), path)
    return path


def write_mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([1.0, 1, 3, 1])), path)
    return path


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("images", ["images", "img", "Images", "imgs", "image", ""])
@pytest.mark.parametrize(
    "masks",
    [
        "labels",
        "Labels",
        "mask",
        "gt",
        "annotations",
        "labelsTr",
        "GroundTruth",
        "ground_truth",
        "seg",
        "segmentations",
    ],
)
def test_folders_of_masks_go_by_many_names(images: str, masks: str, tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_nifti(tmp_path / "Livers" / images / f"{case}.nii.gz")
        write_mask(tmp_path / "Livers" / masks / f"{case}.nii.gz")
    for given in (tmp_path, tmp_path / "Livers", tmp_path / "Livers" / images):
        (source,) = find_sources(given)
        assert source.task == "Livers"
        assert [(case.id, case.label_path) for case in source.cases()] == [
            (case, (tmp_path / "Livers" / masks).resolve() / f"{case}.nii.gz") for case in ("a", "b")
        ]
        assert unused_files(given, [source]) == []


def test_each_file_that_is_not_used_is_listed_with_why(tmp_path: Path) -> None:
    root = tmp_path / "Livers"
    for seed, case in enumerate(("a", "b", "c")):
        write_nifti(root / f"images/{case}.nii.gz", seed)
    for name in ("a.gif", "b.gif", "c.gif"):
        write_picture(root / "labels" / name, np.eye(7))
    write_nifti(root / "images/old/a.nii.gz")
    (root / "images/d.mha").write_bytes(b"")
    (root / "images/e.img").write_bytes(b"")
    write_picture(root / "images/f.png", np.eye(7))
    (root / "images/g.nii.gz").symlink_to(root / "nowhere.nii.gz")
    (root / "README.md").write_text("said")
    (root / ".hidden.nii.gz").write_bytes(b"")
    unused = unused_files(root, find_sources(root, layout="nifti"))
    images, labels = root / "images", root / "labels"
    assert [(group.folder, group.reason, [file.name for file in group.files]) for group in unused] == [
        (images, "a broken link", ["g.nii.gz"]),
        (images, "no reader for '.img' (convert to NIfTI or PNG)", ["e.img"]),
        (images, "no reader for '.mha' (convert to NIfTI or PNG)", ["d.mha"]),
        (images, "of another kind than the images", ["f.png"]),
        (images / "old", "in a folder that is not read", ["a.nii.gz"]),
        (labels, "no reader for '.gif' (convert to NIfTI or PNG)", ["a.gif", "b.gif", "c.gif"]),
    ]


def test_unused_files_are_told_once_and_a_task_that_lost_its_masks_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "Livers"
    for seed, case in enumerate("abcd"):
        write_nifti(root / f"images/{case}.nii.gz", seed)
        write_picture(root / f"labels/{case}.gif", np.eye(7))
    with caplog.at_level(logging.WARNING, "hssl"):
        aggregate(root, tmp_path / "store")
    lines = [record.getMessage() for record in caplog.records]
    reason = "not used, no reader for '.gif' (convert to NIfTI or PNG)"
    assert lines == [
        f"{root}/labels: {reason}: a.gif, b.gif, c.gif and 1 more",
        f"task 'Livers' has no masks, although 4 files look like some, such as {root}/labels/a.gif",
    ]


@pytest.mark.parametrize("ending", ["", "_seg"])
@pytest.mark.parametrize("images", ["images/", ""])
def test_masks_in_a_folder_of_an_unknown_name_are_told(
    images: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "Livers"
    for seed, case in enumerate("abc"):
        write_nifti(root / f"{images}{case}.nii.gz", seed)
        write_mask(root / f"Segmentierung/{case}{ending}.nii.gz")
    write_nifti(root / "other/x.nii.gz")
    with caplog.at_level(logging.WARNING, "hssl"):
        aggregate(root, tmp_path / "store")
    assert [line for line in caplog.messages if line.startswith("task")] == [
        "task 'Livers' has no masks; in Segmentierung/ are files with the names of 3 of its images: "
        "if they are its masks, rename that folder to 'masks'"
    ]
    (root / "Segmentierung").rename(root / "masks")
    assert all(case.label_path for case in find_sources(root)[0].cases())


def test_what_a_list_leaves_out_is_told(phantom_root: Path, tmp_path: Path) -> None:
    (source,) = find_sources(next(path for path in sorted(phantom_root.iterdir()) if path.is_dir()))
    assert unused_files(source.path, [source]) == []
    (tmp_path / "copy").symlink_to(source.path)


# Masks of pictures that nobody listed ---------------------------------------------------------------------------


def write_pair(root: Path, mask: np.ndarray) -> Path:
    write_picture(root / "images/a.png", np.random.default_rng(0).integers(0, 255, mask.shape))
    write_picture(root / "masks/a.png", mask)
    return root


def block(*values: int) -> np.ndarray:
    return np.kron(np.array([[0, *values]]), np.ones((8, 8))).astype(np.uint8)


def test_smooth_edges_are_refused_with_the_values_found(tmp_path: Path) -> None:
    mask = block(255)
    mask[:, 8], mask[:, 9] = 85, 170
    message = r"masks: the masks hold 85, 170, 255, of which 85 lies on edges alone"
    with pytest.raises(SourceError, match=message):
        find_sources(write_pair(tmp_path, mask))


def test_thirty_greys_are_refused_with_the_values_found(tmp_path: Path) -> None:
    message = r"hold 30 values, which are greys and not labels: 8, 16, 24, 32, 40, 48, 56, 64 \.\.\."
    with pytest.raises(SourceError, match=message):
        find_sources(write_pair(tmp_path, block(*range(8, 248, 8))))


@pytest.mark.parametrize("values", [(85, 170, 255), (1, 2, 3), tuple(range(1, 31))])
def test_label_numbers_stay_labels(values: tuple[int, ...], tmp_path: Path) -> None:
    (source,) = find_sources(write_pair(tmp_path, block(*values)))
    assert list(source.labels) == list(values)
