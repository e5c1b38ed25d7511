"""What to draw next: ranked, shown and exported; :func:`hssl.aggregate` takes back what was drawn."""

from __future__ import annotations

from hssl.suggestion.ranking import Suggestion, Suggestions
from hssl.suggestion.suggest import suggest

__all__ = ["Suggestion", "Suggestions", "suggest"]
