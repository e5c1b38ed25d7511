"""Durations, sizes, differences and label budgets in words, and names as text of other formats."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in the unit that suits them: ``12 B``, ``3.5 MB``, ``1.2 GB``; a kB is 1000 bytes."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def budget_in_words(label_budget: str) -> str:
    """``5%`` as ``5 % of the labels``, ``1`` as ``1 labelled subject``, ``1@5`` as that with ``5 slices each``."""
    if "@" in label_budget:
        subjects, _, slices = label_budget.rpartition("@")
        return f"{budget_in_words(subjects)}, {slices} slice{'s' * (slices != '1')} each"
    if label_budget.endswith("%"):
        return f"{label_budget[:-1].strip()} % of the labels"
    return f"{label_budget} labelled subject{'s' * (label_budget != '1')}"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, a true minus: ``+1.30``, ``−0.25``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def markdown(name: str) -> str:
    """A name as Markdown shows it, in a table too: no character of it is markup, and it stays on one line."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(name.split()))
