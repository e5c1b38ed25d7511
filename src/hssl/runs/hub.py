"""Runs on the Hugging Face hub, addressed as ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``."""

from __future__ import annotations

import re
from pathlib import Path

from hssl.errors import RunError, first_line, install

CARD = "README.md"
_ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def fetch(run: Path | str) -> Path:
    """The folder of a run: itself, or where the hub's copy of it lies after download.

    Raises:
        RunError: It is on the hub, and cannot be had from there.
    """
    if not str(run).startswith("hf:"):
        return Path(run)
    run = re.sub(r"^hf:/(?!/)", "hf://", str(run))  # one slash is what pathlib leaves of two
    address = _ADDRESS.fullmatch(run)
    if address is None:
        raise RunError(
            f"'{run}' is not an address on the hub", hint="write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its transport
    except ImportError as error:
        raise RunError(f"'{run}' cannot be loaded without huggingface_hub", hint=install("hub")) from error
    try:
        # Nothing but what a run is read from, and its card to push it elsewhere: no code, no pickle.
        wanted = ["*.json", "*.safetensors", CARD]
        return Path(snapshot_download(address["name"], revision=address["revision"], allow_patterns=wanted))
    except (OSError, ValueError, HTTPError) as error:  # the hub's own errors, and those of the way there
        hint = "check the name, the network, and for a private one 'hf auth login'"
        raise RunError(f"'{run}' cannot be loaded from the hub: {first_line(error)}", hint=hint) from error
