"""The aggregated data set on disk: write, verify, read, split."""

from __future__ import annotations

from hssl.store.aggregate import aggregate, aggregate_sources
from hssl.store.plan import TaskPlan, make_plan
from hssl.store.splits import Split, make_split
from hssl.store.store import CaseRecord, Store, TaskInfo, widest_slice
from hssl.store.summary import TaskSummary, contact_sheet, summarise, summary_table

__all__ = [
    "CaseRecord",
    "Split",
    "Store",
    "TaskInfo",
    "TaskPlan",
    "TaskSummary",
    "aggregate",
    "aggregate_sources",
    "contact_sheet",
    "make_plan",
    "make_split",
    "summarise",
    "summary_table",
    "widest_slice",
]
