"""Who may ask, and what a page may do: a token in the address, this machine's own names, no other origin."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = {"127.0.0.1", "localhost", "::1"}
"""Names that a page of this machine may be asked by; any other is a foreign name that leads here (DNS rebinding)."""
# 'unsafe-inline' is for no script: NiiVue and the pages set styles by script, which needs no permission.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""For the report of a benchmark, which is one file with its style and pictures in it, and runs no script."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Answers 403 to whoever does not know the token, or comes from elsewhere; sets the headers of all other answers.

    Args:
        app: What answers the others.
        token: The first part of every path.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_already = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in set_already)]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = refusal(scope["path"], headers, self.token)
        app = self.app if problem is None else PlainTextResponse(f"{problem}\n", 403)
        await app(scope, receive, guarded)


def refusal(path: str, headers: Mapping[str, str], token: str) -> str | None:
    """Why a request is refused; None where it is not.

    Args:
        path: Of the request.
        headers: Of the request, names in lower case.
        token: The first part of every path.
    """
    host = headers.get("host", "")
    if _hostname(f"//{host}") not in HOSTS:
        return "this page answers to the names of this machine alone"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "this page answers no other page"
    # A followed link may come from anywhere, since it must know the token; what a page loads by itself may not.
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return "this page answers no other page"
    first = path.split("/")[1] if path.startswith("/") else ""
    if not secrets.compare_digest(first.encode("utf-8", "replace"), token.encode()):
        return "the address lacks the token that hssl view has printed"
    return None


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
