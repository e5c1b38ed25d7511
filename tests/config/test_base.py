from __future__ import annotations

import json
from pathlib import Path

import pytest

from hssl.benchmark import Experiment
from hssl.config import AggregateConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from hssl.errors import ConfigError

STAGES = [
    AggregateConfig(),
    AggregateConfig(channel=2, window=(-100, 300.5), spacing=(0.5, 1), orientation="LPS", fractions=(0.5, 0.25, 0.25)),
    AggregateConfig(channel="T1w", layout="nnunet", skip_bad=True, workers=2),
    PretrainConfig(),
    PretrainConfig(
        tasks=("A", "B"),
        options={"weights": {"image": 0.5}, "points": 3},
        network="large",
        groups={"A": "x", "B": "y"},
        view={"scale": (0.5, 1.5), "flip": (0.5, 0)},
    ),
    FinetuneConfig(task="A"),
    FinetuneConfig(
        task="A", label_budget=3, init="run", network={"features": (4, 8, 8), "strides": ((1, 1), (2, 1), (2, 2))}
    ),
    FinetuneConfig(task="A", label_budget=("a", "b"), network="base", validation=False, workers=0, window_size=128),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "options.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("config", STAGES, ids=lambda config: type(config).__name__)
def test_round_trip_through_json(config):
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()


@pytest.mark.parametrize("config", STAGES, ids=lambda config: type(config).__name__)
def test_a_saved_configuration_can_be_loaded(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(indent=1))
    assert type(config).load(path) == config


def test_yaml(tmp_path):
    path = write(
        tmp_path,
        "steps: 20\nlearning_rate: 1.0e-2\nnetwork: small\ngroups: {A: x}\ntasks: [A, B]\nview:\n  scale: [0.5, 2]\n",
    )
    config = PretrainConfig.load(path)
    assert (config.steps, config.learning_rate, config.tasks) == (20, 0.01, ("A", "B"))
    assert config.network == NetworkConfig.model_validate("small")
    assert config.groups == {"A": "x"}
    assert config.view.scale == (0.5, 2.0)
    assert config.batch_size == PretrainConfig().batch_size


def test_overrides(tmp_path):
    path = write(tmp_path, "steps: 20\nseed: 3\n")
    config = PretrainConfig.load(path, steps=30)
    assert (config.steps, config.seed) == (30, 3)
    window = write(tmp_path, "window: [-100, 200]\n")
    assert AggregateConfig.load(window).window == (-100, 200)
    assert AggregateConfig.load(window, window=None).window is None
    assert PretrainConfig.load(seed=4).seed == 4


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_is_the_defaults(tmp_path, text):
    assert PretrainConfig.load(write(tmp_path, text)) == PretrainConfig()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PretrainConfig, {"stepz": 3}, "no option 'stepz'; did you mean 'steps'?"),
        (PretrainConfig, {"steps": 0}, "option 'steps'"),
        (PretrainConfig, {"steps": "many"}, "option 'steps'"),
        (PretrainConfig, {"learning_rate": -1}, "option 'learning_rate'"),
        (PretrainConfig, {"learning_rate": float("inf")}, "option 'learning_rate'"),
        (PretrainConfig, {"learning_rate": float("nan")}, "option 'learning_rate'"),
        (PretrainConfig, {"task_sampling_exponent": 1.5}, "option 'task_sampling_exponent'"),
        (PretrainConfig, {"precision": "16"}, "option 'precision'"),
        (PretrainConfig, {"network": "huge"}, "option 'network'.*no network preset 'huge'.*small, base, large"),
        (PretrainConfig, {"network": {"features": [4, 8]}}, "option 'network'.*at least 3 stages"),
        (PretrainConfig, {"network": {"features": 16}}, "option 'network.features'"),
        (PretrainConfig, {"network": {"features": [4, 8, 8], "blocks": [1, 1]}}, "option 'network'"),
        (PretrainConfig, {"network": {"features": [4, 8, 8], "kernels": [[3, 3]] * 2}}, "option 'network'"),
        (PretrainConfig, {"network": {"features": [4, 8, 8], "kernels": [[3, 3], [2, 3], [3, 3]]}}, "kernel.*odd"),
        (PretrainConfig, {"network": {"features": [4, 8, 8], "strides": [[2, 2]] * 3}}, "first stride"),
        (PretrainConfig, {"network": {"width": 3}}, "no option 'network.width' \\("),
        (PretrainConfig, {"network": {"featurs": 3}}, "no option 'network.featurs'; did you mean 'network.features'"),
        (PretrainConfig, {"view": {"flp": [0, 0]}}, "no option 'view.flp'; did you mean 'view.flip'"),
        (AggregateConfig, {"splits": {"A": {"tset": []}}}, "no option 'splits.A.tset'; did you mean 'splits.A.test'"),
        (Experiment, {"store": "s", "arms": {"a": {"domain": 1}}}, "'arms.a.domain'; did you mean 'arms.a.domains'"),
        (FinetuneConfig, {"task": "A", "auxiliary": {"pretxt": True}}, "auxiliary 'pretxt'; did you mean 'pretext'"),
        (PretrainConfig, {"objective": "simclear"}, "objective 'simclear'; did you mean 'simclr'"),
        (AggregateConfig, {"layout": "nfti"}, "layout 'nfti'; did you mean 'nifti'"),
        (PretrainConfig, {"view": {"scale": [1.5, 0.5]}}, r"option 'view'.*\(smallest, largest\)"),
        (PretrainConfig, {"view": {"rotate": 200}}, "option 'view.rotate'"),
        (PretrainConfig, {"window_size": 64}, "window_size must not be smaller than patch_size"),
        (FinetuneConfig, {}, "option 'task': has to be given"),
        (PretrainConfig, {"view": {"flip": 0.5}}, "option 'view.flip': should be a list \\("),
        (PretrainConfig, {"steps": 0.5}, "option 'steps': should be a whole number"),
        (AggregateConfig, {"splits": {"A": ["p00"]}}, r"option 'splits.A': should be \{val: \[...\], test: \[...\]\}"),
        (AggregateConfig, {"splits": {"A": {"train": []}}}, "option 'splits.A': .*leave 'train' out"),
        (Experiment, {"store": "s", "arms": {"a": {}}, "label_budgets": [0.05]}, 'write a share as "5%", not 0.05'),
        (
            FinetuneConfig,
            {"task": "A", "label_budget": 0},
            "option 'label_budget': should be text or should be greater than 0",
        ),
        (FinetuneConfig, {"task": "A", "foreground": 2}, "option 'foreground'"),
        (AggregateConfig, {"fractions": [0.5, 0.1, 0.1]}, "fractions must add up to 1"),
        (AggregateConfig, {"window": [3, 3]}, "json: a window is .* low < high"),
        (AggregateConfig, {"orientation": "LRS"}, "three letters"),
        (AggregateConfig, {"orientation": "PL"}, "three letters"),
        (AggregateConfig, {"layout": "zip"}, "option 'layout'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(kind, values, message, tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps(values).replace("Infinity", "1e999").replace("NaN", '"nan"'))
    for attempt in (lambda: kind.load(path), lambda: kind.checked(values, path=path)):
        with pytest.raises(ConfigError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", ["steps: [", "- steps", "just text", "\ta: b"])
def test_files_that_hold_no_options(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        PretrainConfig.load(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        PretrainConfig.load(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        PretrainConfig.load(tmp_path / "binary.yaml")


def test_values_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        PretrainConfig().steps = 3


@pytest.mark.parametrize("kind", [AggregateConfig, PretrainConfig, FinetuneConfig, Experiment])
def test_options_that_nobody_knows_are_refused(kind):
    with pytest.raises(ConfigError, match="no option 'magic'"):
        kind.checked({"magic": 1})


def aliases(levels, each):
    lines = ["a0: &a0 [1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * each)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"steps: {'[' * 2000}{']' * 2000}", "nested more than 50 levels deep"),
        (f"steps: {'[' * 60}{']' * 60}", "nested more than 50 levels deep"),
        (aliases(60, 1), "nested more than 50 levels deep"),
        ("steps: &x [*x]", "nested more than 50 levels deep"),
        (aliases(20, 9), "holds more than 1,000,000 values"),
        ("steps: 1\nseed: 2\nsteps: 3", "names 'steps' twice"),
        ("view: {scale: [1, 1], scale: [2, 2]}", "names 'scale' twice"),
        ("steps: 2001-13-45", "a value cannot be read: month must be in 1..12"),
        (f"steps: {'9' * 5000}", "a value cannot be read: Exceeds the limit"),
        ("steps: !!bool x", "a value cannot be read"),
        ("steps: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_odd_yaml_is_one_line(text, message, tmp_path):
    with pytest.raises(ConfigError, match=f"options.yaml: not a readable YAML file: .*{message}") as error:
        PretrainConfig.load(write(tmp_path, text))
    assert "\n" not in str(error.value)
