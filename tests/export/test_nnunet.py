"""The file for nnU-Net, without nnU-Net: names and values. test_nnunet_transfer.py has nnU-Net load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl.config import NetworkConfig
from hssl.errors import ConfigError, RunError
from hssl.export import export_run
from hssl.export.nnunet import adaptation_plan, architecture_kwargs
from hssl.networks.plans import read_plans
from hssl.runs import load_unet

from .conftest import PLAIN, RESIDUAL, TASK, MakeRun


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize("task", [None, TASK])
def test_every_name_of_a_plain_unet_is_there(make_run: MakeRun, tmp_path: Path, task: Any) -> None:
    run = make_run(PLAIN, task)
    named = load(export_run(run, "nnunet", tmp_path / "new" / "x.pth"))["network_weights"]
    ours = load_unet(run)[0].state_dict()
    # 136 in nnU-Net's own network of three stages, 4 of them of segmentation heads.
    assert len(named) == 132
    assert len(ours) == 44
    for name in (
        "encoder.stages.1.0.convs.1.conv.weight",
        "encoder.stages.1.0.convs.1.all_modules.0.weight",
        "decoder.encoder.stages.1.0.convs.1.conv.weight",
        "decoder.encoder.stages.1.0.convs.1.all_modules.0.weight",
    ):
        assert torch.equal(named[name], ours["encoder.stages.1.1.conv.weight"])
    assert torch.equal(named["decoder.stages.0.convs.1.all_modules.1.bias"], ours["decoder.stages.0.1.norm.bias"])
    assert torch.equal(named["decoder.transpconvs.1.weight"], ours["decoder.transpconvs.1.weight"])
    assert not any("module." in name or "all_modules" in name.partition("all_modules")[2] for name in named)


def test_names_of_a_residual_unet(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(RESIDUAL)
    named = load(export_run(run, "nnunet", tmp_path / "x.pth"))["network_weights"]
    ours = load_unet(run)[0].state_dict()
    for theirs, own in {
        "encoder.stem.convs.0.conv.weight": "encoder.stem.0.conv.weight",
        "decoder.encoder.stem.convs.0.all_modules.1.bias": "encoder.stem.0.norm.bias",
        "encoder.stages.1.blocks.0.conv2.all_modules.0.bias": "encoder.stages.1.0.conv2.conv.bias",
        "encoder.stages.1.blocks.0.skip.1.conv.weight": "encoder.stages.1.0.skip.1.conv.weight",
        "encoder.stages.2.blocks.1.conv1.norm.weight": "encoder.stages.2.1.conv1.norm.weight",
    }.items():
        assert torch.equal(named[theirs], ours[own])
    encoder = sum(name.startswith("encoder.") for name in ours)
    blocks = sum(name.startswith("decoder.stages.") for name in ours)
    assert len(named) == 4 * encoder + 2 * blocks + 4


def test_aliases_share_their_tensor(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(NetworkConfig(features=(16, 32, 32)))
    path = export_run(run, "nnunet", tmp_path / "x.pth")
    assert path.stat().st_size < 1.5 * (run / "weights.safetensors").stat().st_size


def plans(tmp_path: Path, network: NetworkConfig, patch: list[int], **changes: Any) -> Path:
    described = adaptation_plan(network, 1)["architecture_plans"]
    configuration = {
        "architecture": {
            "network_class_name": described["arch_class_name"],
            "arch_kwargs": {**described["arch_kwargs"], **changes.pop("kwargs", {})},
            "_kw_requires_import": described["arch_kwargs_requiring_import"],
        },
        "patch_size": patch,
        "normalization_schemes": ["ZScoreNormalization"],
        "batch_size": 12,
        **changes,
    }
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"2d": configuration}}))
    return path


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL, NetworkConfig(features=(4, 4, 8), kernels=((1, 3),) * 3)])
def test_plans_are_read_back(tmp_path: Path, network: NetworkConfig) -> None:
    assert read_plans(plans(tmp_path, network, [16, 16])) == (network, 16)


def test_the_patch_is_the_longer_side_in_steps_of_the_divisor(tmp_path: Path) -> None:
    network = NetworkConfig(features=(4, 4, 4, 4), strides=((1, 1), (2, 2), (2, 1), (2, 1)))
    assert read_plans(plans(tmp_path, network, [40, 36]))[1] == 40
    assert read_plans(plans(tmp_path, network, [40, 42]))[1] == 48


def test_one_number_stands_for_every_stage(tmp_path: Path) -> None:
    short = {"kernel_sizes": 3, "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2, "strides": [1, 2, 2]}
    assert read_plans(plans(tmp_path, PLAIN, [16, 16], kwargs=short))[0] == PLAIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization_schemes": ["Z", "Z"]}, "images of 2 channels"),
        ({"kwargs": {"norm_op": "torch.nn.BatchNorm2d"}}, "needs norm_op"),
        ({"kwargs": {"squeeze_excitation": True}}, "needs squeeze_excitation"),
        ({"kwargs": {"conv_op": "torch.nn.Conv3d"}}, "needs conv_op"),
        ({"kwargs": {"strides": [[2, 2]] * 3}}, "first stride must be"),
        ({"architecture": {"network_class_name": "a.Primus", "arch_kwargs": {}}}, "class 'Primus'"),
        ({"architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}}}, "does not say 'conv_bias'"),
        ({"architecture": None}, "holds no plan with an architecture"),
        ({"patch_size": [16, 16, 16]}, "holds no plan with an architecture"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_plans(plans(tmp_path, PLAIN, [16, 16], **change))
    assert "nnUNetPlans.json" in str(caught.value)


def test_files_that_are_no_plans_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("not JSON")
    for name, message in {"list": "holds no plan", "text": "holds no plan", "none": "cannot be read"}.items():
        with pytest.raises(ConfigError, match=message):
            read_plans(tmp_path / f"{name}.json")


def test_the_adaptation_plan_says_where_the_weights_are(make_run: MakeRun, tmp_path: Path) -> None:
    for network in (PLAIN, RESIDUAL):
        content = load(export_run(make_run(network), "nnunet", tmp_path / f"{network.encoder}.pth"))
        plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
        assert plan["recommended_downstream_patchsize"] == [16, 16]
        assert plan["architecture_plans"]["arch_kwargs"] == architecture_kwargs(network)
        for key in (plan["key_to_encoder"], plan["key_to_stem"], *plan["keys_to_in_proj"]):
            assert any(name.startswith(f"{key}.") for name in weights)
        for key in plan["keys_to_in_proj"]:
            assert weights[f"{key}.weight"].shape[1] == 1


def test_what_cannot_be_exported_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no export format 'keras'.*one of nnunet"):
        export_run(make_run(), "keras", tmp_path / "x")
    with pytest.raises(RunError, match="not a run folder"):
        export_run(tmp_path / "nothing", "nnunet", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
    (tmp_path / "x.pth").write_bytes(b"another run's")
    for kind in ("nnunet", "onnx"):
        with pytest.raises(ConfigError, match="already exists"):
            export_run(make_run(), kind, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").read_bytes() == b"another run's"
