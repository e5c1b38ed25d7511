from __future__ import annotations

import pytest
import yaml
from pydantic import Field, PositiveInt

from hssl.config import (
    AggregateConfig,
    Chosen,
    FinetuneConfig,
    NetworkConfig,
    PretrainConfig,
    StageConfig,
    as_yaml,
    default_in_words,
    option_values,
)
from hssl.config.base import parse_yaml
from hssl.config.show import WIDTH, descriptions


class Inner(StageConfig):
    """What is inside.

    Attributes:
        depth: How deep; None is ``auto``.
        weights: Weight of each part.
    """

    depth: PositiveInt | None = None
    weights: dict[str, float] = Field(default={"a": 0.5, "b": 2.0})


def test_options_of_a_choice_stand_below_its_field_with_their_own_comments() -> None:
    config = PretrainConfig()
    text = as_yaml(config, {"options": Chosen(Inner(), "Below are those of 'mine'.")})
    assert (
        "\n# Options of the objective, by name. Below are those of 'mine'.\n"
        "options:\n"
        "  # How deep; null is 'auto'.\n"
        "  depth: null\n"
        "  # Weight of each part.\n"
        "  weights:\n"
        "    a: 0.5\n"
        "    b: 2.0\n"
        "# A preset"
    ) in text
    assert yaml.safe_load(text)["options"] == {"depth": None, "weights": {"a": 0.5, "b": 2.0}}


def test_what_is_off_shows_its_options_as_comments() -> None:
    chosen = {"mine.aux:Own": Chosen(Inner(), "Ours."), "other": Chosen(StageConfig(), "", on=False)}
    text = as_yaml(FinetuneConfig(task="A"), {"auxiliary": chosen | {"silent": Chosen(Inner(depth=3), on=False)}})
    assert "\n  # Ours.\n  mine.aux:Own:\n    # How deep" in text
    assert (
        "\n  other: false\n  # With these options instead of 'false' it is on:\n  # other: {}\n"
        "  silent: false\n"
        "  # With these options instead of 'false' it is on:\n"
        "  # silent:\n"
        "  #   # How deep; null is 'auto'.\n"
        "  #   depth: 3\n"
    ) in text
    assert yaml.safe_load(text)["auxiliary"] == {
        "mine.aux:Own": {"depth": None, "weights": {"a": 0.5, "b": 2.0}},
        "other": False,
        "silent": False,
    }


@pytest.mark.parametrize(
    "config",
    [
        AggregateConfig(splits={"A": {"test": ["003", "b"]}}, channel="T1w", window=(-100, 300)),
        PretrainConfig(tasks=("A",), precision="32", groups={"A": "1"}, view={"flip": (0.5, 0)}, network="large"),
        FinetuneConfig(task="#1: heart", label_budget=("003", "4"), auxiliary={"pretext": False}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_text_reads_back_as_the_same_configuration(config: StageConfig) -> None:
    text = as_yaml(config)
    assert type(config).checked(parse_yaml(text)) == config
    assert yaml.safe_load(as_yaml(config)) == option_values(config)
    assert max(map(len, (line for line in text.splitlines() if line.startswith("#")))) <= WIDTH


def test_an_option_that_has_to_be_given_is_empty_in_a_template() -> None:
    values = option_values(FinetuneConfig.model_construct())
    assert values["task"] is None
    assert list(values) == list(FinetuneConfig.model_fields)


@pytest.mark.parametrize("cls", [AggregateConfig, PretrainConfig, FinetuneConfig, NetworkConfig])
def test_every_option_is_explained(cls: type[StageConfig]) -> None:
    assert set(cls.model_fields) <= set(descriptions(cls))


@pytest.mark.parametrize(
    ("cls", "name", "words"),
    [
        (PretrainConfig, "network", "small"),
        (PretrainConfig, "steps", "1250"),
        (PretrainConfig, "loggers", "tensorboard"),
        (PretrainConfig, "tasks", ""),
        (FinetuneConfig, "label_budget", "100%"),
        (FinetuneConfig, "task", ""),
        (AggregateConfig, "fractions", "0.6 0.15 0.25"),
    ],
)
def test_defaults_in_words(cls: type[StageConfig], name: str, words: str) -> None:
    assert default_in_words(cls, name) == words
