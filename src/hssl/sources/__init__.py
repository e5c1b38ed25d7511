"""Raw challenges as :class:`~hssl.sources.base.Case` objects: one reader a layout, found from the path."""

from hssl.sources.base import Case, Geometry, Source
from hssl.sources.discovery import check_no_patients, find_sources

__all__ = ["Case", "Geometry", "Source", "check_no_patients", "find_sources"]
