"""What docs/how-to/extend.md writes out works from outside the package, with the options that the page names."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hssl.cli import main
from hssl.config import FinetuneConfig, NetworkConfig, ViewConfig
from hssl.networks import build_network
from hssl.objectives import Domains, build_objective
from hssl.runs import Run, load_unet
from hssl.store import Store
from hssl.views import make_view

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "extend.md"
SHORT = (
    "--steps 2 --patch-size 16 --batch-size 2 --set warmup=1 --set precision=32 --set accelerator=cpu --set loggers=[]"
)
NETWORK = "--set 'network={features: [4, 8, 8]}'"


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The blocks of the page as a module that lies in a folder of the path."""
    folder = tmp_path_factory.mktemp("outside")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    (folder / "mine.py").write_text("\n".join(blocks), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield None
    sys.modules.pop("mine", None)


@pytest.fixture
def run_line(tmp_path: Path) -> Callable[..., None]:
    """Runs the command of the page that begins like this, with its capitals replaced and more options."""

    def run(start: str, more: str = "", **values: Path | str) -> None:
        (line,) = re.findall(rf"^    ({start}.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        for name, value in values.items():
            line = re.sub(rf"\b{name}\b", str(value), line)
        assert main(shlex.split(f"{line} {more}")[1:]) == 0

    return run


def test_the_objective_learns() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(features=(4, 8, 8)))
    objective = build_objective("mine:Denoising", network, Domains(("A",), (-1,)), {"weight": 2})
    generator = torch.Generator().manual_seed(0)
    window = F.interpolate(torch.rand((4, 1, 6, 6), generator=generator), size=(40, 40), mode="bilinear")
    view = make_view(window, 32, ViewConfig(occlusion_ratio=0.3), generator)
    optimiser = torch.optim.Adam([*network.parameters(), *objective.parameters()], 0.01)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = objective(network, SimpleNamespace(first=view))["restoration"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_objective_and_export_by_their_places(
    make_store: Callable[..., Store], run_line: Callable[..., None], tmp_path: Path
) -> None:
    store = make_store()
    run_line("hssl pretrain", f"{NETWORK} {SHORT}", STORE=store.path, RUN=tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert (run.info.complete, run.config.objective, run.config.options) == (True, "mine:Denoising", {"weight": 2})
    assert set(run.info.result["losses"]) == {"restoration", "loss"}
    run_line("hssl export", RUN=run.path, **{r"weights\.npz": tmp_path / "weights.npz"})
    network, _ = load_unet(run.path)
    with np.load(tmp_path / "weights.npz") as written:
        assert set(written) == set(network.state_dict())
        assert all(np.array_equal(written[name], weight) for name, weight in network.state_dict().items())


def test_an_auxiliary_by_its_place(
    make_store: Callable[..., Store], run_line: Callable[..., None], tmp_path: Path
) -> None:
    more = f"{NETWORK} {SHORT} --labels 1 --no-validation --set log_every=1"
    run_line("hssl finetune", more, STORE=make_store().path, RUN=tmp_path / "run", TASK="Blobs")
    config = Run.open(tmp_path / "run").config
    assert isinstance(config, FinetuneConfig)
    assert config.auxiliary["mine:Entropy"] == {"weight": 0.1, "batch_size": 4}
    (entropy,) = re.findall(r"^1,mine:Entropy/entropy,(.+)$", (tmp_path / "run/metrics.csv").read_text(), re.MULTILINE)
    assert 0 < float(entropy) <= 0.1 * np.log(2)  # of two classes, times its weight


def test_a_layout_by_its_place(run_line: Callable[..., None], tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 1, (20, 20, 4)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    for patient in ("p1", "p2", "p3", "p4"):
        folder = tmp_path / "Lesions" / patient
        folder.mkdir(parents=True)
        mask[2:6, 2:6] = 1
        for name, array in (("flair", image + int(patient[1])), ("seg", mask)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{patient}_{name}.nii.gz")
    run_line("hssl aggregate", FOLDER=tmp_path / "Lesions", STORE=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert [case.id for case in store.cases("Lesions")] == ["p1", "p2", "p3", "p4"]
    assert store.tasks["Lesions"].labels == {1: "lesion"}
    # Evaluation finds the source again, by the name that the store keeps.
    again = store.source_case(next(iter(store.cases("Lesions"))))
    assert np.array_equal(again.read_label(), mask)
    assert json.loads((tmp_path / "store" / "index.json").read_text())["tasks"]["Lesions"]["layout"] == "mine:LAYOUT"
