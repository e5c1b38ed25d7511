from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hssl
from hssl.errors import ConfigError, RunError
from hssl.export import export_run, onnx
from hssl.runs import Run, load_segmentation, load_unet
from hssl.store import Preprocessing

from .conftest import PLAIN, RESIDUAL, TASK, MakeRun

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason=f"needs the extra 'onnx' ({extra})")


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_logits_of_any_batch_and_size(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(RESIDUAL, TASK)
    loaded = session(export_run(run, "onnx", tmp_path / "new" / "x.onnx"))
    network, _, _ = load_segmentation(run)
    assert network.unet.divisor == (4, 2)
    for shape in ((1, 1, 8, 4), (4, 1, 20, 34), (2, 1, 64, 48)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        (logits,) = loaded.run(["logits"], {"image": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(image).numpy(), atol=1e-4)
    told = json.loads(loaded.get_modelmeta().custom_metadata_map["hssl"])
    assert told["labels"] == {"1": "liver", "2": "spleen"}
    assert told["preprocessing"]["window"] == [0, 80]
    assert (told["patch_size"], told["divisor"], told["channels"]) == (16, [4, 2], [0, 1, 2])
    assert told["percentiles"] is None


def test_the_metadata_say_what_takes_the_place_of_a_window_and_which_label_a_channel_is(make_run: MakeRun) -> None:
    preprocessing = Preprocessing(orientation="PLS", spacing=(1.5, 1.5))
    run = make_run(task=TASK.model_copy(update={"labels": {255: "cyst", 2: "kidney"}, "preprocessing": preprocessing}))
    told = onnx._metadata(Run.open(run), (4, 4))
    assert (told["channels"], told["percentiles"]) == ([0, 2, 255], (0.5, 99.5))


def test_a_pretrained_network_gives_its_features_per_stage(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(PLAIN)
    path = export_run(run, "onnx", tmp_path / "x.onnx")
    for trace in (b"stack_trace", str(Path(hssl.__file__).parent).encode(), b"site-packages"):
        assert trace not in path.read_bytes()
    loaded = session(path)
    assert [output.name for output in loaded.get_outputs()] == ["encoder_0", "encoder_1", "encoder_2", "decoder"]
    image = torch.rand(3, 1, 24, 16)
    found = loaded.run(None, {"image": image.numpy()})
    unet, _ = load_unet(run)
    with torch.no_grad():
        features = unet.encode(image)
        for stage, expected in enumerate([*features, unet.decode(features)[-1]]):
            np.testing.assert_allclose(found[stage], expected.numpy(), atol=1e-4)


def test_a_network_that_computes_something_else_is_not_written(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(onnx, "_difference", lambda *given: seen.append(given[2]) or 2 * onnx.TOLERANCE)
    with pytest.raises(RunError, match="ONNX Runtime differs from torch by 2"):
        export_run(make_run(patch=24), "onnx", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
    # It is compared at the run's patch size, and on the same image each time.
    (image,) = seen
    assert torch.equal(image, torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)))


def test_a_difference_counts_by_the_size_of_its_output() -> None:
    class Session:
        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [10 * given["image"] + 1e-3, given["image"]]

    difference = onnx._difference(lambda image: (10 * image, image), Session(), torch.ones(1, 1, 2, 2))
    assert difference == pytest.approx(1e-4, rel=1e-2)


def test_a_missing_package_is_named(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime.*'\.\[onnx\]'"):
        export_run(make_run(), "onnx", tmp_path / "x.onnx")
