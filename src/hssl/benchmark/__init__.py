"""The comparison: a plan of arms, its grid of runs, their ledger, statistics and report."""

from hssl.benchmark.plan import Arm, BenchmarkPlan
from hssl.benchmark.runner import run_benchmark

__all__ = ["Arm", "BenchmarkPlan", "run_benchmark"]
