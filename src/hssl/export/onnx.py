"""The network alone as ONNX, for any batch and size, checked against torch before it is handed over."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hssl.errors import ConfigError, RunError, install
from hssl.files import refuse_existing, replacing
from hssl.networks import UNet
from hssl.runs import Run, load_segmentation, load_unet
from hssl.store.preprocessing import PERCENTILES

OPSET = 18
VERSIONS = "install the versions of constraints.txt: pip install -c constraints.txt '.[onnx]'"
TOLERANCE = 1e-3  # of an output's largest value; `large` is within 3e-5 at 96 pixels, 3e-4 at 64 (2 x 2 at the deepest)


def write_onnx(run: Path | str, output: Path) -> Path:
    """Writes the network of a run as one ONNX file.

    Its input ``image`` is float32 ``[batch, 1, height, width]`` in [0, 1], height and width multiples of the network's
    divisor and at least twice it. A fine-tuned network has the output ``logits`` ``[batch, classes, height, width]``; a
    pre-trained one the features of each encoder stage, ``encoder_0`` first, and ``decoder``, those at full resolution.
    Preparing the image is up to the caller: what that takes is in the file's metadata under ``hssl``.

    Args:
        run: A complete run folder.
        output: The file, usually ``.onnx``.

    Returns:
        `output`.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is missing, or `output` already exists.
        RunError: `run` is not a complete run, or ONNX Runtime does not give what torch gives.
    """
    refuse_existing(output)
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ConfigError(f"export to ONNX needs {error.name}", hint=install("onnx")) from error
    opened = Run.open(run)
    if opened.info.task is None:
        unet, _ = load_unet(run)
        network: nn.Module = _Features(unet).eval()
        outputs = [*(f"encoder_{stage}" for stage in range(len(unet.channels))), "decoder"]
    else:
        segmentation, _, _ = load_segmentation(run)
        network, unet, outputs = segmentation, segmentation.unet, ["logits"]
    rows, columns = unet.divisor
    # Twice the divisor and more: a deepest stage of one pixel has nothing to normalise.
    dims = {0: torch.export.Dim("batch"), 2: rows * torch.export.Dim("rows"), 3: columns * torch.export.Dim("columns")}
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.rand(2, 1, 3 * rows, 4 * columns),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(dims,),
            input_names=["image"],
            output_names=outputs,
            verbose=False,
        )
    if program is None:
        raise RunError("torch wrote no ONNX program", path=opened.path, hint=VERSIONS)
    model = program.model_proto
    _clear_notes(model)
    onnx.helper.set_model_props(model, {"hssl": json.dumps(_metadata(opened, unet.divisor))})
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    # As large as in use: normalising a deepest stage of few pixels lifts what is rounded differently.
    side, generator = opened.config.patch_size, torch.Generator().manual_seed(0)
    for shape in ((1, 1, side, side), (3, 1, side + rows, side)):
        difference = _difference(network, session, torch.rand(shape, generator=generator))
        if not difference <= TOLERANCE:
            raise RunError(
                f"ONNX Runtime differs from torch by {difference:.1e} of the largest value",
                path=opened.path,
                hint=VERSIONS,
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.write_bytes(content)
    return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's exporter says of its own inside, and of a missing torchvision."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Features(nn.Module):
    """All features of a U-Net, side by side."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps ``[B, 1, H, W]`` to the features of each encoder stage and the decoder's last."""
        features = self.unet.encode(image)
        return (*features, self.unet.decode(features)[-1])


def _clear_notes(message: Any) -> None:
    """Clears what the exporter notes of its own in a part of a model: its notes name files of this machine."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _clear_notes(part)


def _difference(network: nn.Module, session: Any, image: Tensor) -> float:
    """The largest difference of an output, as a share of that output's largest value."""
    with torch.inference_mode():
        expected = network(image)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {"image": image.numpy()})
    pairs = [(a.numpy(), b) for a, b in zip(expected, found, strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def _metadata(run: Run, divisor: tuple[int, int]) -> dict[str, Any]:
    task = run.info.task
    return {
        "stage": run.info.stage,
        "patch_size": run.config.patch_size,
        "divisor": divisor,
        "labels": task.labels if task else None,
        "channels": [0, *sorted(task.labels)] if task else None,
        "preprocessing": task.preprocessing.model_dump() if task else None,
        "percentiles": PERCENTILES if task and not task.preprocessing.window else None,
    }
