"""The shape of the house: which room may import which, and what may be heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hssl

PACKAGE = Path(hssl.__file__).parent

# A room imports only from rooms before it.
ROOMS = [
    *("errors", "config", "console", "machine", "files", "sources", "store", "views", "networks", "objectives"),
    *("grouping", "runs", "training", "inference", "metrics", "evaluation", "benchmark", "export", "demo", "cli"),
]
HEAVY = {
    "torch",
    "lightning",
    "matplotlib",
    "nibabel",
    "scipy",
    "sklearn",
    "monai",
    "numpy",
    "tensorboard",
    "PIL",
}


def imports(path: Path) -> set[str]:
    """Rooms of hssl that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module or ""]
            if node.module == "hssl":
                names = [f"hssl.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("hssl.")}
    return found - {"__version__"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not room(path).startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    assert room(path) in ROOMS, f"{room(path)} has no place in the order of rooms"
    later = {name for name in imports(path) if ROOMS.index(name) > ROOMS.index(room(path))}
    assert not later, f"{path.name} imports from {', '.join(sorted(later))}"


def test_imports_are_found(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("import hssl.cli\nfrom hssl import store\ndef f():\n    from hssl.runs.run import Run\n")
    assert imports(file) == {"cli", "store", "runs"}


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from hssl.cli import main; main({arguments!r}); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hssl" in done.stdout
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("room", ["inference", "evaluation"])
def test_prediction_and_evaluation_do_without_the_trainers_packages(room: str) -> None:
    """They would wait for seconds for packages that only training uses."""
    code = f"import sys, hssl.{room}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"hssl.{room}" in loaded
    assert not {"lightning", "pytorch_lightning", "monai", "sklearn", "matplotlib"} & loaded


def test_every_public_name_has_a_home() -> None:
    for name in hssl.__all__:
        assert getattr(hssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hssl.nothing
