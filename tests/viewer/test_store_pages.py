"""Pages of a store: what they say is what is in it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl.store import Store, aggregate
from hssl.suggestion import suggest
from hssl.viewer import places

if TYPE_CHECKING:
    from starlette.testclient import TestClient

OpenPage = Callable[..., "TestClient"]


@pytest.fixture(scope="module")
def store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    tasks = sorted(path for path in phantom_root.iterdir() if path.is_dir())[:2]
    return aggregate(tasks, tmp_path_factory.mktemp("viewer") / "store")


def scene(text: str) -> Any:
    found = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def place(client: TestClient) -> str:
    found = re.search(r"store/[0-9a-f]+", client.get("").text)
    assert found
    return found[0]


def test_a_store_is_summarised(open_page: OpenPage, store: Store) -> None:
    client = open_page(store.path)
    page = client.get(place(client)).text
    for task in store.tasks:
        cases = store.cases(task)
        row = page[page.index(f"{task}</a>") :]
        numbers = re.findall(r'class="n">([^<]*)<', row)[:5]
        split = store.split(task)
        parts = f"{len(split.train)} / {len(split.val)} / {len(split.test)}"
        slices = sum(case.shape[0] for case in cases)
        assert numbers == [str(len(cases)), str(len(cases)), str(len({c.subject for c in cases})), parts, str(slices)]
    sheet = Image.open(io.BytesIO(client.get(f"{place(client)}/sheet.png").content))
    assert sheet.width > sheet.height


def test_a_case_is_served_with_its_labels_and_volumes(open_page: OpenPage, store: Store) -> None:
    client = open_page(store.path)
    case = store.cases()[0]
    address = f"{place(client)}/case/{case.task}/{case.id}"
    shown = scene(client.get(address).text)
    image, mask = shown["layers"]
    assert (image["kind"], mask["kind"]) == ("image", "mask")
    voxel = abs(np.linalg.det(np.array(case.source_affine)[:3, :3])) / 1000
    assert case.label_voxels
    names = store.tasks[case.task].labels
    expected = [(value, names[value], pytest.approx(case.label_voxels[value] * voxel)) for value in sorted(names)]
    assert [(label["value"], label["name"], label["ml"]) for label in mask["labels"]] == expected
    served = nib.Nifti1Image.from_bytes(client.get(f"http://127.0.0.1:8000{image['url']}").content)
    np.testing.assert_array_equal(np.asarray(served.dataobj).T, store.image(case).astype(np.float32))
    served = nib.Nifti1Image.from_bytes(client.get(f"http://127.0.0.1:8000{mask['url']}").content)
    np.testing.assert_array_equal(np.asarray(served.dataobj).T, store.label(case))
    at = shown["start"]
    assert store.label(case)[at[0]].any()
    mm = np.array(shown["affine"]) @ [*at, 1]
    np.testing.assert_allclose(np.linalg.inv(served.affine) @ mm, [*at[::-1], 1], atol=1e-4)


def test_a_thumbnail_outlines_the_mask(open_page: OpenPage, store: Store) -> None:
    client = open_page(store.path)
    case = store.cases()[0]
    address = f"{place(client)}/case/{case.task}/{case.id}/slice.png"
    plain, outlined = (
        np.asarray(Image.open(io.BytesIO(client.get(address + more).content))).astype(int)
        for more in ("?number=3", "?number=3&mask")
    )
    assert (np.ptp(plain, axis=2) == 0).all()
    assert np.ptp(outlined, axis=2).max() > 50
    assert client.get(f"{address}?number={case.shape[0]}").status_code == 404
    assert client.get(address + "?number=-1").status_code == 404


def test_cases_are_found_by_name(open_page: OpenPage, store: Store) -> None:
    client = open_page(store.path)
    task = next(iter(store.tasks))
    last = store.cases(task)[-1]
    address = f"{place(client)}/task/{task}"
    assert client.get(address).text.count("slice.png") == len(store.cases(task))
    page = client.get(f"{address}?find={last.id.upper()}").text
    assert page.count("slice.png") == 1
    assert f"/{last.id}/slice.png" in page
    assert client.get(f"{address}?first=x").status_code == 404


def test_what_to_draw_next_is_what_hssl_suggest_says(open_page: OpenPage, make_store: Callable[..., Store]) -> None:
    own = make_store({"Blobs": 8}, unlabelled={"Blobs": (1, 2, 3, 4)})
    client = open_page(own.path)
    for more, slices in (("", False), ("?slices=on", True)):
        page = client.get(f"{place(client)}/task/Blobs/next{more}").text
        shown = re.findall(r"/case/Blobs/(\w+)\?slice=(\d+)", page)
        found = suggest(own, task="Blobs", count=5, slices=slices)
        assert shown == [(item.cases[0], str(item.slice)) for item in found.items]
        assert shown
    case, number = shown[0]
    opened = scene(client.get(f"{place(client)}/case/Blobs/{case}?slice={number}").text)
    assert opened["start"][0] == int(number)
    drawn = make_store({"Blobs": 8}, name="drawn")
    client = open_page(drawn.path)
    assert 'role="alert"' in client.get(f"{place(client)}/task/Blobs/next").text


def test_a_damaged_store_is_one_line_on_a_page(open_page: OpenPage, make_store: Callable[..., Store]) -> None:
    own = make_store()
    client = open_page(own.path)
    address = place(client)
    (own.path / "index.json").write_text("{}")
    answer = client.get(address, headers={"accept": "text/html"})
    assert answer.status_code == 422
    assert "is damaged" in answer.text
    assert "Traceback" not in answer.text
    assert client.get("").status_code == 200


def test_the_name_of_a_benchmarks_file_is_the_same() -> None:
    """It is written twice, because its own room takes seconds to import."""
    from hssl.benchmark.run.runner import EXPERIMENT

    assert places.EXPERIMENT == EXPERIMENT
