"""Corrected masks go into the store as a whole, to the cases they belong to, or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from hssl.errors import ConfigError, StoreError
from hssl.store import Store, aggregate, corrections
from hssl.store.corrections import LIST, ExportedCase, ExportList, hash_of_mask, ignore_value
from hssl.store.store import CaseRecord

MakeTask = Callable[..., Path]
SHAPE = (12, 10, 6)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def store(make_task: MakeTask, tmp_path: Path) -> Store:
    return aggregate(make_task(unlabelled=("u", "v")), tmp_path / "store")


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    """What was exported: empty masks of the two cases that have none."""
    return export(store, tmp_path / "out", ["u", "v"])


def export(store: Store, folder: Path, cases: list[str], task: str = "Blobs") -> Path:
    (folder / "masks").mkdir(parents=True)
    listed = []
    for case in cases:
        save(folder, case, np.zeros(SHAPE))
        entry = {"case": case, "subject": case, "ranks": [1], "slices": None, "axis": 2, "stands_for": [1]}
        more = {"uncertainty": None, "from_store": False, "mask_sha256": hash_of_mask(np.zeros(SHAPE, np.uint8))}
        listed.append(ExportedCase.model_validate({**entry, **more}))
    info = store.tasks[task]
    content = ExportList(task=task, labels=info.labels, ignore=ignore_value(info), prefilled=None, cases=listed)
    (folder / LIST).write_text(content.model_dump_json())
    return folder


def save(folder: Path, case: str, mask: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    nib.save(nib.Nifti1Image(mask.astype(np.int16), affine), folder / "masks" / f"{case}.nii.gz")


def drawn(value: int = 1, top: int = 2) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[top:8, 3:7, 1:5] = value
    return mask


def record(store: Store, case: str) -> CaseRecord:
    (found,) = (each for each in store.cases() if each.id == case)
    return found


def contents(store: Store) -> dict[str, bytes]:
    files = sorted(path for path in store.path.rglob("*") if path.is_file())
    return {str(path.relative_to(store.path)): path.read_bytes() for path in files}


def training(store: Store) -> str:
    return next(case.id for case in store.cases("Blobs", part="train", labelled=True))


def test_new_and_corrected_masks_take_their_place(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = training(store)
    old = store.array_file("labels", record(store, known))
    for case, mask in (("u", drawn()), (known, drawn(2))):
        save(folder, case, mask)
    (folder / "masks" / "v.nii.gz").unlink()
    with caplog.at_level(logging.INFO, "hssl"):
        after = aggregate(folder, store.path)
    assert "u (u): new mask; voxels: rim 96" in caplog.text
    assert f"{known} ({known}): replaces a mask of rim " in caplog.text
    assert "core 96" in caplog.text
    assert "2 masks taken" in caplog.text
    after.verify()
    after.check()
    for case, mask in (("u", drawn()), (known, drawn(2))):
        expected = after.tasks["Blobs"].preprocessing.prepare_label(mask, record(after, case).geometry)
        np.testing.assert_array_equal(after.label(record(after, case)), expected)
        np.testing.assert_array_equal(after.label_slice(record(after, case), 3), expected[3])
    assert record(after, "u").label_voxels == {1: 96}
    assert not record(after, "v").has_label
    assert not old.exists()  # no mask lies there that nothing names
    assert after.splits == store.splits
    assert [case.id for case in after.cases()] == [case.id for case in store.cases()]
    assert after.hash != store.hash
    assert after.tasks == store.tasks


def test_what_nobody_has_drawn_becomes_part_of_the_task(store: Store, folder: Path) -> None:
    mask = drawn()
    mask[:, :, 3:] = 255
    save(folder, "u", mask)
    (folder / "masks" / "v.nii.gz").unlink()
    after = aggregate(folder, store.path)
    assert (store.tasks["Blobs"].ignore, after.tasks["Blobs"].ignore) == (None, 255)
    assert record(after, "u").label_voxels == {1: 48}
    assert (after.label(record(after, "u"))[3:] == 255).all()


@pytest.mark.parametrize(
    ("case", "mask", "message"),
    [
        ("w", drawn(), "w.nii.gz: belongs to no case of task 'Blobs'"),
        ("u", np.zeros(SHAPE), "u.nii.gz: is unchanged since it was exported .*--accept-unchanged"),
        ("u", np.full(SHAPE, 255), "u.nii.gz: holds nothing that is drawn"),
        ("u", drawn(7), r"u.nii.gz: label 7 is not in the list of labels \[1, 2, 255\]"),
        ("u", drawn()[:, :, :5], "u.nii.gz: the mask has the shape"),
    ],
)
def test_a_bad_mask_is_named_and_nothing_is_taken(
    store: Store, folder: Path, case: str, mask: NDArray[Any], message: str
) -> None:
    before = contents(store)
    save(folder, "v", drawn())
    save(folder, "u", drawn(2))
    save(folder, case, mask)
    with pytest.raises(StoreError, match=message):
        aggregate(folder, store.path)
    assert contents(store) == before


def test_a_mask_that_lies_elsewhere_or_is_of_another_kind(store: Store, folder: Path) -> None:
    (folder / "masks" / "v.nii.gz").unlink()
    moved = AFFINE.copy()
    moved[0, 3] = 4
    save(folder, "u", drawn(), moved)
    with pytest.raises(StoreError, match=r"puts it 4.0 voxels away"):
        aggregate(folder, store.path)
    (folder / "masks" / "u.nii.gz").write_bytes(b"damaged")
    with pytest.raises(StoreError, match="cannot be read"):
        aggregate(folder, store.path)
    (folder / "masks" / "u.nii.gz").rename(folder / "masks" / "u.seg.nrrd")
    with pytest.raises(StoreError, match=r"u.seg.nrrd: is no mask that can be read .*save it as NIfTI"):
        aggregate(folder, store.path)


@pytest.mark.parametrize(("part", "does"), [("val", "validates"), ("test", "tests")])
def test_masks_that_score_are_not_replaced(store: Store, folder: Path, part: Any, does: str) -> None:
    before = contents(store)
    save(folder, "u", drawn())
    (scored, *_) = store.cases("Blobs", part=part)
    save(folder, scored.id, drawn())
    with pytest.raises(StoreError, match=f"is of subject '{scored.subject}', who {does}"):
        aggregate(folder, store.path, skip_bad=False)
    assert contents(store) == before


def test_bad_masks_are_left_out_on_request_and_unchanged_ones_taken(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, "u", drawn())
    after = aggregate(folder, store.path, skip_bad=True)
    assert "v.nii.gz: is unchanged" in caplog.text
    assert [record(after, case).has_label for case in ("u", "v")] == [True, False]
    after = aggregate(folder, store.path, accept_unchanged=True)
    assert not after.label(record(after, "v")).any()
    before = contents(after)
    aggregate(folder, store.path)  # what the store has is not taken again, and is no mistake
    assert contents(after) == before


def test_a_stop_in_the_middle_leaves_the_store_as_it_was(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = training(store)
    save(folder, known, drawn())
    save(folder, "u", drawn())
    save(folder, "v", drawn(2))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corrections, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        aggregate(folder, store.path)
    again = Store.open(store.path)
    again.verify()
    assert (again.hash, record(again, "u").has_label) == (store.hash, False)
    monkeypatch.undo()
    after = aggregate(folder, store.path)
    after.verify()
    assert record(after, "u").has_label


def test_a_task_without_any_mask_gets_its_labels(make_task: MakeTask, tmp_path: Path) -> None:
    raw = make_task(ids=(), unlabelled=("u", "v"))
    listing = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(listing | {"labels": {"0": "background"}}))
    store = aggregate(raw, tmp_path / "store")
    assert store.tasks["Blobs"].labels == {}
    folder = export(store, tmp_path / "out", ["u"])
    save(folder, "u", np.maximum(drawn(), drawn(2, top=6)))
    listed = json.loads((folder / LIST).read_text())
    (folder / LIST).write_text(json.dumps(listed | {"labels": {"2": "lesion"}}))
    after = aggregate(folder, store.path)
    assert after.tasks["Blobs"].labels == {1: "label 1", 2: "lesion"}
    assert after.labelled("Blobs", "100%") == ["u"]


def test_what_does_not_suit_corrected_masks(store: Store, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="option 'window' does not suit corrected masks"):
        aggregate(folder, store.path, window=(0, 1))
    with pytest.raises(ConfigError, match="2 folders, and corrected masks in them"):
        aggregate([folder, folder], store.path)
    with pytest.raises(StoreError, match="is not a store"):
        aggregate(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (folder / LIST).write_text("{}")
    with pytest.raises(StoreError, match=r"suggested.json: is damaged"):
        aggregate(folder, store.path)
    listed = ExportList(task="Other", labels={}, ignore=255, prefilled=None, cases=[])
    (folder / LIST).write_text(listed.model_dump_json())
    with pytest.raises(StoreError, match="has no task 'Other'"):
        aggregate(folder, store.path)
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / LIST).write_text(listed.model_copy(update={"task": "Blobs"}).model_dump_json())
    with pytest.raises(StoreError, match="masks: holds no mask"):
        aggregate(folder, store.path)
