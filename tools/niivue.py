"""Brings NiiVue, which draws the volumes of ``hssl view``, into the package: ``python tools/niivue.py [--optional]``.

The release is pinned, and so is the checksum of its file. npm brings it; once it is there, nothing is fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, MEMBER = "@niivue/niivue@0.69.0", "package/dist/niivue.umd.js"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
TARGET = Path(__file__).parents[1] / "src" / "hssl" / "viewer" / "static" / "niivue.js"


def fetch(folder: Path) -> bytes:
    """The file of the pinned release, as npm packs it."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed, which brings NiiVue for 'hssl view'")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"npm pack {PACKAGE} failed: {lines[-1]}")
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        member = archive.extractfile(MEMBER)
        if member is None:
            raise RuntimeError(f"{PACKAGE} holds no {MEMBER}")
        return member.read()


def bring(target: Path) -> bool:
    """Writes the file if it is not there yet, and says whether it did.

    Raises:
        RuntimeError: It cannot be had, or is not the pinned one.
    """
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return False
    with tempfile.TemporaryDirectory() as folder:
        content = fetch(Path(folder))
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise RuntimeError(f"{MEMBER} of {PACKAGE} has the checksum {found}, not {SHA256}")
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(target)
    return True


if __name__ == "__main__":
    try:
        if bring(TARGET):
            print(f"{PACKAGE} is in the package, for 'hssl view'")
    except RuntimeError as error:
        print(f"tools/niivue.py: {error}", file=sys.stderr)
        sys.exit(0 if "--optional" in sys.argv else 1)
