"""A MONAI bundle: a folder that ``python -m monai.bundle run`` executes on an image.

The bundle calls hssl rather than repeating it in MONAI's transforms. Those have no counterpart of the antialiased
resampling in plane and of the way back of scores to the file's grid; a mask that is nearly the one of
``hssl predict`` would be worth less than none.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hssl.export.hub import about, scores, seen_and_limits, write_run
from hssl.files import new_folder, write_text
from hssl.runs import Run, versions

TESTED_MONAI = "1.6.1"


def write_bundle(run: Path | str, output: Path) -> Path:
    """Writes a fine-tuned run as a MONAI bundle, which needs hssl where it runs.

    In the bundle, ``python -m monai.bundle run --config_file configs/inference.json --image IMAGE`` writes the mask
    into ``eval/``; ``--output_dir`` and ``--device`` change where, and on what.

    Args:
        run: A complete fine-tuning run.
        output: The folder, new.

    Returns:
        `output`.

    Raises:
        RunError: `run` is not a complete run, or a pre-training run.
        ConfigError: `output` already exists.
    """
    opened = Run.open(run)
    metadata = _metadata(opened)
    with new_folder(output) as folder:
        for name in ("configs", "docs", "models/run"):
            (folder / name).mkdir(parents=True)
        write_run(opened, folder / "models" / "run")
        write_text(folder / "configs" / "metadata.json", json.dumps(metadata, indent=1))
        write_text(folder / "configs" / "inference.json", json.dumps(_INFERENCE, indent=1))
        write_text(folder / "docs" / "README.md", about(opened) + _USE + scores(opened) + seen_and_limits(opened))
    return output


_USE = """This is a MONAI bundle. It needs `monai`, `fire` and `hssl`: whoever published this has the source of
`hssl`, and `pip install '.[monai]'` in that folder installs all three. In the folder of the bundle,

    python -m monai.bundle run --config_file configs/inference.json --image IMAGE.nii.gz

writes the mask into `eval/`; `--output_dir FOLDER` and `--device cpu` change where, and on what. The network alone is
the `network_def` of `configs/inference.json`. `models/run` is a run folder of `hssl`, which `hssl predict` takes too.
"""
_INFERENCE: dict[str, Any] = {
    "imports": ["$import hssl", "$import hssl.runs"],
    "bundle_root": ".",
    "image": "$@bundle_root + '/image.nii.gz'",
    "output_dir": "$@bundle_root + '/eval'",
    "device": None,
    "run_folder": "$@bundle_root + '/models/run'",
    "network_def": "$hssl.runs.load_segmentation(@run_folder)[0]",
    "run": ["$hssl.predict(@run_folder, [@image], @output_dir, device=@device)"],
}


def _monai_version() -> str:
    """The version of MONAI that is installed, or the one that bundles are tested with: writing needs no MONAI."""
    try:
        return version("monai")
    except PackageNotFoundError:
        return TESTED_MONAI


def _metadata(run: Run) -> dict[str, Any]:
    """What MONAI's schema of bundles requires, and what only we know."""
    task, side = run.task, run.config.patch_size
    channels = ["background", *(name for _, name in sorted(task.labels.items()))]
    shared = {"type": "image", "modality": task.modality or "unknown", "dtype": "float32", "is_patch_data": True}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "as trained"},
        "monai_version": _monai_version(),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": versions("nibabel"),
        "task": f"Segmentation of {task.name}",
        "description": "A U-Net fine-tuned with hssl, slice by slice.",
        "authors": "unknown",
        "copyright": "unknown",
        "intended_use": "Research. Not a medical device.",
        "data_source": f"store with SHA-256 {run.info.provenance.get('data', {}).get('store')}",
        "preprocessing": task.preprocessing.model_dump(),
        "network_data_format": {
            "inputs": {
                "image": {
                    **shared,
                    "format": "magnitude",
                    "num_channels": 1,
                    "spatial_shape": [side, side],
                    "value_range": [0, 1],
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    **shared,
                    "format": "segmentation",
                    "num_channels": task.classes,
                    "spatial_shape": [side, side],
                    "value_range": [],
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                }
            },
        },
    }
