"""Pages of a run: its curves as they are, what its network says, and where slices lie."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import nn
from torch.optim import AdamW

from hssl.config import FinetuneConfig, NetworkConfig, PretrainConfig
from hssl.features import pooled_features, standardised
from hssl.runs import Run, load_segmentation, load_unet
from hssl.store import Store, aggregate
from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain
from hssl.viewer import network_views

if TYPE_CHECKING:
    from starlette.testclient import TestClient

OpenPage = Callable[..., "TestClient"]
SHORT: dict[str, Any] = {
    **{"patch_size": 16, "window_size": 24, "steps": 4, "warmup": 1, "log_every": 1, "checkpoint_every": 2},
    **{"precision": "32", "accelerator": "cpu", "network": NetworkConfig(features=(4, 8, 8)), "loggers": ()},
}


@pytest.fixture(scope="module")
def store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    tasks = sorted(path for path in phantom_root.iterdir() if path.is_dir())[:2]
    return aggregate(tasks, tmp_path_factory.mktemp("viewer") / "store")


@pytest.fixture(scope="module")
def tuned(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    task = next(iter(store.tasks))
    options = {"self_training": {"start": 0.0, "batch_size": 2}}
    config = FinetuneConfig(task=task, label_budget=1, validation=False, batch_size=2, auxiliary=options, **SHORT)
    return finetune(store, tmp_path_factory.mktemp("runs") / "tuned", config=config)


@pytest.fixture(scope="module")
def pretrained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = {"task_stage": 2, "position_stage": 1, "local_stage": 1, "local_points": 8, "projection": 8}
    config = PretrainConfig(batch_size=4, options=options, **SHORT)
    return pretrain(store, tmp_path_factory.mktemp("runs") / "pretrained", config=config)


def place(client: TestClient, kind: str = "run") -> str:
    found = re.search(rf"{kind}/[0-9a-f]+", client.get("").text)
    assert found
    return found[0]


def picture(client: TestClient, address: str) -> Image.Image:
    answer = client.get(address)
    assert answer.headers["content-type"] == "image/png", answer.text
    return Image.open(io.BytesIO(answer.content))


def in_training(run: Run, path: Path, reached: list[float] | None) -> Run:
    """A copy of a complete run, as it was at the checkpoint of step 3."""
    network, _, _ = load_segmentation(run.path)
    again = Run(path, run.config, run.info.model_copy(update={"complete": False})).create()
    modules: dict[str, nn.Module] = {"network": network, "average": network}
    if reached is not None:
        modules["self_training"] = nn.Module()
        modules["self_training"].register_buffer("reached", torch.tensor(reached))
    again.save_checkpoint(3, modules, AdamW(network.parameters()), {})
    return again


def test_curves_are_those_of_the_run_and_grow(open_page: OpenPage, tuned: Run, tmp_path: Path) -> None:
    run = in_training(tuned, tmp_path / "run", None)
    client = open_page(run.path)
    address = f"{place(client)}/metrics.json"
    assert client.get(address).json()["curves"] == []
    run.log(1, {"loss": 0.5, "watch/self_training/held": 1.0, "validation_dice": float("nan")})
    run.log(2, {"loss": 0.25})
    told = client.get(address).json()
    assert (told["step"], told["steps"], told["complete"], told["network"]) == (2, 4, False, "step 3")
    assert told["curves"] == [
        {"name": "loss", "kind": "loss", "points": [[1, 0.5], [2, 0.25]]},
        {"name": "self_training/held", "kind": "watched", "points": [[1, 1.0]]},
        {"name": "validation_dice", "kind": "score", "points": [[1, None]]},
    ]
    for step in range(3, 1003):
        run.log(step, {"loss": step / 1000})
    (points,) = (curve["points"] for curve in client.get(address).json()["curves"] if curve["name"] == "loss")
    assert len(points) <= 400
    assert points[-1] == [1002, 1.002]
    (run.path / "metrics.csv").write_text("step,name,value\n1,loss,x\n")
    assert client.get(address).status_code == 422


def test_views_are_drawn(open_page: OpenPage, store: Store, tuned: Run, pretrained: Run) -> None:
    side, gap = 128, 4
    for run, rows, columns in ((tuned, 2, 2), (pretrained, 3, 4)):
        client = open_page(run.path, store.path)
        sheet = picture(client, f"{place(client)}/views.png")
        assert sheet.size == (columns * (side + gap) - gap, rows * (side + gap) - gap)
        cells = np.asarray(sheet)[: rows * side]
        assert len({cells[:side, :side].tobytes(), cells[side + gap : 2 * side + gap, :side].tobytes()}) == 2


def test_own_masks_say_what_is_believed(open_page: OpenPage, store: Store, tuned: Run, tmp_path: Path) -> None:
    client = open_page(tuned.path, store.path)
    address = place(client)
    told = client.get(f"{address}/own-masks.json").json()
    assert told == {"complete": True, "sheets": [{"step": 4, "believed": None}]}
    assert picture(client, f"{address}/own-masks/4.png").height == 2 * 128 + 4
    assert client.get(f"{address}/own-masks/3.png").status_code == 404

    classes = tuned.task.classes
    shares = []
    for name, reached in (("sure", [1.0, *[1e-6] * (classes - 1)]), ("even", [1.0] * classes)):
        run = in_training(tuned, tmp_path / name, reached)
        client = open_page(run.path, store.path)
        (sheet,) = client.get(f"{place(client)}/own-masks.json").json()["sheets"]
        assert sheet["step"] == 3
        shares.append(sheet["believed"])
    assert 0 <= shares[1] < shares[0] <= 1  # a class with a low threshold is believed sooner


def test_sheets_of_earlier_checkpoints_stay(open_page: OpenPage, store: Store, tuned: Run, tmp_path: Path) -> None:
    run = in_training(tuned, tmp_path / "run", None)
    client = open_page(run.path, store.path)
    address = place(client)
    assert [each["step"] for each in client.get(f"{address}/own-masks.json").json()["sheets"]] == [3]
    network, _, _ = load_segmentation(tuned.path)
    run.save_checkpoint(4, {"network": network}, AdamW(network.parameters()), {})
    assert [each["step"] for each in client.get(f"{address}/own-masks.json").json()["sheets"]] == [3, 4]
    assert picture(client, f"{address}/own-masks/3.png").width > 0


def test_neighbours_are_those_of_the_feature_space(open_page: OpenPage, store: Store, pretrained: Run) -> None:
    client = open_page(pretrained.path, store.path)
    told = client.get(f"{place(client)}/map.json").json()
    assert told["step"] == 4
    assert set(told["colours"]) == set(store.tasks)
    slices = told["slices"]
    cases = {(case.task, case.id): case for case in store.cases()}
    images = [store.image_slice(cases[each["task"], each["case"]], each["slice"]) for each in slices]
    features = standardised(pooled_features(load_unet(pretrained.path)[0], images, side=network_views.SIDE))
    distance = cdist(features, features)
    for number, each in enumerate(slices):
        other = [n for n, s in enumerate(slices) if (s["task"], s["subject"]) != (each["task"], each["subject"])]
        expected = sorted(other, key=lambda n: distance[number, n])[: network_views.NEAR]
        np.testing.assert_allclose(distance[number, each["near"]], distance[number, expected])
        assert set(each["near"]) <= set(other)
        labels = store.tasks[each["task"]].labels
        label = store.label_slice(cases[each["task"], each["case"]], each["slice"])
        assert each["labels"] == [name for value, name in labels.items() if (label == value).any()]
    assert np.isfinite([[each["x"], each["y"]] for each in slices]).all()


def test_without_its_store_or_weights_one_line_says_so(
    open_page: OpenPage, store: Store, tuned: Run, pretrained: Run, tmp_path: Path
) -> None:
    alone = open_page(tuned.path)
    assert "give it as a PATH of hssl view too" in alone.get(place(alone)).text
    assert alone.get(f"{place(alone)}/map.json").status_code == 404
    client = open_page(pretrained.path, store.path)
    refused = client.get(f"{place(client)}/own-masks.json")
    assert (refused.status_code, "pre-training run" in refused.text) == (422, True)
    run = Run(tmp_path / "new", tuned.config, tuned.info.model_copy(update={"complete": False})).create()
    client = open_page(run.path, store.path)
    assert "It has no checkpoint yet." in client.get(place(client)).text
    assert "has no checkpoint yet" in client.get(f"{place(client)}/map.json").text


def test_weights_that_are_a_link_out_are_refused(open_page: OpenPage, store: Store, tuned: Run, tmp_path: Path) -> None:
    run = in_training(tuned, tmp_path / "runs" / "run", None)
    file = run.path / "checkpoint" / "step-3" / "average.safetensors"
    file.rename(tmp_path / "average.safetensors")
    file.symlink_to(tmp_path / "average.safetensors")
    client = open_page(run.path, store.path)
    assert "step-3" not in client.get("").text
    assert client.get(f"{place(client)}/map.json").status_code == 403
