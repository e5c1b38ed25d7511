"""Sets up an environment for other people's packages, beside ours: ``python tools/peer_env.py FOLDER PACKAGE...``.

Some require torchvision (nnU-Net, lightly, kornia's peers), which must not get into our own environment: the wheel on
PyPI is built for CUDA, and beside a CPU build of torch its import fails, because operators that it describes are
missing. Where that is so, the environment gets a start-up file that declares them; nothing of ours calls them.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_UP = '''\
import sys


class DeclareOperators:
    """Runs before the first import of torchvision."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(DeclareOperators)
            import torch

            DeclareOperators.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                DeclareOperators.library.define(operator + "(Tensor dets, Tensor scores, float threshold) -> Tensor")


sys.meta_path.insert(0, DeclareOperators)
'''


def set_up(folder: Path, packages: list[str]) -> Path:
    """Makes the environment, or completes it, and returns its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    constraints = ROOT / "constraints.txt"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    subprocess.run([*pip, *packages], check=True, cwd=ROOT)
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torchvision') is None)"
    if subprocess.run([str(python), "-c", find], check=False).returncode:
        return python
    check = [str(python), "-c", "import torchvision"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
        (Path(site) / "sitecustomize.py").write_text(START_UP, encoding="utf-8")
        subprocess.run(check, check=True)
    return python


if __name__ == "__main__":
    print(set_up(Path(sys.argv[1]), sys.argv[2:]))
