"""How much of a training step is training: runs end to end over the bare step; and two processes.

Bare means forward, loss, backward, clipping and AdamW, as the run does them, on one ready batch. The real run is
stopped after every few steps to take as many bare ones, on a copy of its network and with the same threads and
precision, so that a busy moment hits both alike; end to end means everything between the ends of two steps: batches
from the store, views, schedule, logging, Lightning. Checkpoints are not among these steps. Fine-tuning is also taken
beside a loop as MONAI's tutorials write it: ``CacheDataset`` over the same cases as they are in the store, random
crops about label voxels, affine and intensity transforms, without metadata and in the loading process, its fastest
way; same network, batch, patch, loss, optimiser and precision. Elastic and bias field are left out of it in its
favour. Two processes (gloo, one thread each) share the batch that one process has to itself with as many threads; the
losses of both are compared on fixed views.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, Row, alternate, pin_threads, publish, row
from torch import Tensor, nn
from torch.optim import AdamW

from hssl.config import FinetuneConfig, PretrainConfig, TrainingConfig
from hssl.metrics import dice_ce_loss
from hssl.objectives import PretrainBatch
from hssl.store import Store, aggregate
from hssl.training.data import FinetuneBatch
from hssl.training.finetune import Finetuning
from hssl.training.loop import Stage, wants_bf16
from hssl.training.pretrain import Pretraining
from hssl.views import follow, make_view

pretraining = importlib.import_module("hssl.training.pretrain")
finetuning = importlib.import_module("hssl.training.finetune")

TASKS = ("Task03_Cardiac", "Task07_Vertebrae")
FINETUNED = "Task03_Cardiac"
PATCH, STEPS, BLOCK, WARM_UP = 96, 40, 5, 5
"""A block of this many real steps is followed by as many bare ones; the first steps do not count."""
DISTRIBUTED_STEPS = 20
TWO_RANKS = Path(__file__).parents[1] / "tests" / "objectives" / "two_ranks.py"
CHECKPOINTS = 10**6
"""Further apart than any run here is long."""


def main() -> None:
    missing = [task for task in TASKS if not (DATA / task).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} absent in {DATA}")
        return
    threads = os.cpu_count() or 1
    pin_threads(threads)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="hssl-bench-") as name:
        folder = Path(name)
        store = aggregate([DATA / task for task in TASKS], folder / "store")
        rows = [*pretrain_rows(store, folder, threads), *finetune_rows(store, folder, threads)]
        rows += two_process_rows(store, folder)
    publish(rows)


# A run that is stopped now and then ------------------------------------------------------------------------------


@dataclass
class Beside:
    """Takes the time of the steps of a real run and, between blocks of them, of other steps."""

    make: Callable[[Stage], dict[str, Callable[[], object]]]
    real: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    stage: Stage | None = None
    _calls: dict[str, Callable[[], object]] = field(default_factory=dict)
    _count: int = 0
    _began: float = 0.0

    def step_ended(self, stage: Stage) -> None:
        """The last thing of a step of Lightning's loop."""
        now = time.perf_counter()
        self._count += 1
        if self._count > WARM_UP:
            self.real.append(now - self._began)
        if self._count == WARM_UP:
            self.stage = stage
            self._calls = self.make(stage)
            for call in self._calls.values():
                call()
        if self._count > WARM_UP and (self._count - WARM_UP) % BLOCK == 0:
            for name, call in self._calls.items():
                for _ in range(BLOCK):
                    before = time.perf_counter()
                    call()
                    self.others.setdefault(name, []).append(time.perf_counter() - before)
        self._began = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Median of each, ``real`` for the run."""
        return {name: statistics.median(values) for name, values in {"real": self.real, **self.others}.items()}


class Bare:
    """Forward, loss, backward, clipping and AdamW of a copy of a stage's modules, on what it is given."""

    def __init__(self, stage: Stage) -> None:
        self.config: TrainingConfig = stage.config
        modules = nn.ModuleDict(copy.deepcopy(stage.trained())).train()
        self.network = modules["network"]
        self.objective: Any = dict(modules.items()).get("objective")
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = AdamW(self.parameters, lr=1e-4, weight_decay=self.config.weight_decay)
        self.amp = wants_bf16(self.config)

    def losses(self, batch: Any) -> Tensor:
        """The sum of the losses, under autocast as in the run."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
            if isinstance(batch, PretrainBatch):
                found = self.objective(self.network, batch)
                return torch.stack([loss for name, loss in found.items() if not name.startswith("watch/")]).sum()
            images, labels = batch
            return dice_ce_loss(self.network(images).float(), labels)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.losses(batch).backward()
        self.clip()
        self.optimizer.step()


def watched(module: Any, kind: type[Stage], beside: Beside, run: Callable[[], object]) -> dict[str, float]:
    """Runs a training with a stage that tells when its steps have ended."""

    class Watched(kind):  # type: ignore[misc, valid-type]
        def on_train_batch_end(self, *_: object) -> None:
            beside.step_ended(self)

    setattr(module, kind.__name__, Watched)
    try:
        run()
    finally:
        setattr(module, kind.__name__, kind)
    return beside.seconds()


def phases(bare: Bare, batch: Any) -> dict[str, Callable[[], object]]:
    """The parts of a bare step, each to be called alone."""

    def forward() -> Tensor:
        return bare.losses(batch)

    def both() -> None:
        bare.losses(batch).backward()

    both()  # Gradients for clipping and the optimiser.
    return {
        "forward and losses": forward,
        "forward, losses and backward": both,
        "clipping": bare.clip,
        "AdamW": bare.optimizer.step,
    }


# Pre-training --------------------------------------------------------------------------------------------------------


def pretrain_rows(store: Store, folder: Path, threads: int) -> list[Row]:
    """The real loop over the bare step, and where the time goes."""
    config = PretrainConfig(
        patch_size=PATCH, steps=STEPS + WARM_UP, checkpoint_every=CHECKPOINTS, accelerator="cpu", groups="none"
    )
    made: dict[str, Any] = {}

    def make(stage: Stage) -> dict[str, Callable[[], object]]:
        made["data"] = stage.data(0, 1)
        made["windows"] = made["data"][0]
        made["views"] = lambda: views_of(stage, made["windows"])
        made["batch"], made["bare"] = made["views"](), Bare(stage)
        return {"bare": lambda: made["bare"].step(made["batch"])}

    seconds = watched(
        pretraining,
        Pretraining,
        Beside(make),
        lambda: pretraining.pretrain(store, folder / "pretrain", config=config),
    )
    steps = itertools.count()
    parts = {
        "batch from the store": lambda: made["data"][next(steps)],
        "two views": made["views"],
        **phases(made["bare"], made["batch"]),
    }
    report("pre-training step", parts, seconds["real"])
    part = f"pre-train end to end, {config.batch_size} images in two views of {PATCH}x{PATCH}, {threads} threads"
    ours, bare = (config.batch_size / seconds[name] for name in ("real", "bare"))
    return [row(part, ours, bare, "bare step on ready tensors", "images/s", "ratio >= 0.97", more=True)]


class Ready(Exception):
    """Ends a step where its views are made."""


def views_of(stage: Any, windows: Any) -> PretrainBatch:
    """What a stage does before it calls its objective, and nothing after it."""
    caught: list[PretrainBatch] = []

    def stop(_: nn.Module, given: tuple[Any, PretrainBatch]) -> None:
        caught.append(given[1])
        raise Ready

    handle = stage.objective.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(Ready):
            stage.losses(windows, 0, torch.Generator().manual_seed(0))
    finally:
        handle.remove()
    return caught[0]


def report(title: str, parts: dict[str, Callable[[], object]], real: float) -> None:
    """Prints where a step's time goes; backward is what a call of both has more than forward alone."""
    seconds = alternate(parts, rounds=5)
    both = seconds.pop("forward, losses and backward")
    forward = seconds["forward and losses"]
    seconds = {**seconds, "backward": both - forward}
    print(f"{title}: {real * 1e3:.1f} ms end to end")
    for name, value in seconds.items():
        print(f"  {name:<24}{value * 1e3:9.2f} ms {value / real:7.1%}")
    rest = real - sum(seconds.values())
    print(f"  {'rest (loop, logging)':<24}{rest * 1e3:9.2f} ms {rest / real:7.1%}", flush=True)


# Fine-tuning ---------------------------------------------------------------------------------------------------------


def finetune_rows(store: Store, folder: Path, threads: int) -> list[Row]:
    """The real loop over the bare step and beside MONAI's, and where the time goes."""
    config = FinetuneConfig(
        task=FINETUNED,
        patch_size=PATCH,
        steps=STEPS + WARM_UP,
        validation=False,
        checkpoint_every=CHECKPOINTS,
        accelerator="cpu",
    )
    made: dict[str, Any] = {}

    def view_of(batch: FinetuneBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        window, labels = batch.labelled
        view = make_view(window, config.patch_size, config.view, generator)
        return view.image, follow(labels, view.grid)

    def make(stage: Stage) -> dict[str, Callable[[], object]]:
        made["data"] = stage.data(0, 1)
        made["windows"] = made["data"][0]
        made["batch"] = view_of(made["windows"], torch.Generator().manual_seed(0))
        made["bare"], other = Bare(stage), Bare(stage)
        batches = monai_batches(made["data"], config)
        return {
            "bare": lambda: made["bare"].step(made["batch"]),
            "MONAI": lambda: other.step(next(batches)),
        }

    seconds = watched(
        finetuning,
        Finetuning,
        Beside(make),
        lambda: finetuning.finetune(store, folder / "finetune", config=config),
    )
    generator, steps = torch.Generator().manual_seed(0), itertools.count()
    parts = {
        "batch from the store": lambda: made["data"][next(steps)],
        "view": lambda: view_of(made["windows"], generator),
        **phases(made["bare"], made["batch"]),
    }
    report("fine-tuning step", parts, seconds["real"])
    part = f"fine-tune end to end, {config.batch_size} patches of {PATCH}x{PATCH}, {threads} threads"
    ours, bare, monai = (config.batch_size / seconds[name] for name in ("real", "bare", "MONAI"))
    label = "MONAI: CacheDataset, crops, affine, intensity (no elastic, no bias field)"
    return [
        row(part, ours, bare, "bare step on ready tensors", "patches/s", "ratio >= 0.95", more=True),
        row(part, ours, monai, label, "patches/s", "faster than MONAI", more=True),
    ]


def monai_transform(config: FinetuneConfig, samples: int) -> Any:
    """MONAI's crops and augmentation with our ranges, so many patches from each case."""
    import monai.transforms as M

    both, view = ("image", "label"), config.view
    p, window = view.intensity, config.window
    zoom = (1 / view.scale[1] - 1, 1 / view.scale[0] - 1)
    return M.Compose(
        [
            M.ToTensord(both),
            M.SpatialPadd(both, (window, window, -1)),
            M.FgBgToIndicesd("label"),
            M.RandCropByPosNegLabeld(
                both,
                "label",
                (window, window, 1),
                pos=config.foreground,
                neg=1 - config.foreground,
                num_samples=samples,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
            M.DeleteItemsd(("label_fg_indices", "label_bg_indices")),
            M.SqueezeDimd(both, dim=-1),
            M.RandAffined(
                both,
                spatial_size=(config.patch_size, config.patch_size),
                prob=1.0,
                rotate_range=math.radians(view.rotate),
                translate_range=(window - config.patch_size) / 2,
                scale_range=[zoom, zoom],
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                cache_grid=True,
            ),
            M.RandScaleIntensityFixedMeand(
                "image", prob=p, factors=(math.exp(-view.contrast) - 1, math.exp(view.contrast) - 1)
            ),
            M.RandShiftIntensityd("image", view.brightness, prob=p),
            M.RandAdjustContrastd("image", prob=p, gamma=(math.exp(-view.gamma), math.exp(view.gamma))),
            M.RandGaussianSmoothd("image", (0.05, view.blur), (0.05, view.blur), prob=p),
            M.RandGaussianNoised("image", prob=p, std=view.noise),
        ]
    ).set_random_state(0)


def monai_batches(data: Any, config: FinetuneConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of MONAI's pipeline over the cases of ours."""
    from monai.data import CacheDataset, DataLoader, list_data_collate, set_track_meta

    set_track_meta(False)
    # As it has volumes: channel, rows, columns, slices.
    cases = [
        {
            "image": np.ascontiguousarray(data.store.image(case).transpose(1, 2, 0)[None], np.float32),
            "label": np.ascontiguousarray(data.store.label(case).transpose(1, 2, 0)[None]),
        }
        for case in data.cases
    ]
    samples = 4
    transform = monai_transform(config, samples)
    cached = CacheDataset(cases, transform, num_workers=1, progress=False, copy_cache=False)
    loader = DataLoader(
        cached,
        batch_size=config.batch_size // samples,
        shuffle=True,
        drop_last=True,
        num_workers=0,
        collate_fn=list_data_collate,
    )
    while True:
        for batch in loader:
            yield torch.as_tensor(batch["image"]), torch.as_tensor(batch["label"])[:, 0].long()


# Two processes -------------------------------------------------------------------------------------------------------


def two_process_rows(store: Store, folder: Path) -> list[Row]:
    """Images/s of one process and of two with the same global batch; and whether the losses of both are the same."""
    check_losses(folder)
    cores = max(2, os.cpu_count() or 1)
    rate = {}
    for devices in (1, 2):
        output = folder / f"processes-{devices}"
        command = [sys.executable, __file__, str(store.path), str(output), str(devices)]
        environment = os.environ | {"OMP_NUM_THREADS": str(cores // devices)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"left out {devices} processes: {done.stderr[-600:]}")
            return []
        rate[devices] = float(json.loads((folder / f"processes-{devices}.json").read_text(encoding="utf-8")))
    part = f"pre-train, the same batch by 2 processes of {cores // 2} thread{'s' * (cores > 3)} each (gloo)"
    return [row(part, rate[2], rate[1], f"1 process of {cores} threads", "images/s", "scales", more=True)]


def check_losses(folder: Path) -> None:
    """Losses and gradients on fixed views by one process and by two, as the tests compare them."""
    if not TWO_RANKS.exists():
        print("losses of two processes not compared: the tests are not here")
        return
    from safetensors.torch import load_file

    for world in (1, 2):
        ranks = [
            subprocess.Popen([sys.executable, str(TWO_RANKS), str(rank), str(world), str(folder)])
            for rank in range(world)
        ]
        codes = [process.wait(120) for process in ranks]
        if any(codes):
            raise SystemExit(f"{TWO_RANKS} failed")
    one, two = (load_file(folder / f"{world}.safetensors") for world in (1, 2))
    # Centres that have not learned yet are each world's own draw.
    names = set(one) - {"ranks", "unseeded"}
    apart = {name: float((one[name] - two[name]).abs().max()) for name in sorted(names)}
    worst = max(apart, key=apart.__getitem__)
    print(f"losses and gradients of 2 processes: at most {apart[worst]:.1e} from those of 1 ({worst})", flush=True)
    if apart[worst] > 1e-4:
        raise SystemExit("two processes do not compute what one does")


def distributed(store: Path, output: Path, devices: int) -> None:
    """A real run, by Lightning's own way of starting processes; rank 0 writes images/s down."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = PretrainConfig(
        patch_size=PATCH,
        steps=DISTRIBUTED_STEPS + WARM_UP,
        checkpoint_every=CHECKPOINTS,
        accelerator="cpu",
        groups="none",
        devices=devices,
    )
    beside = Beside(lambda _: {})
    seconds = watched(pretraining, Pretraining, beside, lambda: pretraining.pretrain(store, output, config=config))
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        output.with_suffix(".json").write_text(json.dumps(config.batch_size / seconds["real"]), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        distributed(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
