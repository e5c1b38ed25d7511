"""A hook of mkdocs: references of docstrings, such as :func:`hssl.pretrain`, become plain code on the pages."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>(~?)([^<]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with the content of each page; as in Sphinx, ``~`` leaves the last part of a name."""
    return _ROLE.sub(lambda role: f"<code>{role[2].rpartition('.')[2] if role[1] else role[2]}</code>", html)
