"""Synthetic labelled challenges for the demo and the tests: anatomy, rendering, writing."""

from hssl.phantoms.writing import PHANTOMS, write_phantoms

__all__ = ["PHANTOMS", "write_phantoms"]
