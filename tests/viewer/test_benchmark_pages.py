"""Pages of a benchmark: every case with the masks that are kept, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from hssl.config import FinetuneConfig
from hssl.prediction import Predictor
from hssl.store import Store
from hssl.training.finetune import finetune
from hssl.viewer.volumes import difference

if TYPE_CHECKING:
    from starlette.testclient import TestClient

OpenPage = Callable[..., "TestClient"]
ARMS = ("scratch", "joint", "gone")


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store({"Blobs": 6})


@pytest.fixture
def bench(
    store: Store,
    tmp_path: Path,
    make_row: Callable[..., dict[str, Any]],
    finetune_config: Callable[..., FinetuneConfig],
) -> Path:
    """Three arms on one test case: one with its weights, one with a slice, one without anything."""
    path = tmp_path / "bench"
    dice = {"scratch": 0.25, "joint": 0.75, "gone": None}
    rows = [
        make_row(
            arm=arm,
            task="Blobs",
            config_hash=arm,
            store_hash=store.hash,
            scores=[
                {
                    "case": "blobs5",
                    "subject": "blobs5",
                    "label": 1,
                    "name": "square",
                    "dice": dice[arm],
                    "hd95": 1.0,
                    "nsd": 1.0,
                }
            ],
        )
        for arm in ARMS
    ]
    cells = [
        {name: row[name] for name in ("arm", "task", "label_budget", "fraction", "seed")} | {"hash": row["arm"]}
        for row in rows
    ]
    experiment = {"store": str(store.path), "arms": {arm: {} for arm in ARMS}, "label_budgets": ["5%"], "seeds": [0]}
    (path / "runs" / "joint").mkdir(parents=True)
    (path / "experiment.json").write_text(json.dumps({"experiment": experiment, "cells": cells}))
    old = make_row(arm="joint", task="Blobs", config_hash="old")
    (path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, old]))
    plane = np.zeros((28, 32), np.uint8)
    plane[4:12, 5:14] = 1
    np.savez_compressed(path / "runs" / "joint" / "overlays.npz", blobs5=plane)
    finetune(store, path / "runs" / "scratch", config=finetune_config(validation=False, loggers=()))
    return path


def place(client: TestClient) -> str:
    found = re.search(r"benchmark/[0-9a-f]+", client.get("").text)
    assert found
    return found[0]


def volume(client: TestClient, address: str) -> np.ndarray[Any, Any]:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return np.asarray(nib.Nifti1Image.from_bytes(answer.content).dataobj).T


def test_every_case_is_listed_by_dice_and_can_be_opened(open_page: OpenPage, bench: Path, store: Store) -> None:
    client = open_page(bench, store.path)
    page = client.get(place(client)).text
    assert re.findall(r'data-value="([\d.]+)"', page) == ["0.25", "0.75", "1.0"]  # as the report counts
    assert "old" not in page
    case = f"{place(client)}/case/Blobs/blobs5"
    assert case in page
    opened = client.get(f"{case}?label_budget=5%25&seed=0").text
    found = re.search(r'<script type="application/json">(.*?)</script>', opened, re.DOTALL)
    assert found
    layers = {layer["name"]: layer for layer in json.loads(found[1])["layers"]}
    assert list(layers) == ["image", "truth", "scratch", "scratch: difference", "joint", "joint: difference"]
    assert "alone is kept" in layers["joint"]["note"]
    assert layers["scratch"]["note"] == ""
    assert "no mask is kept of" in opened
    assert "gone (" in opened


def test_masks_and_differences_are_those_of_the_runs(open_page: OpenPage, bench: Path, store: Store) -> None:
    client = open_page(bench, store.path)
    address = f"{place(client)}/case/Blobs/blobs5"
    (case,) = store.cases("Blobs", part="test")
    truth = np.asarray(store.label(case))
    mask = volume(client, f"{address}/scratch/mask.nii")
    np.testing.assert_array_equal(mask, Predictor(bench / "runs" / "scratch").mask(store.image(case)))
    np.testing.assert_array_equal(volume(client, f"{address}/scratch/difference.nii"), difference(truth, mask))

    slice_, others = volume(client, f"{address}/joint/mask.nii"), np.arange(len(truth)) != 0
    plane = np.load(bench / "runs" / "joint" / "overlays.npz")["blobs5"]
    np.testing.assert_array_equal(slice_[0], plane)  # every slice shows as much: the first is the widest
    assert not slice_[others].any()
    differs = volume(client, f"{address}/joint/difference.nii")
    np.testing.assert_array_equal(differs[0], difference(truth[0], plane))
    assert not differs[others].any()  # what is not known is no difference

    for run in ("gone", "unknown", "..%2fscratch"):
        assert client.get(f"{address}/{run}/mask.nii").status_code == 404


def test_the_report_runs_no_script(open_page: OpenPage, bench: Path, store: Store) -> None:
    client = open_page(bench, store.path)
    address = f"{place(client)}/report.html"
    assert client.get(address).status_code == 404
    (bench / "report.html").write_text("<h1>Report</h1>")
    answer = client.get(address)
    assert answer.text == "<h1>Report</h1>"
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy


def test_links_out_and_another_store_are_refused(
    open_page: OpenPage, bench: Path, store: Store, tmp_path: Path
) -> None:
    alone = open_page(bench)
    assert "give it as a PATH" in alone.get(f"{place(alone)}/case/Blobs/blobs5").text
    overlays = bench / "runs" / "joint" / "overlays.npz"
    overlays.rename(tmp_path / "overlays.npz")
    overlays.symlink_to(tmp_path / "overlays.npz")
    client = open_page(bench, store.path)
    assert client.get(f"{place(client)}/case/Blobs/blobs5/joint/mask.nii").status_code == 403
