from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hssl.errors import HsslError, StoreError
from hssl.palette import label_colours
from hssl.store import Store, aggregate, contact_sheet, summarise, summary_table
from hssl.store.store import array_path
from hssl.store.summary import telling_slices

MakeTask = Callable[..., Path]


@pytest.fixture
def store(make_task: MakeTask, tmp_path: Path) -> Store:
    ids = tuple(f"s{number}" for number in range(8))
    aggregate([make_task(ids=ids, unlabelled=("u0", "u1"))], tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_cases_can_be_chosen(store: Store) -> None:
    assert len(store.cases()) == len(store.cases("Blobs")) == 10
    assert [case.id for case in store.cases("Blobs", subjects=["u1", "s3"])] == ["s3", "u1"]
    with pytest.raises(StoreError, match=r"no task 'Heart'.*it has Blobs"):
        store.cases("Heart")


def test_labelled_subjects_train_and_have_masks(store: Store) -> None:
    train = set(store.split("Blobs").train)
    assert {"u0", "u1"} < train
    everybody = store.labelled("Blobs", "100%", seed=0)
    assert set(everybody) == train - {"u0", "u1"}
    assert store.labelled("Blobs", "5%", seed=0) == everybody[:1]
    with pytest.raises(StoreError, match="u0"):
        store.labelled("Blobs", ["u0"])
    with pytest.raises(StoreError, match=store.split("Blobs").test[0]):
        store.labelled("Blobs", store.split("Blobs").test[:1])


def test_what_is_no_store_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="hssl aggregate"):
        Store.open(tmp_path)
    (store.path / "splits.json").write_text("{}")
    with pytest.raises(StoreError, match=r"splits.json: is damaged"):
        Store.open(store.path)
    index = json.loads((store.path / "index.json").read_text())
    (store.path / "index.json").write_text(json.dumps(index | {"format": 1}))
    with pytest.raises(StoreError, match=r"store: was made by another version of hssl \(format 1, this one reads 2\)"):
        Store.open(store.path)


def test_verify_finds_a_changed_or_missing_array(store: Store) -> None:
    store.verify()
    path = store.path / "labels" / "Blobs" / "s3.npy"
    array = np.load(path)
    array[0, 0, 0] ^= 1
    np.save(path, array)
    with pytest.raises(StoreError, match=r"s3.npy: has changed"):
        store.verify()
    path.unlink()
    with pytest.raises(StoreError, match=r"s3.npy: cannot be read"):
        store.verify()
    (record,) = store.cases(subjects=["s3"])
    with pytest.raises(StoreError, match=r"s3.npy: cannot be read"):
        store.label(record)


def test_a_slice_read_by_itself_is_that_of_the_volume(store: Store) -> None:
    record = next(case for case in store.cases() if case.has_label)
    for index in range(record.shape[0]):
        np.testing.assert_array_equal(store.image_slice(record, index), store.image(record)[index])
        np.testing.assert_array_equal(store.label_slice(record, index), store.label(record)[index])
    assert store.image_slice(record, 0).dtype == np.float16
    for outside in (-1, record.shape[0]):
        with pytest.raises(IndexError):
            store.image_slice(record, outside)


def test_a_slice_of_a_damaged_file_is_refused(store: Store) -> None:
    record = store.cases()[0]
    path = array_path(store.path, "images", record.task, record.id)
    whole = path.read_bytes()
    for damaged in (whole[:-64], whole + b"\0" * 64, b"\0" * len(whole), b""):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged"):
            store.image_slice(record, 0)
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.image_slice(record, 0)


def test_the_hash_follows_the_data_and_not_the_place(store: Store, make_task: MakeTask, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "raw" / "Blobs", copied / "Blobs")
    assert aggregate([copied / "Blobs"], tmp_path / "copy").hash == store.hash
    other = aggregate([make_task("Other", seed=9)], tmp_path / "other")
    assert other.hash != store.hash
    assert other.split_hash != store.split_hash


def test_the_raw_case_can_be_read_again(store: Store, tmp_path: Path) -> None:
    record = store.cases()[0]
    case = store.source_case(record)
    assert case.id == record.id
    assert str(case.image_path) == record.image_path
    np.testing.assert_array_equal(case.read_geometry().affine, record.geometry.affine)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(HsslError, match="Blobs"):
        Store.open(store.path).source_case(record)


def test_summary(store: Store) -> None:
    (row,) = summarise(store)
    assert (row.cases, row.masks, row.subjects, row.slices) == (10, 8, 10, 60)
    assert row.shape == (6, 10, 12)
    assert row.spacing == (3, 1, 1)
    assert sum(row.split) == 10
    volumes = [np.count_nonzero(store.label(case) == 1) * 3 / 1000 for case in store.cases() if case.has_label]
    assert row.labels[1].cases == 8
    assert row.labels[1].volume_ml == pytest.approx(np.median(volumes))


def test_the_summary_fits_a_terminal_of_80_columns(store: Store) -> None:
    info = store.tasks["Blobs"]
    long = {1: "left_ventricle_of_the_heart_and_all_that_lies_within_it_as_one_segment_of_four", 2: "core"}
    info = info.model_copy(update={"skipped": ["x: no contrast"], "labels": long})
    store.index.tasks["Blobs"] = info
    console = Console(width=80)
    with console.capture() as captured:
        console.print(summary_table(store))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    row = summarise(store)[0]
    train, val, test = row.split
    lines = [line.rstrip() for line in lines]
    assert lines[lines.index("Blobs  MRI") :][:5] == [
        "Blobs  MRI",
        f"  10 cases (8 with masks) of 10 subjects: {train} train, {val} validate, {test} test",
        "  60 slices; median case 10 x 12 pixels of 1 x 1 mm, 6 slices 3 mm apart",
        f"  intensities {row.intensity[0]:.3g} to {row.intensity[1]:.3g} are stored as 0 to 1",
        "  note: the headers give no reliable directions: compare the letters with the",
    ]
    assert "  left out: x: no contrast" in lines
    assert lines[-1].split() == ["core", "8", f"{row.labels[2].volume_ml:.3g}"]


def test_a_radiograph_has_no_volume_and_its_letters_are_doubted(make_task: MakeTask, tmp_path: Path) -> None:
    store = aggregate(make_task(shape=(12, 10, 1)), tmp_path / "flat")
    (row,) = summarise(store)
    assert [(label.cases, label.volume_ml) for label in row.labels.values()] == [(4, None), (4, None)]
    assert row.doubts[0].startswith("one slice a case")
    console = Console(width=80)
    with console.capture() as captured:
        console.print(summary_table(store))
    assert "ml" not in captured.get().split("stored as 0 to 1")[1].replace("compare", "")


def test_lost_directions_are_told_from_those_of_a_scanner(make_task: MakeTask, tmp_path: Path) -> None:
    """Straight axes from 0 or around the middle are what converters write that know nothing."""
    middle = np.diag([1.0, 1, 3, 1])
    middle[:3, 3] = -5.5, -4.5, -7.5
    scanner = middle.copy()
    scanner[:3, 3] = -80.2, 31.7, -412.0
    tilted = np.diag([1.0, 1, 3, 1])
    tilted[0, 1], tilted[1, 0] = 0.01, -0.01
    for name, affine, doubts in (("middle", middle, 1), ("scanner", scanner, 0), ("tilted", tilted, 0)):
        store = aggregate(make_task(name, affine=affine), tmp_path / f"store-{name}")
        assert len(summarise(store)[0].doubts) == doubts


def test_a_summary_takes_less_than_five_milliseconds_a_case(store: Store) -> None:
    cases = [case.model_copy(update={"id": f"{case.id}-{n}"}) for n in range(20) for case in store.index.cases]
    large = Store(store.path, store.index.model_copy(update={"cases": cases}), store.splits)
    start = time.process_time()
    assert summarise(large)[0].cases == 200
    assert time.process_time() - start < 0.005 * 200


def test_the_sheet_shows_every_label_at_least_once(make_task: MakeTask, tmp_path: Path) -> None:
    """Label 2 is in one small corner of one case that an even choice passes over."""
    labels = {case: np.zeros((12, 10, 6), np.uint8) for case in "abcdefgh"}
    for mask in labels.values():
        mask[2:8, 2:8, 3] = 1
    labels["c"][10, 9, 5] = 2
    store = aggregate(make_task(ids=tuple(labels), labels=labels), tmp_path / "rare")
    for count in (1, 2, 3):
        chosen = telling_slices(store, "Blobs", count)
        assert len(chosen) == count
        assert ("c", 5) in {(case.id, number) for case, number in chosen}
    assert {number for case, number in telling_slices(store, "Blobs", 3) if case.id != "c"} == {3}


def test_contact_sheet(store: Store, tmp_path: Path) -> None:
    path = contact_sheet(store, tmp_path / "sheet.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > pixels.shape[0]
    colours = [tuple(int(text[at : at + 2], 16) for at in (1, 3, 5)) for text in label_colours([1, 2]).values()]
    legend = pixels[:, -pixels.shape[1] // 8 :]
    for colour in colours:
        assert (legend == colour).all(axis=-1).any()  # what the contours are, at the end of each row
        assert (np.abs(pixels[:, : -pixels.shape[1] // 8] - colour).max(axis=-1) < 40).any()  # and the contours
    assert list(tmp_path.glob(".sheet*")) == []


# Damage ---------------------------------------------------------------------------------------------------------


def test_a_whole_store_passes_its_checks(store: Store) -> None:
    store.check()
    store.verify()


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-200], "bytes, not"),
        (lambda content: content + b"\0" * 2000, "bytes, not"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "has changed"),
        (lambda content: bytes(content[:128]) + bytes(len(content) - 128), "has changed"),
    ],
)
def test_a_damaged_array_is_named_before_it_is_used(
    store: Store, kind: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    record = next(case for case in store.cases() if case.has_label)
    path = array_path(store.path, kind, record.task, record.id)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=message) as raised:
        store.check()
    assert raised.value.path == path
    store.check(tasks=set(store.tasks) - {record.task})
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        store.check(tasks=[record.task])


def test_the_checksum_of_a_part_is_no_part_of_the_hash(store: Store) -> None:
    cases = [case.model_copy(update={"stored_image_sample": None}) for case in store.index.cases]
    other = Store(store.path, store.index.model_copy(update={"cases": cases}), store.splits)
    assert other.hash == store.hash
    other.check()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_slice_that_is_not_finite_is_named(store: Store, value: float) -> None:
    record = store.cases()[0]
    image = np.array(store.image(record))
    image[1, 3, 3] = value
    np.save(array_path(store.path, "images", record.task, record.id), image)
    np.testing.assert_array_equal(store.image_slice(record, 0), image[0])
    with pytest.raises(StoreError, match=rf"case '{record.id}' holds NaN or infinity in slice 1"):
        store.image_slice(record, 1)


def test_a_store_says_what_it_holds(make_store):
    store = make_store({"A": 5, "B": 4}, unlabelled={"B": (0, 1)})
    assert repr(store).splitlines() == [
        f"Store('{store.path}'): 2 tasks, 9 cases",
        "  A (MRI): 5 cases, 5 with a mask; subjects 3 train, 1 val, 1 test; labels square",
        "  B (MRI): 4 cases, 2 with a mask; subjects 2 train, 1 val, 1 test; labels square",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["cases"][0].update(id="../../outside"), "cases.0.id: .*not a plain file name"),
        (lambda index: index["cases"][0].update(id="/etc/passwd"), "cases.0.id"),
        (lambda index: index["cases"][0].update(task=".."), "cases.0.task"),
        (lambda index: index["cases"][0].update(task="Other"), "cases of a task 'Other' that is not there"),
        (lambda index: index["tasks"].update({"../x": index["tasks"].pop("Blobs")}), "tasks"),
        (lambda index: index["tasks"].update({"x": index["tasks"]["Blobs"]}), "task 'x' is called 'Blobs'"),
        (lambda index: index["cases"][0]["source_affine"][0].__setitem__(0, float("inf")), "cases.0.source_affine.0.0"),
        (lambda index: index["cases"][0]["intensity"].__setitem__(0, float("nan")), "cases.0.intensity.0"),
        (lambda index: index["cases"][0]["shape"].__setitem__(0, -1), "cases.0.shape.0"),
        (lambda index: index["tasks"]["Blobs"]["labels"].update({"300": "x"}), "tasks.Blobs.labels.300"),
        (lambda index: index["tasks"]["Blobs"]["preprocessing"].update(spacing=[0, 1]), "preprocessing.spacing.0"),
        (lambda index: index["tasks"]["Blobs"]["preprocessing"].update(orientation="XYZ"), "preprocessing.orientation"),
    ],
)
def test_an_index_that_is_odd_or_hostile_is_refused(
    store: Store, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    index = json.loads((store.path / "index.json").read_text())
    change(index)
    (store.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(StoreError, match=message) as raised:
        Store.open(store.path)
    assert raised.value.path == store.path / "index.json"
