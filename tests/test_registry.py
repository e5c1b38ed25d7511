"""The four registries: every line keeps its contract, and an extension from outside the package works by its place."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hssl
from hssl.cli import main
from hssl.errors import ConfigError
from hssl.objectives import Objective, objective_class
from hssl.registry import AUXILIARIES, EXPORTS, LAYOUTS, OBJECTIVES, Registry
from hssl.runs import Run
from hssl.sources.folder import Layout
from hssl.store import Store
from hssl.training.auxiliary import Auxiliary, AuxiliaryOptions, auxiliary_class

REGISTRIES = [OBJECTIVES, AUXILIARIES, LAYOUTS, EXPORTS]
every_registry = pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_the_contract(name: str) -> None:
    kind = OBJECTIVES[name]
    assert issubclass(kind, Objective)
    assert kind.__module__ == f"hssl.objectives.{name}"
    assert kind.Options.checked({}) == kind.Options()
    assert kind.forward is not Objective.forward


@pytest.mark.parametrize("name", AUXILIARIES)
def test_every_auxiliary_keeps_the_contract(name: str) -> None:
    kind = AUXILIARIES[name]
    assert issubclass(kind, Auxiliary)
    assert kind.__module__ == f"hssl.training.auxiliary.{name}"
    assert issubclass(kind.Options, AuxiliaryOptions)
    assert kind.Options.checked({}).weight > 0
    assert kind.forward is not Auxiliary.forward


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_keeps_the_contract(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    assert isinstance(layout, Layout)
    assert layout.name == name
    assert layout.looks_for
    assert layout.matches(tmp_path) is False  # an empty folder is no challenge


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_keeps_the_contract(name: str) -> None:
    write = EXPORTS[name]
    assert list(inspect.signature(write).parameters) == ["run", "output"]
    assert write.__doc__


@every_registry
def test_options_of_a_class_are_all_explained(registry: Registry) -> None:
    for name in registry:
        options = getattr(registry[name], "Options", None)
        if options is not None:
            explained = {key for base in options.__mro__ for key in re.findall(r"^ +(\w+): ", base.__doc__ or "", re.M)}
            assert set(options.model_fields) <= explained, name


@every_registry
def test_an_unknown_name_is_one_line_with_a_suggestion(registry: Registry) -> None:
    name = next(iter(registry))
    wrong = name[:-1] + name[-1] * 2
    with pytest.raises(ConfigError) as caught:
        _ = registry[wrong]
    assert str(caught.value) == (
        f"no {registry.kind} '{wrong}'; did you mean '{name}'? (choose one of {', '.join(registry)})"
    )
    with pytest.raises(ConfigError, match=rf"^no {registry.kind} 'xyzzy' \(choose one of"):
        registry.check("xyzzy")


@every_registry
def test_a_place_that_cannot_be_imported_is_one_line(registry: Registry) -> None:
    for wrong in ("no_such_module:Thing", "hssl.text:Thing", ":", "hssl:", ":Thing", "a b:c"):
        with pytest.raises(ConfigError, match=rf"^{registry.kind} '{wrong}' cannot be imported: ") as caught:
            _ = registry[wrong]
        assert "\n" not in str(caught.value)
        assert "PYTHONPATH" in str(caught.value)


def test_a_module_with_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hssl_test_broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"cannot be imported: SyntaxError: .*hssl_test_broken\.py, line 1\)"
    ) as caught:
        _ = OBJECTIVES["hssl_test_broken:Own"]
    assert "\n" not in str(caught.value)


def test_what_is_of_another_kind_is_refused() -> None:
    for find, place in (
        (objective_class, "hssl.text:duration"),
        (objective_class, "hssl.store:Store"),
        (auxiliary_class, "hssl.objectives.simclr:SimCLR"),
    ):
        with pytest.raises(ConfigError, match=f"'{place}' is not a subclass of "):
            find(place)


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "store", "-o", "run", "--objective", "simclir"],
        ["aggregate", "raw", "-o", "store", "--layout", "niftie"],
        ["export", "run", "--to", "onxx", "-o", "file"],
        ["finetune", "store", "-o", "run", "--task", "A", "--set", "auxiliary={pretxt: true}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_program_suggests_what_was_meant(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean '" in line
    assert not list(tmp_path.iterdir())


# An extension from outside: a package of somebody else's in a folder of PYTHONPATH, used by the program alone. --------

OWN = '''
import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat

from hssl.config import StageConfig
from hssl.networks import PixelHead
from hssl.objectives import Objective
from hssl.runs import Run
from hssl.sources.folder import CaseFiles, FolderSource, Layout
from hssl.training.auxiliary import Auxiliary, AuxiliaryOptions


class DenoisingOptions(StageConfig):
    """How much noise.

    Attributes:
        noise: Standard deviation of the noise.
    """

    noise: PositiveFloat = 0.1


class Denoising(Objective):
    Options = DenoisingOptions

    def __init__(self, network, domains, options):
        super().__init__(network, domains, options)
        self.noise, self.head = options.noise, PixelHead(network.channels[0], 1)

    def forward(self, network, batch):
        clean = batch.first.clean
        found = self.head(network.decode(network.encode(clean + self.noise * torch.randn_like(clean)))[-1])
        return {"denoising": F.mse_loss(found.float(), clean)}


class Entropy(Auxiliary):
    Options = AuxiliaryOptions

    def __init__(self, options, setting):
        super().__init__(options, setting)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, network, batch):
        side = batch.labelled.image.shape[-1]
        scores = network(batch.windows.window[..., :side, :side].float()).float().softmax(1)
        return {"entropy": -(scores * scores.clamp(min=1e-6).log()).sum(1).mean()}

    def after_step(self, network):
        self.steps += 1


def write_names(run, output):
    output.write_text(json.dumps(sorted(Run.open(run).load_weights())))
    return output


def matches(path):
    return (Path(path) / "scans.txt").is_file()


def read(path, options):
    files = [CaseFiles(name, Path(path) / name) for name in (Path(path) / "scans.txt").read_text().split()]
    return [FolderSource(task="Listed", path=path, layout="listed", files=files, find_labels=dict)]


LAYOUT = Layout("listed", "scans.txt", matches, read)
'''
SMALL = ["--steps", "3", "--patch-size", "16", "--batch-size", "2", "--set", "accelerator=cpu", "--set", "precision=32"]


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., str]:
    """Runs the program in a new process, where a package of somebody else's is on PYTHONPATH; returns its stderr."""
    package = tmp_path / "elsewhere" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(OWN)
    paths = (tmp_path / "elsewhere", Path(hssl.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "hssl", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_objective_auxiliary_and_export_of_ones_own(
    run_program: Callable[..., str], make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store({"A": 4, "B": 4}).path
    objective = ["--objective", "my_package.mine:Denoising", "--set", "options={noise: 0.2}"]
    network = ["--set", "network={features: [4, 8, 8]}"]
    run_program("pretrain", store, "-o", "pre", *SMALL, *network, *objective)
    pretrained = Run.open(tmp_path / "pre")
    assert set(pretrained.info.result["losses"]) == {"denoising", "loss"}
    assert pretrained.config.options == {"noise": 0.2}

    own = ["--set", "auxiliary={'my_package.mine:Entropy': {weight: 0.5, batch_size: 2}}"]
    start = ["--task", "A", "--labels", "1", "--no-validation", "--init", "pre"]
    said = run_program("finetune", store, "-o", "fine", *start, *SMALL, *own)
    assert "my_package.mine:Entropy" in said
    logged = {line.split(",")[1] for line in (tmp_path / "fine" / "metrics.csv").read_text().splitlines()[1:]}
    # Pre-training's own objective is kept on, and it comes from outside as well.
    assert {"dice_ce", "my_package.mine:Entropy/entropy", "pretext/denoising", "loss"} <= logged

    run_program("export", "fine", "--to", "my_package.mine:write_names", "-o", "names.json")
    assert "unet.encoder.stages.0.0.conv.weight" in json.loads((tmp_path / "names.json").read_text())


def test_a_layout_of_ones_own(run_program: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    names = [f"p{number}.png" for number in range(5)]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "raw" / name)
    (tmp_path / "raw" / "scans.txt").write_text("\n".join(names[:4]))
    run_program("aggregate", "raw", "-o", "store", "--layout", "my_package.mine:LAYOUT")
    store = Store.open(tmp_path / "store")
    assert list(store.tasks) == ["Listed"]
    assert len(store.cases("Listed")) == 4
