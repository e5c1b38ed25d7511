from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hssl.errors import ConfigError, SourceError
from hssl.phantoms import PHANTOMS, write_phantoms
from hssl.phantoms.anatomy import smooth_field
from hssl.sources import Case, find_sources


def centre(case: Case, label: int) -> np.ndarray:
    """Mean position of a label in world coordinates, mm, RAS."""
    assert case.read_label is not None
    voxels = np.argwhere(case.read_label() == label)
    return nib.affines.apply_affine(case.read_geometry().affine, voxels).mean(axis=0)


def cases_of(root: Path, task: str) -> list[Case]:
    (source,) = (source for source in find_sources(root) if source.task == task)
    return list(source.cases())


def test_at_least_five_domains_that_differ(phantom_root: Path) -> None:
    sources = find_sources(phantom_root)
    assert [source.task for source in sources] == sorted(PHANTOMS)
    assert len(sources) >= 5
    assert {source.layout for source in sources} == {"msd"}
    assert len({source.modality for source in sources}) == len(sources)
    geometries = [next(source.cases()).read_geometry() for source in sources]
    assert len({geometry.orientation for geometry in geometries}) >= 3
    assert sum(max(geometry.spacing) > 1.4 * min(geometry.spacing) for geometry in geometries) >= 2


@pytest.mark.parametrize("task", PHANTOMS)
def test_every_case_is_whole_and_every_label_is_there(task: str, phantom_root: Path) -> None:
    (source,) = (source for source in find_sources(phantom_root) if source.task == task)
    found: set[int] = set()
    for case in source.cases():
        assert case.read_label is not None
        image, label = case.read_image(), case.read_label()
        assert image.shape == label.shape == case.read_geometry().shape
        assert max(image.shape) == 32
        assert np.isfinite(image).all()
        assert image.std() > 0
        assert label.any()
        found |= set(np.unique(label).tolist())
    assert found == {0, *source.labels}


def test_one_seed_gives_the_same_files_and_another_does_not(tmp_path: Path, phantom_root: Path) -> None:
    write_phantoms(tmp_path / "again", seed=0, subjects=4, size=32, slices=6)
    write_phantoms(tmp_path / "other", seed=1, subjects=4, size=32, slices=6)
    names = [path.relative_to(phantom_root) for path in sorted(phantom_root.rglob("*.nii.gz"))]
    assert names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (phantom_root / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (phantom_root / name).read_bytes()


def test_a_smaller_set_is_part_of_a_larger_one(tmp_path: Path, phantom_root: Path) -> None:
    (folder,) = write_phantoms(tmp_path, subjects=2, tasks=["Task04_SpineMR"], size=32, slices=6)
    files = sorted(folder.rglob("*.nii.gz"))
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (phantom_root / path.relative_to(tmp_path)).read_bytes()


def test_subjects_differ(phantom_root: Path) -> None:
    for source in find_sources(phantom_root):
        images = [case.read_image() for case in source.cases()]
        for index, image in enumerate(images[1:]):
            assert image.shape != images[index].shape or not np.array_equal(image, images[index])


def test_the_frames_of_a_heart_are_one_subject_at_two_sizes(phantom_root: Path) -> None:
    cases = cases_of(phantom_root, "Task02_HeartMR")
    assert len(cases) == 8
    assert len({case.subject for case in cases}) == 4
    for rest, contracted in zip(cases[::2], cases[1::2], strict=True):
        assert rest.subject == contracted.subject
        np.testing.assert_array_equal(rest.read_geometry().affine, contracted.read_geometry().affine)
        assert rest.read_label is not None
        assert contracted.read_label is not None
        assert (contracted.read_label() == 3).sum() < (rest.read_label() == 3).sum()


def test_organs_lie_where_they_belong_whatever_the_orientation(phantom_root: Path) -> None:
    right, front = 0, 1
    for case in cases_of(phantom_root, "Task01_AbdomenCT"):
        assert centre(case, 1)[right] > centre(case, 2)[right]  # liver, spleen
        assert centre(case, 4)[right] > centre(case, 3)[right]  # right and left kidney
    hearts = cases_of(phantom_root, "Task02_HeartMR")
    for case in hearts:
        assert centre(case, 1)[right] > centre(case, 3)[right]  # right and left ventricle
    spines = cases_of(phantom_root, "Task04_SpineMR")
    for case in spines:
        assert centre(case, 1)[front] > centre(case, 2)[front]  # body, canal
    assert len({case.read_geometry().orientation for case in hearts}) == 2
    assert len({case.read_geometry().orientation for case in spines}) == 2


def test_ct_is_in_hounsfield_units(phantom_root: Path) -> None:
    for case in cases_of(phantom_root, "Task01_AbdomenCT"):
        assert case.read_label is not None
        image = case.read_image()
        assert image.min() < -950
        assert 20 < np.median(image[case.read_label() == 1]) < 140


def test_written_again_they_are_left_as_they_are(tmp_path: Path) -> None:
    options = {"subjects": 1, "tasks": ["Task05_ChestXray"], "size": 16, "slices": 3}
    (folder,) = write_phantoms(tmp_path, **options)
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert write_phantoms(tmp_path, **options) == [folder]
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    assert len(json.loads((folder / "dataset.json").read_text())["training"]) == 4
    with pytest.raises(SourceError, match="holds something else"):
        write_phantoms(tmp_path, **options | {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["Task05_ChestXray"]
    shutil.rmtree(folder / "labelsTr")
    with pytest.raises(SourceError, match="no such file"):
        list(find_sources(tmp_path)[0].cases())


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no phantom 'Task99'"):
        write_phantoms(tmp_path, tasks=["Task99"])
    with pytest.raises(ConfigError, match="at least 1 subject"):
        write_phantoms(tmp_path, subjects=0)
    assert list(tmp_path.iterdir()) == []


def test_a_smooth_field_is_standard_and_smooth() -> None:
    field = smooth_field(np.random.default_rng(0), (64, 48, 9), (16, 16, 4))
    assert field.shape == (64, 48, 9)
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.15
    assert abs(field.std() - 1) < 0.15
    assert np.abs(np.diff(field, axis=0)).mean() < 0.4  # 1.1 if every voxel were drawn by itself
