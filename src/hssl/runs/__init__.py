"""Run folders: what training leaves and everything after it reads, without the trainer's packages."""

from hssl.runs.run import (
    ComponentRule,
    Run,
    RunInfo,
    latest_segmentation,
    latest_unet,
    load,
    load_segmentation,
    load_unet,
    versions,
)

__all__ = [
    "ComponentRule",
    "Run",
    "RunInfo",
    "latest_segmentation",
    "latest_unet",
    "load",
    "load_segmentation",
    "load_unet",
    "versions",
]
