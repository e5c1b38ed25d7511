from __future__ import annotations

import gzip
import json
import logging
import math
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hssl.config import AggregateConfig
from hssl.errors import ConfigError, HsslError, RunError, SourceError, StoreError
from hssl.files import locked
from hssl.metrics import IGNORE
from hssl.sources import find_sources
from hssl.sources.base import Case
from hssl.store import aggregate, aggregate_sources, transaction
from hssl.store.assign import _one_subject_each
from hssl.store.splits import Split
from hssl.store.store import file_hash

MakeTask = Callable[..., Path]


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and hash of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, file_hash(path)) for path in files}


def edit(folder: Path, case: str, change: Callable[[np.ndarray], np.ndarray], part: str = "imagesTr") -> None:
    path = folder / part / f"{case}.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_a_store_holds_every_case_prepared(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(ids=("a", "b", "c"), unlabelled=("u",))
    store = aggregate([folder], tmp_path / "store", config=AggregateConfig(workers=2))
    assert [case.id for case in store.cases()] == ["a", "b", "c", "u"]
    info = store.tasks["Blobs"]
    assert (info.modality, info.layout, info.classes) == ("MRI", "msd", 3)
    assert info.labels == {1: "rim", 2: "core"}
    for case, raw in zip(store.cases("Blobs"), find_sources(folder)[0].cases(), strict=True):
        pixels = raw.read_image()
        expected = info.preprocessing.prepare_image(pixels, raw.read_geometry())
        image = store.image(case)
        assert isinstance(image, np.memmap)
        assert image.dtype == np.float16
        assert image.shape == case.shape == (6, 10, 12)
        np.testing.assert_array_equal(image, expected.astype(np.float16))
        assert case.intensity == info.preprocessing.intensity_range(pixels)
        np.testing.assert_array_equal(case.geometry.affine, raw.read_geometry().affine)
        assert case.image_sha256 == file_hash(raw.image_path)
        if raw.read_label is None:
            assert case.label_voxels is None
            with pytest.raises(StoreError, match="no mask"):
                store.label(case)
        else:
            mask = raw.read_label()
            assert store.label(case).dtype == np.uint8
            np.testing.assert_array_equal(store.label(case), info.preprocessing.prepare_label(mask, case.geometry))
            assert case.label_voxels == {value: (mask == value).sum() for value in (1, 2) if (mask == value).any()}
    store.verify()
    assert list(tmp_path.glob(".*")) == []


def test_one_worker_and_many_write_the_same(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    one = aggregate([folder], tmp_path / "one", config=AggregateConfig(workers=1))
    many = aggregate([folder], tmp_path / "many", config=AggregateConfig(workers=4))
    assert one.hash == many.hash


def test_a_split_of_ones_own_holds_for_every_channel(make_task: MakeTask, tmp_path: Path) -> None:
    folder = with_channels(make_task())
    config = AggregateConfig.checked({"splits": {"Blobs": {"val": ["b"], "test": ["d"]}}})
    store = aggregate([folder], tmp_path / "store", config=config)
    assert [store.split(task) for task in store.tasks] == [Split(train=["a", "c"], val=["b"], test=["d"])] * 2


def test_who_shows_the_same_image_is_one_subject_of_a_split_too(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(ids=("a", "b", "c", "d", "e"))
    for kind in ("imagesTr", "labelsTr"):
        shutil.copyfile(folder / kind / "a.nii.gz", folder / kind / "c.nii.gz")
    config = AggregateConfig.checked({"splits": {"Blobs": {"val": ["b"], "test": ["c", "a"]}}})
    store = aggregate([folder], tmp_path / "store", config=config)
    assert store.split("Blobs") == Split(train=["d", "e"], val=["b"], test=["a"])
    config = AggregateConfig.checked({"splits": {"Blobs": {"val": ["b"], "test": ["c"]}}})
    with pytest.raises(StoreError, match="'c' and 'a' of task 'Blobs' show the same image, and are in different parts"):
        aggregate([folder], tmp_path / "other", config=config)
    assert not (tmp_path / "other").exists()


def test_a_window_is_for_ct(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    window = AggregateConfig(window=(0, 200))
    with pytest.raises(StoreError, match=r"'Blobs' is MRI, and a window is in Hounsfield units"):
        aggregate([folder], tmp_path / "store", config=window)
    assert not (tmp_path / "store").exists()
    listing = json.loads((folder / "dataset.json").read_text())
    for number, modality in enumerate(("CT", "NCCT", "HRCT", "CTP", "micro-CT", "Computed Tomography", "")):
        (folder / "dataset.json").write_text(json.dumps({**listing, "modality": {"0": modality}}))
        store = aggregate([folder], tmp_path / f"store{number}", config=window)
        assert store.tasks["Blobs"].preprocessing.window == (0, 200)
    for modality in ("functional", "Optical coherence tomography"):
        (folder / "dataset.json").write_text(json.dumps({**listing, "modality": {"0": modality}}))
        with pytest.raises(StoreError, match=f"is {modality}"):
            aggregate([folder], tmp_path / "other", config=window)


@pytest.mark.parametrize(("modality", "offset", "told"), [("", 0, True), ("CT", 0, False), ("", -1000, False)])
def test_a_window_over_what_does_not_look_like_ct_is_told(
    modality: str,
    offset: float,
    told: bool,
    make_task: MakeTask,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = {
        case: np.linspace(low, 150, 720, dtype=np.float32).reshape(12, 10, 6) for case, low in (("a", 2), ("b", 5))
    }
    images["b"][:6] += offset
    folder = make_task(ids=("a", "b"), images=images)
    listing = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listing, "modality": {"0": modality}}))
    aggregate([folder], tmp_path / "store", config=AggregateConfig(window=(-160, 240)))
    assert ("'Blobs' does not say that it is CT, and its smallest value is 2 (" in caplog.text) == told


def test_a_split_of_ones_own(make_task: MakeTask, tmp_path: Path) -> None:
    sources = [make_task("First", unlabelled=("u",)), make_task("Second")]
    config = AggregateConfig.checked({"splits": {"First": {"val": ["c"], "test": ["a", "b"]}}})
    store = aggregate(sources, tmp_path / "store", config=config)
    assert store.split("First") == Split(train=["d", "u"], val=["c"], test=["a", "b"])
    assert store.split("Second") == aggregate(sources[1:], tmp_path / "random").split("Second")
    assert aggregate(sources, tmp_path / "store", config=config).hash == store.hash
    with pytest.raises(StoreError, match="other files or options"):
        aggregate(sources, tmp_path / "store", config=AggregateConfig())
    for given, message in (
        ({"Third": {}}, r"no folder is called 'Third' \(there are First, Second\)"),
        ({"First": {"test": ["a", "b", "c", "d"]}}, "'First' has no subject with a mask left to train"),
        ({"First": {"test": ["e"]}}, r"subject 'e' of task 'First' is not there \(subjects with masks: a, b, c, d\)"),
        ({"First": {"val": ["u"]}}, "subject 'u' of task 'First' has no mask"),
    ):
        with pytest.raises(StoreError, match=message):
            aggregate(sources, tmp_path / "other", config=AggregateConfig.checked({"splits": given}))
    with pytest.raises(ConfigError, match="subject 'a' is named twice"):
        AggregateConfig.checked({"splits": {"First": {"val": ["a"], "test": ["a"]}}})
    assert not (tmp_path / "other").exists()


def test_a_bad_case_leaves_the_split_too(make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_task()
    nan(folder)
    config = AggregateConfig.checked({"splits": {"Blobs": {"val": ["a"], "test": ["b", "c"]}}, "skip_bad": True})
    store = aggregate([folder], tmp_path / "store", config=config)
    assert store.split("Blobs") == Split(train=["d"], val=["a"], test=["c"])
    assert "subject 'b' of the split has no usable case" in caplog.text


def test_again_is_a_no_op(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    aggregate([folder], tmp_path / "store")
    before = contents(tmp_path / "store")
    aggregate([folder], tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_adding_a_source_leaves_the_others_alone(make_task: MakeTask, tmp_path: Path) -> None:
    first, second = make_task("First"), make_task("Second", seed=1)
    store = aggregate([first], tmp_path / "store")
    before, cases, split = contents(store.path), store.cases(), store.split("First")
    more = aggregate([first, second], tmp_path / "store")
    after = contents(store.path)
    assert {name: after[name] for name in before if name.endswith(".npy")} == {
        name: stamp for name, stamp in before.items() if name.endswith(".npy")
    }
    assert more.cases("First") == cases == more.cases()[: len(cases)]
    assert more.split("First") == split
    assert list(more.tasks) == ["First", "Second"]
    more.verify()
    at_once = aggregate([first, second], tmp_path / "other")
    assert at_once.hash == more.hash


def test_arrays_left_by_an_interrupted_run_are_replaced(make_task: MakeTask, tmp_path: Path) -> None:
    first, second = make_task("First"), make_task("Second", seed=1)
    aggregate([first], tmp_path / "store")
    (tmp_path / "store" / "images" / "Second").mkdir()
    (tmp_path / "store" / "images" / "Second" / "left.npy").write_bytes(b"half")
    (tmp_path / "store" / ".partial").mkdir()
    store = aggregate([second], tmp_path / "store")
    store.verify()
    assert not (store.path / "images" / "Second" / "left.npy").exists()
    assert not (store.path / ".partial").exists()
    (tmp_path / "killed" / ".partial" / "labels").mkdir(parents=True)
    (tmp_path / "killed" / "images" / "Gone").mkdir(parents=True)  # moved before the end came
    (tmp_path / "killed" / ".lock").touch()
    assert aggregate([second], tmp_path / "killed").tasks.keys() == {"Second"}
    assert not (tmp_path / "killed" / "images" / "Gone").exists()


def test_a_store_may_be_a_link_to_another_disk(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, which a mount point is, stays where it is: neither it nor a link to it is replaced."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "store").symlink_to(disk)
    inode = disk.stat().st_ino
    moves: list[tuple[Path, Path]] = []
    move = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moves.append((self, Path(to))), move(self, to))[1])
    for name in ("First", "Second"):
        aggregate([make_task(name, seed=len(name))], tmp_path / "store")
    assert (tmp_path / "store").is_symlink()
    assert disk.stat().st_ino == inode
    assert moves
    assert all(disk in path.parents for pair in moves for path in pair)


def test_what_two_commands_add_is_all_there(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (make_task(name, seed=seed) for seed, name in enumerate(("First", "Second", "Third")))
    aggregate([first], tmp_path / "store")
    module = sys.modules["hssl.store.aggregate"]  # the package has a function of that name
    listed, met = module._list_task, []

    def meanwhile(*arguments: Any) -> Any:
        """Another command comes and goes after this one has read the index."""
        if not met:
            met.append(True)
            aggregate([third], tmp_path / "store")
        return listed(*arguments)

    monkeypatch.setattr(module, "_list_task", meanwhile)
    assert aggregate([second], tmp_path / "store").tasks.keys() == {"First", "Second", "Third"}
    with locked(tmp_path / "store", "hssl aggregate"), pytest.raises(RunError, match="another hssl aggregate"):
        aggregate([make_task("Fourth")], tmp_path / "store")
    assert aggregate([first], tmp_path / "store").tasks.keys() == {"First", "Second", "Third"}


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_spacing_in_another_unit_is_named(factor: float, make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    for part in ("imagesTr", "labelsTr"):
        path = folder / part / "b.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([factor] * 3 + [1])), path)
    message = rf"b\.nii\.gz: has pixels of {factor:g} x {factor:g} mm where the task has 1 x 1 \("
    with pytest.raises(StoreError, match=message):
        aggregate([folder], tmp_path / "store")
    store = aggregate([folder], tmp_path / "store", config=AggregateConfig(skip_bad=True))
    assert [case.id for case in store.cases()] == ["a", "c", "d"]
    assert store.tasks["Blobs"].preprocessing.spacing == (1.0, 1.0)


def test_a_spacing_of_ones_own_may_be_far_from_that_of_the_files(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(shape=(120, 100, 3))
    store = aggregate([folder], tmp_path / "store", config=AggregateConfig(spacing=(9.0, 9.0)))
    assert store.cases()[0].shape == (3, 11, 13)
    with pytest.raises(StoreError, match=r"1 x 1 mm where the task has 0\.1 x 0\.1 \(the first of 4"):
        aggregate([folder], tmp_path / "huge", config=AggregateConfig(spacing=(0.1, 0.1)))


def test_a_failure_while_writing_leaves_nothing(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_task()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((np, "save"), (transaction, "_write_index")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(ConfigError, match=r"store: cannot be written: No space left .* \(free some space"):
                aggregate([folder], tmp_path / "store")
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_store_that_does_not_fit_on_its_disk_is_refused_before_the_work(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_task()
    store = aggregate([folder], tmp_path / "store")
    needed = sum(math.prod(case.shape) * (3 if case.has_label else 2) for case in store.cases())
    free = {"bytes": needed}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
    aggregate([folder], tmp_path / "fits")
    free["bytes"] -= 1
    monkeypatch.setattr(sys.modules["hssl.store.aggregate"], "convert_case", None)
    with pytest.raises(StoreError, match=r"not: needs [\d.]+ kB, and [\d.]+ kB are free on its disk \(free some space"):
        aggregate([folder], tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_many_copies_of_one_image_are_found_at_once(
    make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten thousand pairs took 40 s while each was compared with all subjects."""
    (case, *_) = aggregate([make_task()], tmp_path / "store").cases()
    records = [
        case.model_copy(update={"id": f"c{n}", "subject": f"s{n}", "stored_image_sha256": str(n // 2)})
        for n in range(20_000)
    ]
    caplog.set_level(logging.ERROR, logger="hssl")
    began = time.process_time()
    kept, lines = _one_subject_each(records)
    assert time.process_time() - began < 5
    assert [record.subject for record in kept] == [f"s{n // 2 * 2}" for n in range(20_000)]
    assert len(lines) == 10_000


def test_a_changed_source_is_told_from_the_stored_one(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    aggregate([folder], tmp_path / "store")
    with pytest.raises(StoreError, match=r"other files or options.*new store"):
        aggregate([folder], tmp_path / "store", config=AggregateConfig(spacing=(2.0, 2.0)))
    edit(folder, "a", lambda image: image + 1)
    with pytest.raises(StoreError, match=r"changed since.*new store"):
        aggregate([folder], tmp_path / "store")


def test_a_store_keeps_its_split_options(make_task: MakeTask, tmp_path: Path) -> None:
    aggregate([make_task("First")], tmp_path / "store")
    with pytest.raises(StoreError, match="seed 0"):
        aggregate([make_task("Second")], tmp_path / "store", config=AggregateConfig(seed=1))


def test_other_folders_are_not_overwritten(make_task: MakeTask, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not a store"):
        aggregate([make_task()], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    aggregate([tmp_path / "raw" / "Blobs"], tmp_path / "empty").verify()


def truncate(folder: Path) -> None:
    path = folder / "imagesTr" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def nan(folder: Path) -> None:
    edit(folder, "b", lambda image: np.where(np.arange(image.size).reshape(image.shape) == 5, np.nan, image))


def another_shape(folder: Path) -> None:
    edit(folder, "b", lambda mask: mask[:-1], "labelsTr")


def unknown_label(folder: Path) -> None:
    edit(folder, "b", lambda mask: np.where(mask == 2, 9, mask), "labelsTr")


def no_slices(folder: Path) -> None:
    path = folder / "imagesTr" / "b.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[46:48] = (0).to_bytes(2, "little")  # dim[3]
    path.write_bytes(gzip.compress(bytes(header)))


def constant(folder: Path) -> None:
    edit(folder, "b", lambda image: np.full_like(image, 7))


def elsewhere(folder: Path) -> None:
    path = folder / "labelsTr" / "b.nii.gz"
    mask = nib.load(path)
    moved = mask.affine.copy()
    moved[0, 3] += 4
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), path)


def four_dimensions(folder: Path) -> None:
    edit(folder, "b", lambda image: np.stack([image, image], -1))


def twice(folder: Path) -> None:
    listing = json.loads((folder / "dataset.json").read_text())
    listing["training"].append(listing["training"][1])
    (folder / "dataset.json").write_text(json.dumps(listing))


BAD = {
    truncate: ("imagesTr/b.nii.gz", "truncated"),
    nan: ("imagesTr/b.nii.gz", "NaN"),
    another_shape: ("labelsTr/b.nii.gz", "the mask has the shape (11, 10, 6), its image (12, 10, 6)"),
    unknown_label: ("labelsTr/b.nii.gz", "label 9 is not in the list of labels [1, 2]"),
    no_slices: ("imagesTr/b.nii.gz", "shape"),
    constant: ("imagesTr/b.nii.gz", "no contrast"),
    elsewhere: ("labelsTr/b.nii.gz", "4.0 voxels away"),
    four_dimensions: ("imagesTr/b.nii.gz", "channels"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_case_is_named_and_nothing_is_written_or_it_is_skipped(
    spoil: Callable[[Path], None], make_task: MakeTask, tmp_path: Path
) -> None:
    folder = make_task()
    spoil(folder)
    file, reason = BAD[spoil]
    with pytest.raises(HsslError) as caught:
        aggregate([folder], tmp_path / "store")
    message = str(caught.value)
    assert file in message
    assert reason in message
    assert "1 bad case" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]

    store = aggregate([folder], tmp_path / "store", config=AggregateConfig(skip_bad=True))
    assert [case.id for case in store.cases()] == ["a", "c", "d"]
    (line,) = store.tasks["Blobs"].skipped
    assert line.startswith("b: ")
    assert reason in line
    assert sorted(path.name for path in (store.path / "images" / "Blobs").iterdir()) == [
        "a.npy",
        "c.npy",
        "d.npy",
    ]
    assert not (store.path / "labels" / "Blobs" / "b.npy").exists()
    store.verify()


def test_every_bad_case_is_logged(make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_task()
    nan(folder)
    edit(folder, "d", lambda image: np.zeros_like(image))
    with caplog.at_level(logging.ERROR), pytest.raises(StoreError, match="first of 2 bad cases"):
        aggregate([folder], tmp_path / "store")
    assert "imagesTr/b.nii.gz" in caplog.text
    assert "imagesTr/d.nii.gz" in caplog.text


def test_a_source_is_the_same_however_its_path_is_spelled(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    (tmp_path / "link").symlink_to(folder)
    for number, spelled in enumerate((folder, folder.parent / "x" / ".." / folder.name, tmp_path / "link")):
        (folder.parent / "x").mkdir(exist_ok=True)
        store = aggregate([spelled], tmp_path / str(number))
        assert {info.origin for info in store.tasks.values()} == {str(folder.resolve())}


def test_a_split_is_the_same_however_a_path_is_spelled(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(ids=tuple("abcdefghij"))
    (tmp_path / "link").symlink_to(folder)
    (folder / "x").mkdir()
    paths = (folder, tmp_path / "link", folder / "x" / "..")
    stores = [aggregate(path, tmp_path / str(number)) for number, path in enumerate(paths)]
    assert len({store.split("Blobs").model_dump_json() for store in stores}) == 1


def test_a_single_bad_case_is_told_once(make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_task()
    nan(folder)
    with caplog.at_level(logging.ERROR), pytest.raises(StoreError, match=r"NaN.*1 bad case"):
        aggregate([folder], tmp_path / "store")
    assert not caplog.records


def test_another_split_of_what_is_stored_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    aggregate([folder], tmp_path / "store")
    with pytest.raises(StoreError, match="is split with seed 0"):
        aggregate([folder], tmp_path / "store", config=AggregateConfig(seed=3))


@pytest.mark.parametrize(("ids", "lacking"), [("a", "val or test"), ("ab", "val")])
def test_a_part_without_anyone_is_told(
    ids: str, lacking: str, make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        aggregate([make_task(ids=tuple(ids))], tmp_path / "store")
    assert f"none of its {len(ids)} subjects with masks is in {lacking} (" in caplog.text


def test_patients_given_one_by_one_make_no_tasks(make_task: MakeTask, tmp_path: Path) -> None:
    image = next((make_task() / "imagesTr").iterdir())
    folders = [tmp_path / patient for patient in "xyz"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(image, folder / "t1.nii.gz")
    with pytest.raises(SourceError, match="3 folders with files of the same names"):
        aggregate(folders, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_one_folder_may_be_given_as_text(make_task: MakeTask, tmp_path: Path) -> None:
    assert len(aggregate(str(make_task()), tmp_path / "store").cases()) == 4


def test_a_case_listed_twice_is_left_out_and_the_first_stays(make_task: MakeTask, tmp_path: Path) -> None:
    source = CountingSource(make_task(), twice=True)
    with pytest.raises(StoreError, match="a second case is called 'a'"):
        aggregate_sources([source], tmp_path / "store", config=AggregateConfig())
    store = aggregate_sources([source], tmp_path / "store", config=AggregateConfig(skip_bad=True))
    assert [case.id for case in store.cases()] == list("abcd")
    assert len(store.tasks["Blobs"].skipped) == 1
    store.verify()


def test_a_case_listed_twice_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    twice(folder)
    with pytest.raises(HsslError, match=r"\bb\b"):
        aggregate([folder], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_task_without_a_usable_case_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(ids=("b",))
    constant(folder)
    with pytest.raises(StoreError, match="no usable case"):
        aggregate([folder], tmp_path / "store", config=AggregateConfig(skip_bad=True))
    assert not (tmp_path / "store").exists()


def test_cases_with_the_same_image_are_one_subject(make_task: MakeTask, tmp_path: Path) -> None:
    ids = tuple("abcdefgh")
    image = np.random.default_rng(5).normal(size=(12, 10, 6)).astype(np.float32)
    store = aggregate([make_task(ids=ids, images={"c": image, "g": image})], tmp_path / "store")
    subjects = {case.id: case.subject for case in store.cases()}
    assert subjects["c"] == subjects["g"] == "c"
    assert store.tasks["Blobs"].duplicates == ["g shows the same image as c: one subject"]
    split = store.split("Blobs")
    assert sorted(split.train + split.val + split.test) == list("abcdefh")


@pytest.mark.parametrize("change", ["nothing", "packed"])
@pytest.mark.parametrize("together", [True, False])
def test_scans_that_two_folders_share_are_told(
    change: str,
    together: bool,
    make_task: MakeTask,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = make_task(ids=tuple("abcdef"))
    copy = tmp_path / "copy"
    shutil.copytree(first / "imagesTr", copy)
    if change == "packed":  # other bytes, the same voxels
        for path in copy.iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    options = AggregateConfig.checked({"splits": {"Blobs": {"val": ["b"], "test": ["d"]}}})
    if not together:
        aggregate([first], tmp_path / "store", config=options)
    store = aggregate([first, copy] if together else [copy], tmp_path / "store", config=options if together else None)
    assert (len(store.split("copy").train), store.split("Blobs").test) == (6, ["d"])
    (line,) = store.tasks["copy"].duplicates
    assert line.startswith("'copy' shares 6 scans with 'Blobs', and 2 of them are in another part of the split")
    assert line.endswith(": b (train here, val there), d (train here, test there)")
    assert caplog.text.count(line) == 1
    assert store.tasks["Blobs"].duplicates == []


def test_scans_in_the_same_part_of_two_folders_are_no_leak(
    make_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"val": ["b"], "test": ["d"]}
    folders = [make_task(), make_task("Other")]  # the same seed, the same scans
    options = AggregateConfig.checked({"splits": {"Blobs": part, "Other": part}})
    store = aggregate(folders, tmp_path / "store", config=options)
    assert store.tasks["Other"].duplicates == [
        "'Other' shares 4 scans with 'Blobs', each in the same part of the split"
    ]
    assert "shares" not in caplog.text


def test_the_subject_rule_keeps_frames_together(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(ids=tuple(f"p{number}x{frame}" for number in range(6) for frame in "12"))
    store = aggregate([folder], tmp_path / "store", config=AggregateConfig(subject=r"(p\d)x"))
    split = store.split("Blobs")
    assert sorted(split.train + split.val + split.test) == [f"p{number}" for number in range(6)]
    train, test = ({case.id[:2] for case in store.cases("Blobs", part=part)} for part in ("train", "test"))
    assert not train & test


def test_two_sources_of_one_name_are_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    with pytest.raises(StoreError, match="two sources are called 'Blobs'"):
        aggregate([folder, folder], tmp_path / "store")


def with_channels(folder: Path) -> Path:
    """Gives every image of a challenge a second channel."""
    for path in (folder / "imagesTr").iterdir():
        image = nib.load(path)
        pixels = np.asanyarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([pixels, pixels[::-1]], axis=-1), image.affine), path)
    listing = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listing, "modality": {"0": "T1", "1": "T2"}}))
    return folder


def test_channels_are_split_alike_where_one_lacks_a_subject(make_task: MakeTask, tmp_path: Path) -> None:
    folder = with_channels(make_task(ids=tuple("abcdefghijkl")))
    path = folder / "imagesTr" / "c.nii.gz"
    image = nib.load(path)
    pixels = np.asanyarray(image.dataobj).copy()
    pixels[..., 1] = 7  # no contrast
    nib.save(nib.Nifti1Image(pixels, image.affine), path)
    skipping = AggregateConfig(skip_bad=True)
    whole = aggregate([folder], tmp_path / "whole", config=skipping)
    aggregate([folder], tmp_path / "parts", config=AggregateConfig(channel=1, skip_bad=True))
    parts = aggregate([folder], tmp_path / "parts", config=AggregateConfig(channel=0, skip_bad=True))
    for store in (whole, parts):
        first, second = store.split("Blobs_T1"), store.split("Blobs_T2")
        assert sorted(first.train + first.val + first.test) == list("abcdefghijkl")
        for part in Split.model_fields:
            assert set(getattr(first, part)) - {"c"} == set(getattr(second, part))
    assert parts.split("Blobs_T1").train.count("c") == 1  # new beside a channel that is stored: it trains


def test_a_split_that_contradicts_a_stored_channel_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = with_channels(make_task())
    given = {"splits": {"Blobs": {"val": ["b"], "test": ["d"]}}}
    aggregate([folder], tmp_path / "store", config=AggregateConfig.checked({"channel": 0, **given}))
    other = {"channel": 1, "splits": {"Blobs": {"val": ["b"], "test": ["a"]}}}
    with pytest.raises(StoreError, match="'a' is in train in another channel of this folder"):
        aggregate([folder], tmp_path / "store", config=AggregateConfig.checked(other))
    store = aggregate([folder], tmp_path / "store", config=AggregateConfig.checked({"channel": 1, **given}))
    assert store.split("Blobs_T1") == store.split("Blobs_T2")


def test_the_same_image_in_one_channel_makes_one_subject_of_all(make_task: MakeTask, tmp_path: Path) -> None:
    folder = with_channels(make_task(ids=tuple("abcdefgh")))
    twin, other = (nib.load(folder / "imagesTr" / f"{case}.nii.gz") for case in "ac")
    pixels = np.stack([np.asanyarray(twin.dataobj)[..., 0], np.asanyarray(other.dataobj)[..., 1]], axis=-1)
    nib.save(nib.Nifti1Image(pixels, other.affine), folder / "imagesTr" / "c.nii.gz")
    store = aggregate([folder], tmp_path / "store")
    for task in store.tasks:
        assert {case.subject for case in store.cases(task) if case.id in "ac"} == {"a"}
    assert [info.duplicates for info in store.tasks.values()] == [["c shows the same image as a: one subject"], []]
    assert store.split("Blobs_T1") == store.split("Blobs_T2")


@pytest.mark.parametrize("value", [256, -1])
def test_labels_that_a_store_cannot_hold_are_refused(value: int, make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    listing = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listing, "labels": {"background": 0, "rim": value}}))
    with pytest.raises(StoreError, match=f"label {value} of 'Blobs' is not from 1 to 255"):
        aggregate([folder], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_channels_of_one_folder_are_split_alike(make_task: MakeTask, tmp_path: Path) -> None:
    store = aggregate([with_channels(make_task())], tmp_path / "store")
    first, second = store.tasks
    assert store.split(first) == store.split(second)
    assert store.siblings(first) == store.siblings(second) == [first, second]
    assert [info.channel for info in store.tasks.values()] == [0, 1]


@dataclass
class CountingSource:
    """A source that counts how many of its images are alive, and may list its first case twice."""

    folder: Path
    twice: bool = False
    alive: set[int] = field(default_factory=set)
    most: int = 0
    task = "Blobs"
    layout = "msd"
    modality = "MRI"
    channel = None

    @property
    def path(self) -> Path:
        return self.folder

    @property
    def labels(self) -> dict[int, str]:
        return {1: "rim", 2: "core"}

    def cases(self) -> Iterator[Case]:
        cases = list(find_sources(self.folder)[0].cases())
        for case in [*cases, *cases[: int(self.twice)]]:
            yield replace(case, read_image=lambda case=case: self._counted(case.read_image()))

    def _counted(self, image: np.ndarray) -> np.ndarray:
        self.alive.add(id(image))
        weakref.finalize(image, self.alive.discard, id(image))
        self.most = max(self.most, len(self.alive))
        return image


def test_no_more_images_are_held_than_there_are_workers(make_task: MakeTask, tmp_path: Path) -> None:
    source = CountingSource(make_task(ids=tuple(f"c{number:02d}" for number in range(24))))
    store = aggregate_sources([source], tmp_path / "store", config=AggregateConfig(workers=2))
    assert len(store.cases()) == 24
    assert 1 <= source.most <= 2


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="orientation"):
        AggregateConfig.checked({"orientation": "PLR"})
    with pytest.raises(ConfigError, match="add up to 1"):
        AggregateConfig.checked({"fractions": (0.5, 0.2, 0.2)})
    assert AggregateConfig(orientation="IPL").orientation == "IPL"


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        aggregate([tmp_path / "nowhere"], tmp_path / "store")


def test_torch_keeps_its_threads(make_task: MakeTask, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    aggregate([make_task()], tmp_path / "store")
    assert torch.get_num_threads() == before


def test_permissions_follow_the_umask(make_task: MakeTask, tmp_path: Path) -> None:
    store = aggregate([make_task()], tmp_path / "store")
    umask = os.umask(0)
    os.umask(umask)
    assert store.path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_real_cases(real_data: Path, tmp_path: Path) -> None:
    store = aggregate([real_data / "Task04_Abdomen"], tmp_path / "store")
    assert len(store.cases()) == 18
    assert store.tasks["Task04_Abdomen"].preprocessing.orientation == "PLS"
    assert sum(case.shape[0] for case in store.cases()) == 2211
    store.verify()


def test_what_nobody_has_drawn_is_known_by_the_name_ignore(make_task: MakeTask, tmp_path: Path) -> None:
    partly = np.full((12, 10, 6), 3, np.uint8)
    partly[2:5, 2:5, 2] = 1
    folder = make_task(labels={"a": partly})
    listing = json.loads((folder / "dataset.json").read_text())
    listing["labels"]["3"] = "ignore"
    (folder / "dataset.json").write_text(json.dumps(listing))
    store = aggregate(folder, tmp_path / "store")
    task = store.tasks["Blobs"]
    assert (task.labels, task.ignore, task.classes) == ({1: "rim", 2: "core"}, 3, 3)
    case = store.cases("Blobs")[0]
    assert case.label_voxels == {1: 9}
    channels = task.to_channels(store.label(case))
    assert np.count_nonzero(channels == IGNORE) == partly.size - 9
    assert np.count_nonzero(channels == 1) == 9


def test_a_name_that_is_not_utf_8_is_a_bad_case(make_task: MakeTask, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    task = make_task(ids=tuple("abcde"))
    for case in "abcde":
        shutil.copy(task / "imagesTr" / f"{case}.nii.gz", folder)
    try:
        (folder / "c.nii.gz").rename(folder / os.fsdecode(b"c\xff.nii.gz"))
    except OSError:
        pytest.skip("this disk takes names in UTF-8 alone")
    with pytest.raises(StoreError, match=r"c\\udcff\.nii\.gz: the name is not UTF-8"):
        aggregate(folder, tmp_path / "store")
    store = aggregate(folder, tmp_path / "store", config=AggregateConfig(skip_bad=True))
    assert [case.id for case in store.cases()] == ["a", "b", "d", "e"]


def test_keywords_go_over_a_configuration(make_task: MakeTask, tmp_path: Path) -> None:
    base = AggregateConfig(seed=3, workers=1)
    store = aggregate(make_task(), tmp_path / "store", config=base, task="Mine", spacing=(2, 2))
    assert list(store.tasks) == ["Mine"]
    assert store.tasks["Mine"].preprocessing.spacing == (2, 2)
    assert store.splits.seed == 3
    with pytest.raises(ConfigError, match=r"no option 'spacings'; did you mean 'spacing'\?"):
        aggregate(tmp_path / "raw" / "Blobs", tmp_path / "other", spacings=(2, 2))
