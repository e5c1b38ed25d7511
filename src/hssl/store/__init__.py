"""The aggregated data set on disk: write, verify, read, split."""

from __future__ import annotations

from hssl.store.aggregate import aggregate, aggregate_sources
from hssl.store.preprocessing import Preprocessing, make_preprocessing
from hssl.store.splits import Split, make_split
from hssl.store.store import CaseRecord, Part, Store, TaskInfo, widest_slice
from hssl.store.summary import TaskSummary, contact_sheet, slice_sheet, summarise, summary_table

__all__ = [
    "CaseRecord",
    "Part",
    "Preprocessing",
    "Split",
    "Store",
    "TaskInfo",
    "TaskSummary",
    "aggregate",
    "aggregate_sources",
    "contact_sheet",
    "make_preprocessing",
    "make_split",
    "slice_sheet",
    "summarise",
    "summary_table",
    "widest_slice",
]
