from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hssl.config import FinetuneConfig, NetworkConfig, PretrainConfig
from hssl.networks import SegmentationNetwork, build_network
from hssl.runs import Run, RunInfo
from hssl.store import Preprocessing, TaskInfo

MakeRun = Callable[..., Path]
PLAIN = NetworkConfig(features=(4, 6, 8))
RESIDUAL = NetworkConfig(encoder="residual", features=(4, 6, 6), blocks=(1, 2, 2), strides=((1, 1), (2, 1), (2, 2)))
TASK = TaskInfo(
    name="Blobs",
    modality="CT",
    labels={1: "liver", 2: "spleen"},
    preprocessing=Preprocessing(orientation="PLS", spacing=(1.5, 1.5), window=(0, 80)),
    layout="nifti",
    origin="/home/somebody/blobs",
    fingerprint="",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a complete run with random weights; with a task it is one of fine-tuning."""

    def make(network: NetworkConfig = PLAIN, task: TaskInfo | None = None, *, patch: int = 16, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        unet = build_network(network)
        for name, parameter in unet.named_parameters():
            if ".norm." in name:  # else all gains are 1 and all shifts 0, and mixing them up would show nowhere
                torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
        shared = {"patch_size": patch, "precision": "32", "network": network}
        config = FinetuneConfig(task=task.name, init="/home/somebody/pre", **shared) if task else None
        info = RunInfo(
            stage="finetune" if task else "pretrain",
            network=network,
            task=task,
            subjects_seen={"Blobs": ["a", "b", "c"]},
            masks_seen={"Blobs": ["a"]} if task else {},
            provenance={"data": {"store": "5" * 64, "split": "6" * 64}, "store_path": "/home/x", "machine": "mine"},
        )
        folder = tmp_path / f"run-{seed}-{network.encoder}"
        run = Run.prepare(folder, config or PretrainConfig(**shared, init="/home/somebody/joint"), info).create()
        run.save_weights(SegmentationNetwork(unet, task.classes) if task else unet)
        run.finish({})
        return run.path

    return make
