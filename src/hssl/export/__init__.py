"""Runs in the formats of other programs: one file per format, and the registry that ``--to`` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hssl.export.hub import push, write_hub
from hssl.export.monai_bundle import write_bundle
from hssl.export.nnunet import write_nnunet
from hssl.export.onnx import write_onnx
from hssl.registry import EXPORTS


def export_run(run: Path | str, to: str, output: Path | str) -> Path:
    """Writes a trained network in another program's format.

    Args:
        run: A complete run folder, or ``hf://OWNER/NAME``.
        to: One of :data:`hssl.registry.EXPORTS`, or ``module:function`` of one of your own.
        output: The file (``nnunet``, ``onnx``) or folder (``monai-bundle``, ``hub``) to write.

    Returns:
        What was written.

    Raises:
        ConfigError: There is no such format, a package it needs is missing, or `output` is taken.
        RunError: The run is not complete, or is not what the format needs.
    """
    write: Callable[[Path | str, Path], Path] = EXPORTS[to]
    return write(run, Path(output))


__all__ = ["export_run", "push", "write_bundle", "write_hub", "write_nnunet", "write_onnx"]
