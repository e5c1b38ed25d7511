"""Hierarchical self-supervised learning for medical image segmentation with few labels.

The work of the ``hssl`` program as functions. Names are imported when they are first used, so that
``import hssl`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "HsslError": "hssl.errors",
    "Run": "hssl.runs",
    "Store": "hssl.store",
    "aggregate": "hssl.store",
    "evaluate": "hssl.evaluation",
    "export_run": "hssl.export",
    "find_groups": "hssl.grouping",
    "finetune": "hssl.training",
    "load": "hssl.runs",
    "predict": "hssl.inference",
    "pretrain": "hssl.training",
    "push": "hssl.export",
    "run_benchmark": "hssl.benchmark",
    "run_demo": "hssl.demo",
    "write_phantoms": "hssl.sources.phantoms",
    "write_report": "hssl.benchmark",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Imports a public name from its room on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hssl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
