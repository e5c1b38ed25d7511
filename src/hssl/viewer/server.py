"""The local page: which addresses it has, and how it is started."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from hssl.errors import ConfigError, HsslError
from hssl.viewer.benchmark_pages import benchmark_routes
from hssl.viewer.places import Places
from hssl.viewer.predict_pages import predict_routes
from hssl.viewer.run_pages import run_routes
from hssl.viewer.security import Guard
from hssl.viewer.site import NIIVUE, NO_NIIVUE, STATIC, Site
from hssl.viewer.store_pages import store_routes

HOST = "127.0.0.1"
logger = logging.getLogger(__name__)


def make_app(site: Site, token: str) -> Guard:
    """The pages as an ASGI application behind their guard.

    Args:
        site: What they share.
        token: The first part of every address.
    """

    def home(request: Request) -> Response:
        return site.page("home", places=site.places.listed())

    pages = [
        Route("/", home),
        *store_routes(site),
        *run_routes(site),
        *benchmark_routes(site),
        *predict_routes(site),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers = {HsslError: site.answer_error}
    return Guard(Starlette(routes=[Mount(f"/{token}", routes=pages)], exception_handlers=handlers), token)


def serve(paths: Sequence[Path | str], port: int, ready: Callable[[str], None]) -> None:
    """As :func:`hssl.viewer.view`."""
    token = secrets.token_urlsafe(24)
    site = Site(Places(paths), token)
    with closing(_listen(port)) as listener, closing(site):
        address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
        config = uvicorn.Config(
            make_app(site, token), log_level="warning", access_log=False, server_header=False, ws="none"
        )
        if not NIIVUE.exists():
            logger.warning(NO_NIIVUE)
        ready(address)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} cannot be used: {error.strerror}", hint="give another --port, or none"
        ) from error
    listener.listen(64)
    return listener
