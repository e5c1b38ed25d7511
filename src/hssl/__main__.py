"""``python -m hssl`` and the ``hssl`` program."""

from __future__ import annotations

import sys

from hssl.cli import main

if __name__ == "__main__":
    sys.exit(main())
