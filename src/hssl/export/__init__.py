"""Runs in the formats of other programs: one file per format, and the registry that ``--to`` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hssl.errors import ConfigError
from hssl.export.hub import push, write_hub
from hssl.export.monai_bundle import write_bundle
from hssl.export.nnunet import write_nnunet
from hssl.export.onnx import write_onnx

FORMATS: dict[str, Callable[[Path | str, Path], Path]] = {
    "nnunet": write_nnunet,
    "monai-bundle": write_bundle,
    "onnx": write_onnx,
    "hub": write_hub,
}


def export_run(run: Path | str, to: str, output: Path | str) -> Path:
    """Writes a trained network in another program's format.

    Args:
        run: A complete run folder, or ``hf://OWNER/NAME``.
        to: One of :data:`FORMATS`.
        output: The file (``nnunet``, ``onnx``) or folder (``monai-bundle``, ``hub``) to write.

    Returns:
        What was written.

    Raises:
        ConfigError: There is no such format, a package it needs is missing, or `output` is taken.
        RunError: The run is not complete, or is not what the format needs.
    """
    if to not in FORMATS:
        raise ConfigError(f"no format '{to}' to export to", hint=f"one of {', '.join(FORMATS)}")
    return FORMATS[to](run, Path(output))


__all__ = ["FORMATS", "export_run", "push", "write_bundle", "write_hub", "write_nnunet", "write_onnx"]
