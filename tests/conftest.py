from __future__ import annotations

import os
from pathlib import Path

import pytest

from hssl.sources.phantoms import write_phantoms


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real challenges: HSSL_DATA, or ../shared/data beside the repository."""
    path = Path(os.environ.get("HSSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set HSSL_DATA")
    return path


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small phantom challenges, four subjects each, as Medical Segmentation Decathlon folders. Read only."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, seed=0, subjects=4, size=32, slices=6)
    return root
