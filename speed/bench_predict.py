"""Whole-volume prediction, file to file, beside nnU-Net's and MONAI's sliding windows; the same weights everywhere.

A small U-Net is trained for a few steps, so that its masks are not trivial, and exported to nnU-Net. Each contestant
reads ``.nii.gz`` files, resamples them to the network's spacing, predicts tiles of one size with an overlap of half a
tile and Gaussian weights, without mirroring, resamples the scores back and writes masks. Seconds are per volume. The
files are written so that they need no turning and that their range is their 0.5 to 99.5 percentiles: intensity and
orientation cannot make a difference; resampling (nnU-Net: cubic splines; MONAI, ours: linear) can, and nnU-Net cuts
away empty borders. nnU-Net runs in one process without workers, its fastest way for few volumes, and in float32 on a
CPU, as it always does. Ours and MONAI are measured in float32, and, where the processor has it, in bf16 as well. How
far masks agree is part of a peer's name: the mean Dice over labels between its masks and ours, on these files and on
the same voxels written as if they had the network's spacing, where nobody resamples.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel as nib
import numpy as np
import torch
from harness import DATA, Row, alternate, pin_threads, publish, row
from numpy.typing import NDArray

from hssl.config import AggregateConfig, FinetuneConfig
from hssl.export.nnunet import architecture_kwargs, nnunet_weights
from hssl.machine import bf16_pays
from hssl.metrics import dice_by_label
from hssl.prediction import predict
from hssl.prediction.tiling import predict_volume
from hssl.runs import load_segmentation
from hssl.sources.files import read_geometry, read_image
from hssl.store import TaskInfo, aggregate
from hssl.training.finetune import finetune

TASK, SPACING, PATCH = "Task03_Cardiac", 1.5, 128
VOLUMES, STEPS, TRAINED_ON = 2, 60, 16
IMAGES, AS_IF = "images", "images-as-if"
"""Folders of the scans, and of the same voxels with the network's spacing."""
BATCH, OVERLAP = 16, 0.5
ROUNDS = 2
GOAL = "faster than both, same mask"
Mask = NDArray[np.integer[Any]]
Call = Callable[[Path], object]
"""Predicts all volumes into a folder."""


def main() -> None:
    if not (DATA / TASK).exists():
        print(f"skipped: {DATA / TASK} is absent")
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hssl-bench-") as name:
        folder = Path(name)
        prepare(folder)
        for threads in sorted({1, os.cpu_count() or 1}):
            # A process of its own: nnU-Net takes its number of threads at import.
            shares = {"nnUNet_def_n_proc": str(threads), "OMP_NUM_THREADS": str(threads)}
            paths = {f"nnUNet_{kind}": name for kind in ("raw", "preprocessed", "results")}
            command = [sys.executable, __file__, name, str(threads)]
            subprocess.run(command, env=os.environ | shares | paths, check=True)
            found = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
            rows += [Row(**each) for each in found]
    publish(rows)


def prepare(folder: Path) -> None:
    """Trains a network, and writes test volumes and the run once in each precision."""
    logging.disable(logging.INFO)
    store = aggregate([DATA / TASK], folder / "store", config=AggregateConfig(spacing=(SPACING, SPACING)))
    config = FinetuneConfig(
        task=TASK,
        label_budget=TRAINED_ON,
        validation=False,
        steps=STEPS,
        warmup=5,
        patch_size=PATCH,
        head="last",  # as nnU-Net predicts
        accelerator="cpu",
    )
    run = finetune(store, folder / "run-auto", config=config)
    shutil.copytree(run.path, folder / "run-32")
    content = json.loads((folder / "run-32" / "config.json").read_text(encoding="utf-8")) | {"precision": "32"}
    (folder / "run-32" / "config.json").write_text(json.dumps(content), encoding="utf-8")

    for name in (IMAGES, AS_IF, "truth"):
        (folder / name).mkdir()
    rows_, columns, slices = store.tasks[TASK].preprocessing.orientation
    turned = columns + rows_ + slices  # nnU-Net reads the last axis first
    for case in store.cases(TASK, part="test")[:VOLUMES]:
        for path, kind in ((case.image_path, IMAGES), (case.label_path, "truth")):
            image = nib.load(path)
            steps = nib.orientations.ornt_transform(
                nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(turned)
            )
            image = image.as_reoriented(steps)
            voxels = np.asanyarray(image.dataobj)
            if kind == IMAGES:
                voxels = np.clip(voxels, *np.percentile(voxels, (0.5, 99.5)).round())
            voxels = voxels.astype(np.uint8)
            nib.save(nib.Nifti1Image(voxels, image.affine), folder / kind / f"{case.id}.nii.gz")
            if kind == IMAGES:
                spacing = (SPACING, SPACING, nib.affines.voxel_sizes(image.affine)[2])
                affine = nib.affines.rescale_affine(image.affine, voxels.shape, spacing)
                nib.save(nib.Nifti1Image(voxels, affine), folder / AS_IF / f"{case.id}.nii.gz")


# In the child ------------------------------------------------------------------------------------------------


def measure(folder: Path, threads: int) -> None:
    """The rows of one number of threads."""
    pin_threads(threads)
    if threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    files = sorted((folder / IMAGES).iterdir())
    calls = contestants(folder, files)
    masks = predicted(calls, folder / "masks", files)
    same = sorted((folder / AS_IF).iterdir())
    masks_same = predicted(contestants(folder, same), folder / "masks-as-if", same)
    timed = {name: partial(quiet, call, folder / "masks" / name) for name, call in calls.items()}
    seconds = {name: value / len(files) for name, value in alternate(timed, rounds=ROUNDS, warm_up=0).items()}

    labels = sorted({int(value) for mask in masks["ours, f32"] for value in np.unique(mask) if value})
    if not labels:
        raise SystemExit("the network finds nothing: the masks could not differ")
    truth = [np.asanyarray(nib.load(folder / "truth" / file.name).dataobj) for file in files]
    print(f"Dice with the truth: {agreement(masks['ours, f32'], truth, labels):.3f}; seconds per volume: {seconds}")
    where = f"{TASK}, {PATCH}x{PATCH} tiles, {threads} thread{'s' * (threads > 1)}"
    rows = []
    for ours, peer in PAIRS:
        if ours not in seconds or peer not in seconds:
            continue
        agree = [
            f"Dice {agreement(each[peer], each[ours], labels):.4f}, {equal(each[peer], each[ours]):.3%} of voxels equal"
            for each in (masks, masks_same)
        ]
        label = f"{peer} (mask beside ours: {agree[0]}; without resampling {agree[1]})"
        part = f"predict, {ours.removeprefix('ours, ')}: {where}"
        rows.append(row(part, seconds[ours], seconds[peer], label, "s/volume", GOAL, more=False))
    rows.append(network_share(folder, files, seconds["ours, f32"], where))
    (folder / "rows.json").write_text(json.dumps([asdict(each) for each in rows]), encoding="utf-8")


PAIRS = (
    ("ours, bf16", "nnU-Net, f32"),
    ("ours, f32", "nnU-Net, f32"),
    ("ours, bf16", "MONAI, bf16"),
    ("ours, f32", "MONAI, f32"),
)


def contestants(folder: Path, files: Sequence[Path]) -> dict[str, Call]:
    """All that are installed."""
    fast = bf16_pays(torch.device("cpu"))
    found: dict[str, Call] = {"ours, f32": lambda output: predict(folder / "run-32", files, output, device="cpu")}
    if fast:
        found["ours, bf16"] = lambda output: predict(folder / "run-auto", files, output, device="cpu")
    try:
        found["nnU-Net, f32"] = nnunet(folder, files)
    except ImportError as error:
        print(f"left out nnU-Net: {error}")
    found["MONAI, f32"] = monai(folder, files, amp=False)
    if fast:
        found["MONAI, bf16"] = monai(folder, files, amp=True)
    return found


def predicted(calls: dict[str, Call], folder: Path, files: Sequence[Path]) -> dict[str, list[Mask]]:
    """The masks of each contestant."""
    masks: dict[str, list[Mask]] = {}
    for name, call in calls.items():
        output = folder / name
        output.mkdir(parents=True, exist_ok=True)
        quiet(call, output)
        masks[name] = [np.asanyarray(nib.load(output / file.name).dataobj) for file in files]
    return masks


def quiet(call: Call, output: Path) -> None:
    """nnU-Net and progress bars print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call(output)


def agreement(masks: Sequence[Mask], others: Sequence[Mask], labels: list[int]) -> float:
    """Mean Dice over volumes and labels."""
    pairs = zip(masks, others, strict=True)
    return float(np.nanmean([dice_by_label(mask, other, labels) for mask, other in pairs]))


def equal(masks: Sequence[Mask], others: Sequence[Mask]) -> float:
    """Share of voxels that are equal, mean over volumes."""
    return fmean(float(np.mean(a == b)) for a, b in zip(masks, others, strict=True))


def network_share(folder: Path, files: Sequence[Path], seconds: float, where: str) -> Row:
    """How much of our time is tiles through the network, and how much reading, resampling and writing."""
    network, _, task = load_segmentation(folder / "run-32")
    images = [task.preprocessing.prepare_image(read_image(file, None), read_geometry(file)) for file in files]
    tiles = {"tiles": lambda: [predict_volume(network, i, patch_size=PATCH, amp=False) for i in images]}
    alone = alternate(tiles, rounds=ROUNDS, warm_up=0)["tiles"] / len(files)
    label = "ours, tiles in memory only"
    return row(f"predict, file to file: {where}", seconds, alone, label, "s/volume", "-", more=False)


def nnunet_plans(task: TaskInfo, architecture: dict[str, Any]) -> Any:
    """Its plans for our network and preprocessing."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    smooth = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH,
        "patch_size": [PATCH, PATCH],
        "spacing": list(task.preprocessing.spacing),
        "normalization_schemes": ["RescaleTo01Normalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": smooth,
        "resampling_fn_seg_kwargs": smooth | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": smooth | {"order": 1},
        "architecture": architecture,
    }
    return PlansManager(
        {
            "dataset_name": TASK,
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"2d": configuration},
        }
    )


def nnunet(folder: Path, files: Sequence[Path]) -> Call:
    """Its predictor on a network of its own with our weights, and plans that say what ours do."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    ours, run, task = load_segmentation(folder / "run-32")
    kwargs = architecture_kwargs(run.info.network)
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    kind = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    network = get_network_from_plans(kind, kwargs, imported, 1, task.classes, deep_supervision=False)
    weights = nnunet_weights(ours.unet.state_dict(), run.info.network)
    last = f"decoder.seg_layers.{len(run.info.network.features) - 2}"
    weights |= {f"{last}.weight": ours.head[0].weight, f"{last}.bias": ours.head[0].bias}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or any(".seg_layers." not in name for name in missing):
        raise SystemExit(f"nnU-Net's network is another: {missing}, {unexpected}")
    plans = nnunet_plans(task, {"network_class_name": kind, "arch_kwargs": kwargs, "_kw_requires_import": imported})
    names = {"background": 0} | {text: value for value, text in task.labels.items()}
    described = {"channel_names": {"0": "MRI"}, "labels": names, "file_ending": ".nii.gz"}
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            tile_step_size=1 - OVERLAP, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
    parameters = [network.state_dict()]
    predictor.manual_initialization(
        network, plans, plans.get_configuration("2d"), parameters, described, "nnUNetTrainer", None
    )

    def call(output: Path) -> None:
        targets = [str(output / file.name.removesuffix(".nii.gz")) for file in files]
        predictor.predict_from_files_sequential([[str(file)] for file in files], targets)

    return call


def monai(folder: Path, files: Sequence[Path], *, amp: bool) -> Call:
    """Its transforms, its sliding window over the slices as a batch, and its inversion of the transforms."""
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImage,
        ScaleIntensityRangePercentilesd,
        Spacingd,
    )

    network, _, task = load_segmentation(folder / "run-32")
    before = Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes=task.preprocessing.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
            Spacingd("image", pixdim=(*task.preprocessing.spacing, -1.0), mode="bilinear"),
        ]
    )
    back = Invertd("scores", before, orig_keys="image", nearest_interp=False)

    def call(output: Path) -> None:
        save = SaveImage(
            output_dir=output,
            output_postfix="",
            output_dtype=np.uint8,
            resample=False,
            separate_folder=False,
            print_log=False,
        )
        for file in files:
            case = before({"image": str(file)})
            slices = case["image"].as_tensor().permute(3, 0, 1, 2).contiguous()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
                scores = sliding_window_inference(
                    slices, (PATCH, PATCH), BATCH, network, overlap=OVERLAP, mode="gaussian"
                )
            moved = scores.float().permute(1, 2, 3, 0)
            case["scores"] = MetaTensor(
                moved, meta=case["image"].meta, applied_operations=case["image"].applied_operations
            )
            save(back(case)["scores"].argmax(0, keepdim=True))

    return call


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
