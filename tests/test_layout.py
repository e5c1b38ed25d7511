"""The shape of the house: which room may import which, and what may be heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hssl
from hssl.registry import AUXILIARIES, OBJECTIVES

PACKAGE = Path(hssl.__file__).parent

# A room imports only from rooms before it.
ROOMS = [
    *(
        "errors",
        "text",
        "palette",
        "registry",
        "config",
        "console",
        "machine",
        "files",
        "distributed",
        "metrics",
        "sources",
    ),
    *("phantoms", "store", "views", "networks", "objectives", "features", "grouping", "runs", "prediction"),
    *("probing", "training", "evaluation", "suggestion", "benchmark", "export", "demo", "viewer", "cli"),
]
# Rooms with rooms of their own, or with an order that matters: files and folders, from before to after.
ORDERS = {
    "training": ["progress", "checks", "data", "loggers", "start", "auxiliary", "loop", "cost", "pretrain", "finetune"],
    "training/auxiliary": ["base", "pretext", "self_training"],
    "suggestion": ["selection", "ranking", "export", "suggest"],
    "benchmark": ["experiment", "run.records", "run.ledger", "statistics", "run", "report"],
    "benchmark/run": ["records", "ledger", "worker", "executors", "forecast", "runner"],
}
# What fine-tuning and the loop must not know by name: they go by the contracts.
CHOSEN_BY_NAME = {*OBJECTIVES, *AUXILIARIES}
HEAVY = {
    *("torch", "lightning", "matplotlib", "nibabel", "scipy", "sklearn", "monai", "numpy", "tensorboard", "PIL"),
    *("jinja2", "safetensors", "starlette", "uvicorn", "ipyniivue"),
}


def imports(path: Path) -> set[str]:
    """Modules of hssl that a file imports, wherever in the file, without the leading ``hssl.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module or ""]
            if node.module and node.module.split(".")[0] == "hssl":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.removeprefix("hssl.") for name in names if name.startswith("hssl.")}
    return found - {"__version__"}


def place(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")


def room(module: str) -> str:
    return module.split(".")[0]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not room(place(path)).startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    own = room(place(path))
    assert own in ROOMS, f"{own} has no place in the order of rooms"
    later = {room(name) for name in imports(path) if ROOMS.index(room(name)) > ROOMS.index(own)}
    assert not later, f"{path.name} imports from {', '.join(sorted(later))}"


@pytest.mark.parametrize("outer", ORDERS)
def test_the_order_holds_inside_a_room(outer: str) -> None:
    prefix, order = outer.replace("/", ".") + ".", ORDERS[outer]

    def position(module: str) -> int | None:
        """Place in the order of a module in the room; None where it is the room's door or in another room."""
        name = f"{module}.".removeprefix(prefix)
        found = [each for each in order if name.startswith(f"{each}.")]
        return order.index(max(found, key=len)) if module.startswith(prefix) and found else None

    for path in sorted((PACKAGE / outer).rglob("*.py")):
        if path.parent == PACKAGE / outer and path.stem == "__init__":  # the door, behind which everything stands
            continue
        own = position(place(path))
        assert own is not None, f"{place(path)} has no place in the order"
        later = [name for name in imports(path) if (there := position(name)) is not None and there > own]
        assert not later, f"{place(path)} imports {', '.join(sorted(later))}"


@pytest.mark.parametrize("module", ["training/loop.py", "training/finetune.py", "training/pretrain.py"])
def test_training_names_no_objective_and_no_auxiliary(module: str) -> None:
    path = PACKAGE / module
    words = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)}
    assert not CHOSEN_BY_NAME & {word for word in words if isinstance(word, str)}
    places = {f"objectives.{name}" for name in OBJECTIVES} | {f"training.auxiliary.{name}" for name in AUXILIARIES}
    assert not [name for name in imports(path) if any(f"{name}.".startswith(f"{each}.") for each in places)]


def test_imports_are_found(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("import hssl.cli\nfrom hssl import store\ndef f():\n    from hssl.runs.run import Run\n")
    assert imports(file) == {"cli", "store", "runs.run.Run"}


def loaded_by(code: str) -> set[str]:
    """Modules that a new interpreter has loaded after `code`."""
    code = f"import sys; {code}; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], *([each, "--help"] for each in ("pretrain", "export")), ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(f"from hssl.cli import main; main({arguments!r})")
    assert "hssl.cli" in loaded
    assert not HEAVY & loaded


def test_importing_hssl_imports_nothing_heavy() -> None:
    loaded = loaded_by("import hssl; dir(hssl)")
    assert {name for name in loaded if name.startswith("hssl.")} == set()
    assert not {*HEAVY, "pydantic", "typer", "rich"} & loaded


def test_options_are_known_without_anything_heavy() -> None:
    loaded = loaded_by("import hssl.config; hssl.config.PretrainConfig()")
    assert "hssl.config.pretrain" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize("module", ["prediction", "evaluation"])
def test_prediction_and_evaluation_do_without_the_trainers_packages(module: str) -> None:
    """They would wait for seconds for packages that only training uses."""
    loaded = loaded_by(f"import hssl.{module}")
    assert f"hssl.{module}" in loaded
    assert not {"lightning", "pytorch_lightning", "monai", "sklearn", "matplotlib"} & loaded


def test_monai_is_no_part_of_the_core() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "monai"], place(path)
    assert "monai" not in loaded_by("import hssl.training, hssl.evaluation, hssl.benchmark, hssl.export, hssl.demo")


def test_every_public_name_has_a_home() -> None:
    for name in hssl.__all__:
        assert getattr(hssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hssl.nothing
