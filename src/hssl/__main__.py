"""``python -m hssl`` and the ``hssl`` program."""

from __future__ import annotations

import os
import sys

from hssl.cli import main

# Read when torch is imported. By default, threads of OpenMP that have nothing to do spin: beside any other busy
# process that makes a training step ten times slower. Waiting costs a few per cent on a machine left alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if __name__ == "__main__":
    sys.exit(main())
