"""The comparison: an experiment of arms, its grid of runs, their ledger, statistics and report.

Names are imported when they are first used: a worker process needs none of what the report draws with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hssl.benchmark.experiment import Arm, Experiment
    from hssl.benchmark.report.page import write_report
    from hssl.benchmark.run.runner import run_benchmark

_HOMES = {"Arm": "experiment", "Experiment": "experiment", "run_benchmark": "run.runner", "write_report": "report.page"}

__all__ = ["Arm", "Experiment", "run_benchmark", "write_report"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hssl.benchmark' has no attribute {name!r}")
    return getattr(import_module(f"hssl.benchmark.{_HOMES[name]}"), name)
