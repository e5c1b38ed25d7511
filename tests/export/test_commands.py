"""The commands of this room: what they pass on and print."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hssl.cli import main
from hssl.config import PretrainConfig

from .conftest import RESIDUAL, MakeRun
from .test_nnunet import plans


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PretrainConfig]:
    configs: list[PretrainConfig] = []

    def pretrain(store: Path, output: Path, *, config: PretrainConfig) -> SimpleNamespace:
        configs.append(config)
        return SimpleNamespace(path=output, info=SimpleNamespace(complete=True))

    monkeypatch.setattr("hssl.training.pretrain.pretrain", pretrain)
    return configs


def test_plans_give_network_and_patch_size(tmp_path: Path, asked: list[PretrainConfig]) -> None:
    command = ["pretrain", "store", "-o", "run", "--plans", str(plans(tmp_path, RESIDUAL, [40, 30]))]
    assert main(command) == 0
    assert main([*command, "--patch-size", "16"]) == 0
    assert [(config.network, config.patch_size) for config in asked] == [(RESIDUAL, 40), (RESIDUAL, 16)]


def test_the_patch_size_of_plans_is_that_where_nobody_set_one(tmp_path: Path, asked: list[PretrainConfig]) -> None:
    command = ["pretrain", "store", "-o", "run", "--plans", str(plans(tmp_path, RESIDUAL, [40, 30]))]
    (tmp_path / "some.yaml").write_text("patch_size: 64")
    assert main([*command, "--config", str(tmp_path / "some.yaml")]) == 0
    assert main([*command, "--set", "patch_size=32"]) == 0
    assert [config.patch_size for config in asked] == [64, 32]


def test_plans_and_a_preset_exclude_each_other(
    tmp_path: Path, asked: list[PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(plans(tmp_path, RESIDUAL, [40, 30]))
    assert main(["pretrain", "store", "-o", "run", "--plans", file, "--network", "small"]) == 2
    assert "--network and --plans both name the network" in capsys.readouterr().err
    assert asked == []


def test_export_prints_what_it_wrote(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.pth"
    assert main(["export", str(make_run()), "--to", "nnunet", "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.is_file()


def test_push_passes_on_who_may_see_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Any] = []

    def push(run: Path, repository: str, *, public: bool, replace_card: bool) -> str:
        given.append((run, repository, public, replace_card))
        return f"hf://{repository}"

    monkeypatch.setattr("hssl.export.push", push)
    assert main(["push", "run", "a/b"]) == 0
    assert main(["push", "run", "a/b", "--public", "--replace-card"]) == 0
    assert given == [(Path("run"), "a/b", False, False), (Path("run"), "a/b", True, True)]
    assert capsys.readouterr().out == "hf://a/b\n" * 2
