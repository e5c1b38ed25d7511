"""The loop of a person who draws: suggest, export, draw, take back, fine-tune."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hssl import aggregate, finetune, predict, suggest
from hssl.cli import main
from hssl.store import Store
from hssl.training.data import drawn_slices

TASK = "Task03_BrainMR"


def test_drawn_masks_come_back_and_the_next_fine_tuning_uses_them(
    few_masks: Any, finetune_config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, split = few_masks.store, few_masks.store.split(TASK)
    first = store.labelled(TASK, "100%")
    assert len(first) == 1
    config = finetune_config(task=TASK, label_budget="100%", steps=2, validation=False)
    run = finetune(store, tmp_path / "first", config=config)
    folder = tmp_path / "to-draw"

    found = suggest(store, task=TASK, count=1, run=run.path, export=folder)

    (item,) = found.items
    (case,) = item.cases
    assert case in few_masks.truth
    raw = nib.load(few_masks.raw / "imagesTs" / f"{case}.nii.gz")
    image, begun = (nib.load(folder / part / f"{case}.nii.gz") for part in ("images", "masks"))
    np.testing.assert_allclose(np.asarray(image.dataobj), np.asarray(raw.dataobj))
    np.testing.assert_allclose(begun.affine, raw.affine)
    (predicted,) = predict(run.path, [few_masks.raw / "imagesTs" / f"{case}.nii.gz"], tmp_path / "predicted")
    np.testing.assert_array_equal(np.asarray(begun.dataobj), np.asarray(nib.load(predicted).dataobj))
    for name in ("README.md", "labels.txt", "labels.ctbl"):
        assert all(
            each.replace(" ", "_") in (folder / name).read_text().replace(" ", "_")
            for each in store.tasks[TASK].labels.values()
        )
    assert case in (folder / "README.md").read_text()

    few_masks.draw(folder, case, few_masks.truth[case])
    with caplog.at_level(logging.INFO, "hssl"):
        after = aggregate(folder, store.path)

    assert f"{case} ({item.subject}): new mask" in caplog.text
    assert "training subjects with masks: 2, before 1" in caplog.text
    after.verify()
    assert after.split(TASK) == split
    assert set(after.labelled(TASK, "100%")) == {*first, item.subject}
    (record,) = after.cases(TASK, subjects=[item.subject])
    expected = after.tasks[TASK].preprocessing.prepare_label(few_masks.truth[case], record.geometry)
    np.testing.assert_array_equal(after.label(record), expected)
    assert after.tasks[TASK].ignore is None
    raw_case = after.source_case(record)
    assert raw_case.read_label is not None
    np.testing.assert_array_equal(raw_case.read_label(), few_masks.truth[case])

    second = finetune(after, tmp_path / "second", config=config)
    assert set(second.info.masks_seen[TASK]) == {*first, item.subject}
    assert second.info.provenance["data"] != run.info.provenance["data"]

    # The same commands again change nothing.
    index = (store.path / "index.json").read_bytes()
    aggregate(folder, store.path)
    aggregate([few_masks.raw], store.path)
    assert (store.path / "index.json").read_bytes() == index


def test_a_few_drawn_slices_are_enough(
    few_masks: Any, finetune_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, folder = few_masks.store, tmp_path / "to-draw"
    arguments = ["suggest", str(store.path), "--task", TASK, "-n", "3", "--slices", "--export", str(folder), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    chosen: dict[str, list[int]] = {}
    for item in found["items"]:
        chosen.setdefault(item["cases"][0], []).append(item["slice"])
    listed = json.loads((folder / "suggested.json").read_text())
    assert {each["case"] for each in listed["cases"]} == set(chosen)
    assert listed["ignore"] == 255
    for each in listed["cases"]:
        begun = np.asarray(nib.load(folder / "masks" / f"{each['case']}.nii.gz").dataobj)
        # What is to be drawn is whole slices of the file, along the axis that the list names.
        to_draw = np.moveaxis(begun != 255, each["axis"], 0)
        assert np.flatnonzero(to_draw.all(axis=(1, 2))).tolist() == sorted(each["slices"])
        assert np.flatnonzero(to_draw.any(axis=(1, 2))).tolist() == sorted(each["slices"])
        for rank, number in zip(each["ranks"], each["slices"], strict=True):
            assert f"| {rank} | {each['case']} | " in (folder / "README.md").read_text()
            # The slice of this rank in the store is this one of the file.
            item = found["items"][rank - 1]
            record = next(case for case in store.cases(TASK) if case.id == each["case"])
            marked = np.zeros(record.source_shape, np.uint8)
            np.moveaxis(marked, each["axis"], 0)[number] = 1
            stored = store.tasks[TASK].preprocessing.prepare_label(marked, record.geometry)
            assert np.flatnonzero(stored.any(axis=(1, 2))).tolist() == [item["slice"]]
        drawn = np.where(begun == 255, 255, few_masks.truth[each["case"]])
        few_masks.draw(folder, each["case"], drawn.astype(np.uint8))

    assert main(["aggregate", str(folder), "-o", str(store.path), "--json"]) == 0

    after = Store.open(store.path)
    assert after.tasks[TASK].ignore == 255
    for case in after.cases(TASK):
        if case.id in chosen:
            assert drawn_slices(after.label(case), after.tasks[TASK], None).tolist() == sorted(chosen[case.id])
    config = finetune_config(task=TASK, label_budget="100%", steps=2, validation=False)
    seen = finetune(after, tmp_path / "run", config=config).info.masks_seen[TASK]
    assert {case.subject for case in after.cases(TASK) if case.id in chosen} <= set(seen)

    # The next suggestion does not name these slices again, and its export keeps what is drawn.
    again = suggest(after, task=TASK, count=99, slices=True, export=tmp_path / "again")
    named = {(item.cases[0], item.slice) for item in again.items}
    assert named
    assert named.isdisjoint((case, number) for case, numbers in chosen.items() for number in numbers)
    (case, _) = next(iter(chosen.items()))
    kept = np.asarray(nib.load(tmp_path / "again" / "masks" / f"{case}.nii.gz").dataobj)
    before = np.asarray(nib.load(folder / "masks" / f"{case}.nii.gz").dataobj)
    np.testing.assert_array_equal(kept[before != 255], before[before != 255])
