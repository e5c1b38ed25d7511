"""Hierarchical self-supervised learning for medical image segmentation with few labels.

The work of the ``hssl`` program as functions. Names are imported when they are first used, so that
``import hssl`` costs nothing; editors and type checkers see their signatures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hssl.benchmark import run_benchmark, write_report
    from hssl.demo import run_demo
    from hssl.errors import HsslError
    from hssl.evaluation import evaluate
    from hssl.export import export_run, push
    from hssl.grouping import find_groups
    from hssl.phantoms import write_phantoms
    from hssl.prediction.predict import predict
    from hssl.probing import probe
    from hssl.runs import Run, load
    from hssl.store import Store, aggregate
    from hssl.suggestion.suggest import suggest
    from hssl.training.finetune import finetune
    from hssl.training.pretrain import pretrain
    from hssl.viewer import show, view

__version__ = "0.1.0"

_ROOMS = {
    "HsslError": "errors",
    "Run": "runs",
    "Store": "store",
    "aggregate": "store",
    "evaluate": "evaluation",
    "export_run": "export",
    "find_groups": "grouping",
    "finetune": "training.finetune",
    "load": "runs",
    "predict": "prediction",
    "pretrain": "training.pretrain",
    "probe": "probing",
    "push": "export",
    "run_benchmark": "benchmark",
    "run_demo": "demo",
    "show": "viewer",
    "suggest": "suggestion",
    "view": "viewer",
    "write_phantoms": "phantoms",
    "write_report": "benchmark",
}

__all__ = [
    "HsslError",
    "Run",
    "Store",
    "__version__",
    "aggregate",
    "evaluate",
    "export_run",
    "find_groups",
    "finetune",
    "load",
    "predict",
    "pretrain",
    "probe",
    "push",
    "run_benchmark",
    "run_demo",
    "show",
    "suggest",
    "view",
    "write_phantoms",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its room on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'hssl' has no attribute {name!r}")
    value = getattr(import_module(f"hssl.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
