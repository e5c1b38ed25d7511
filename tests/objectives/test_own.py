"""The objective that docs/how-to/own-objective.md writes out does what the page says."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hssl.networks import UNet
from hssl.objectives import Domains, PretrainBatch, build_objective

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-objective.md"


def test_the_objective_of_the_page_learns(
    network: UNet, make_batch: Callable[..., PretrainBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("own_objective")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pydantic looks for the names of types
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    name = "own_objective:Denoising"
    objective, batch = build_objective(name, network, Domains(("A",), (-1,)), {"weight": 2}), make_batch(4)
    optimiser = torch.optim.Adam([*network.parameters(), *objective.parameters()], 0.01)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = objective(network, batch)["pixel"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
