"""Predict here: the same mask as ``hssl predict`` writes, and refusals of what is no image."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from hssl.config import FinetuneConfig, NetworkConfig
from hssl.prediction import predict
from hssl.runs import Run
from hssl.store import aggregate
from hssl.training.finetune import finetune

if TYPE_CHECKING:
    from starlette.testclient import TestClient

OpenPage = Callable[..., "TestClient"]
SHORT: dict[str, Any] = {
    **{"patch_size": 16, "window_size": 24, "steps": 4, "warmup": 1, "precision": "32", "accelerator": "cpu"},
    **{"network": NetworkConfig(features=(4, 8, 8)), "loggers": ()},
}


@pytest.fixture(scope="module")
def run(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    task = min(path for path in phantom_root.iterdir() if path.is_dir())
    store = aggregate([task], tmp_path_factory.mktemp("predict") / "store")
    config = FinetuneConfig(task=next(iter(store.tasks)), label_budget=1, validation=False, batch_size=2, **SHORT)
    return finetune(store, tmp_path_factory.mktemp("runs") / "run", config=config)


@pytest.fixture
def image(phantom_root: Path) -> Path:
    task = min(path for path in phantom_root.iterdir() if path.is_dir())
    return min((task / "imagesTr").glob("[!.]*.nii.gz"))


def network(client: TestClient) -> str:
    found = re.search(r'<option value="([0-9a-f]+)"', client.get("predict").text)
    assert found
    return found[1]


def finished(client: TestClient, name: str, content: bytes, **more: str) -> dict[str, Any]:
    """What becomes of an upload."""
    answer = client.post("predict", params={"run": network(client), "name": name, **more}, content=content)
    assert answer.status_code == 200, answer.text
    job = answer.json()["job"]
    for _ in range(600):
        state: dict[str, Any] = client.get(f"predict/{job}").json()
        if state["state"] in ("done", "failed"):
            return state | {"job": job}
        time.sleep(0.05)
    raise AssertionError("the prediction does not end")


def test_the_mask_is_that_of_hssl_predict(open_page: OpenPage, run: Run, image: Path, tmp_path: Path) -> None:
    client = open_page(run.path)
    done = finished(client, "scan.nii.gz", image.read_bytes())
    assert done["state"] == "done", done["error"]
    (written,) = predict(run.path, [image], tmp_path / "masks", uncertainty=True)
    expected = nib.load(written)
    taken = client.get(f"predict/{done['job']}/mask/file")
    assert 'filename="scan.nii.gz"' in taken.headers["content-disposition"]
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(taken.content))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    assert mask.header == expected.header  # the original geometry, to the last code
    doubt = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(f"predict/{done['job']}/uncertainty/file").content))
    file = next((tmp_path / "masks").glob("*_uncertainty.nii.gz"))
    np.testing.assert_array_equal(doubt.get_fdata(), nib.load(file).get_fdata())

    scene = done["scene"]
    assert [layer["name"] for layer in scene["layers"]] == ["image", "mask", "uncertainty"]
    source = nib.load(image)
    for layer, array in zip(scene["layers"], (source.get_fdata(), mask.get_fdata(), doubt.get_fdata()), strict=True):
        drawn = nib.Nifti1Image.from_bytes(client.get(f"http://127.0.0.1:8000{layer['url']}").content)
        np.testing.assert_allclose(drawn.get_fdata(), array, rtol=1e-6)
        np.testing.assert_allclose(drawn.affine, source.affine, atol=1e-5)
        np.testing.assert_allclose(drawn.header.get_zooms(), nib.affines.voxel_sizes(source.affine), rtol=1e-5)
    voxel = abs(np.linalg.det(source.affine[:3, :3])) / 1000
    for label in scene["layers"][1]["labels"]:
        assert label["ml"] == pytest.approx((mask.get_fdata() == label["value"]).sum() * voxel)
    if mask.get_fdata().any():
        assert mask.get_fdata()[tuple(scene["start"])] > 0


@pytest.mark.parametrize(
    "name",
    ["../scan.nii.gz", "/etc/scan.nii", ".nii", ".scan.nii.gz", "scan.png", "scan", "a\nb.nii", "a" * 300 + ".nii", ""],
)
def test_another_name_is_refused(open_page: OpenPage, run: Run, name: str) -> None:
    client = open_page(run.path)
    refused = client.post("predict", params={"run": network(client), "name": name}, content=b"x")
    assert refused.status_code == 422
    assert "is no name of a NIfTI file" in refused.text
    assert refused.text.count("\n") == 1


def test_uploads_are_bounded(open_page: OpenPage, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hssl.viewer import uploads

    client = open_page(run.path)
    where = {"run": network(client), "name": "scan.nii"}
    monkeypatch.setattr(uploads, "MAX_BYTES", 2**20)

    def endless() -> Iterator[bytes]:
        """More than is allowed, and no length is stated."""
        for _ in range(17):
            yield bytes(2**16)

    assert client.post("predict", params=where, content=bytes(2**20 + 1)).status_code == 413
    assert client.post("predict", params=where, content=endless()).status_code == 413
    lying = {"content-length": "x"}
    assert client.post("predict", params=where, content=b"", headers=lying).status_code == 404


def test_too_many_voxels_are_refused_by_the_header(
    open_page: OpenPage, run: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hssl.viewer import uploads

    monkeypatch.setattr(uploads, "MAX_VOXELS", 10)
    state = finished(open_page(run.path), "scan.nii.gz", image.read_bytes())
    assert state["state"] == "failed"
    assert "more than the page takes" in state["error"]


@pytest.mark.parametrize("damage", ["truncated", "nothing", "text", "four channels", "not finite"])
def test_what_is_no_image_is_one_line_that_names_the_file(
    open_page: OpenPage, run: Run, image: Path, tmp_path: Path, damage: str
) -> None:
    good = nib.load(image)
    content = {
        "truncated": image.read_bytes()[:2000],
        "nothing": b"",
        "text": b"<script>alert(1)</script>",
        "four channels": gzip.compress(nib.Nifti1Image(np.ones((8, 8, 8, 4), np.float32), good.affine).to_bytes()),
        "not finite": gzip.compress(nib.Nifti1Image(np.full(good.shape, np.nan, np.float32), good.affine).to_bytes()),
    }[damage]
    client = open_page(run.path)
    state = finished(client, "scan.nii.gz", content)
    assert state["state"] == "failed"
    assert state["error"].startswith("scan.nii.gz")
    assert "\n" not in state["error"]
    assert "fault of the program" not in state["error"]
    assert client.get(f"predict/{state['job']}/mask/file").status_code == 404


def test_one_channel_of_several_is_predicted(open_page: OpenPage, run: Run, image: Path) -> None:
    good = nib.load(image)
    several = np.stack([np.zeros(good.shape, np.float32), good.get_fdata(dtype=np.float32)], axis=3)
    content = gzip.compress(nib.Nifti1Image(several, good.affine).to_bytes())
    client = open_page(run.path)
    one, alone = (
        finished(client, "scan.nii.gz", content, channel="1"),
        finished(client, "scan.nii.gz", image.read_bytes()),
    )
    assert one["state"] == "done", one["error"]
    masks, images = (
        [nib.Nifti1Image.from_bytes(client.get(f"predict/{job['job']}/{layer}.nii").content) for job in (one, alone)]
        for layer in ("mask", "image")
    )
    np.testing.assert_array_equal(masks[0].get_fdata(), masks[1].get_fdata())
    np.testing.assert_allclose(images[0].get_fdata(), images[1].get_fdata())


def test_only_what_is_there_can_be_asked_for(open_page: OpenPage, run: Run, image: Path) -> None:
    client = open_page(run.path)
    where = {"run": "0" * 12, "name": "scan.nii"}
    assert client.post("predict", params=where, content=b"x").status_code == 404
    assert client.post("predict", params={"name": "scan.nii"}, content=b"x").status_code == 404
    assert client.get("predict/unknown").status_code == 404
    states = [finished(client, "scan.nii.gz", b"x") for _ in range(6)]
    assert client.get(f"predict/{states[0]['job']}").status_code == 404  # the oldest has gone
    assert client.get(f"predict/{states[-1]['job']}").status_code == 200
