"""Trains by two processes: ``two_devices.py STORE FOLDER``, of which Lightning starts the second."""

from __future__ import annotations

import sys
from pathlib import Path

from hssl.config import FinetuneConfig, PretrainConfig
from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain

COMMON = {
    "patch_size": 16,
    "window_size": 24,
    "network": {"features": (4, 8, 8)},
    "steps": 4,
    "warmup": 1,
    "log_every": 1,
    "checkpoint_every": 2,
    "precision": "32",
    "accelerator": "cpu",
    "devices": 2,
    "workers": 0,
}


def main() -> None:
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    stages = {"group_stage": 1, "task_stage": 2, "position_stage": 1, "local_stage": 1}
    joint = PretrainConfig(**COMMON, batch_size=8, group_start=0.5, options=stages)
    pretrained = pretrain(store, folder / "joint", config=joint)
    start = str(folder / "joint")
    few = FinetuneConfig(**COMMON, task="A", label_budget=1, batch_size=4, init=start, validate_every=2)
    tuned = finetune(store, folder / "fine", config=few)
    if not (pretrained.info.complete and tuned.info.complete):
        sys.exit("a rank has an incomplete run")


if __name__ == "__main__":
    main()
