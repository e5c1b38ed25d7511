"""What all pages share: the places, the templates, what has been computed, and one line for what is wrong."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from hssl import __version__
from hssl.viewer.places import NotThereError, OutsideError, Places

STATIC = Path(__file__).parent / "static"
NIIVUE = STATIC / "niivue.js"
NO_NIIVUE = "The volumes cannot be drawn: NiiVue is not in this checkout. Run 'python tools/niivue.py' (it needs npm)."
KEPT = 64
"""Results that are kept, the latest used."""
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Site:
    """One server's places, templates and results.

    Args:
        places: What may be shown.
        token: The first part of every address.
    """

    def __init__(self, places: Places, token: str) -> None:
        self.places, self.root = places, f"/{token}"
        self._folder = TemporaryDirectory(prefix="hssl-view-")
        self.folder = Path(self._folder.name)
        self._results: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._kept, self._working = threading.Lock(), threading.Lock()
        self._templates = Environment(
            loader=PackageLoader("hssl.viewer", "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.filters |= {"part": lambda text: quote(str(text), safe=""), "number": number}
        self._templates.globals |= {"root": self.root, "version": __version__}

    def close(self) -> None:
        """Removes what was uploaded and predicted."""
        self._folder.cleanup()

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page from a template of this room."""
        name = f"{template}.html.jinja"
        return HTMLResponse(self._templates.get_template(name).render(**values), status)

    def computed(self, key: tuple[object, ...], make: Callable[[], Result]) -> Result:
        """What `make` gives, computed once for a key; one computation at a time, for they take all cores."""
        with self._kept:
            if key in self._results:
                self._results.move_to_end(key)
                return cast(Result, self._results[key])
        with self._working:
            with self._kept:
                if key in self._results:
                    return cast(Result, self._results[key])
            result = make()
            with self._kept:
                self._results[key] = result
                while len(self._results) > KEPT:
                    self._results.popitem(last=False)
            return result

    def answer_error(self, request: Request, error: Exception) -> Response:
        """One line of what is wrong; as a page where a browser asks for one."""
        status = 403 if isinstance(error, OutsideError) else 404 if isinstance(error, NotThereError) else 422
        line = str(error)
        logger.warning("%s", line)
        if "text/html" in request.headers.get("accept", ""):
            return self.page("error", status, line=line)
        return PlainTextResponse(f"{line}\n", status)


def answer_json(value: Any) -> Response:
    """JSON that every browser reads: NaN and infinity are null."""
    return JSONResponse(json.loads(json.dumps(value), parse_constant=lambda _: None))


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that matter; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def chosen(request: Request, name: str) -> str:
    """An option of an address.

    Raises:
        NotThereError: It lacks it.
    """
    value = request.query_params.get(name)
    if value is None:
        raise NotThereError(f"the address lacks '{name}'")
    return value
