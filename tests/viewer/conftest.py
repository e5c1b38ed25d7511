from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

TOKEN = "token-of-the-tests"
HOST = "127.0.0.1:8000"


@pytest.fixture
def open_page() -> Iterator[Callable[..., TestClient]]:
    """Serves some folders to a client that knows the token."""
    pytest.importorskip("starlette", reason="needs the extra 'view'")
    pytest.importorskip("httpx2", reason="needs the extra 'dev'")
    from starlette.testclient import TestClient

    from hssl.viewer.places import Places
    from hssl.viewer.server import make_app
    from hssl.viewer.site import Site

    sites = []

    def opened(*paths: Path) -> TestClient:
        sites.append(Site(Places(paths), TOKEN))
        return TestClient(make_app(sites[-1], TOKEN), base_url=f"http://{HOST}/{TOKEN}/")

    yield opened
    for site in sites:
        site.close()
