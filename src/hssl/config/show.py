"""A configuration as YAML that explains itself, and defaults in words; all of it read from the models."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

import yaml
from pydantic import BaseModel

from hssl.config.base import StageConfig, model_of
from hssl.config.network import PRESETS, NetworkConfig

WIDTH = 100
"""Columns of a comment."""


@dataclass(frozen=True)
class Chosen:
    """Options of what is chosen by name, which the stage's model holds as a plain mapping.

    Attributes:
        options: All of them.
        about: What the choice is, for a comment.
        on: Whether it is chosen; the options of what is off are shown as comments.
    """

    options: StageConfig
    about: str = ""
    on: bool = True


Parts = Mapping[str, Chosen | Mapping[str, Chosen]]
"""What stands behind the plain mappings of a stage: the objective's options, and each auxiliary's by its name."""


def option_values(config: StageConfig, parts: Parts | None = None) -> dict[str, Any]:
    """All options of a stage as JSON has them, those of `parts` spelled out; one that has to be given is None."""
    values = dict.fromkeys(type(config).model_fields) | config.model_dump(mode="json")
    for name, part in (parts or {}).items():
        if isinstance(part, Chosen):
            values[name] = _dumped(part)
        else:
            values[name] = {key: _dumped(each) if each.on else False for key, each in part.items()}
    return values


def as_yaml(config: StageConfig, parts: Parts | None = None) -> str:
    """:func:`option_values` as YAML with a comment above each; it can be read back as a file of options."""
    return "\n".join(_lines(type(config), option_values(config, parts), parts or {}))


def descriptions(cls: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a configuration and its bases say about each field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def default_in_words(cls: type[StageConfig], name: str) -> str:
    """The default of an option as one would type it; empty where it has none."""
    value = cls.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, NetworkConfig):
        return next((preset for preset in PRESETS if NetworkConfig.model_validate(preset) == value), "")
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, str | int | float) else ""


def _dumped(part: Chosen) -> dict[str, Any]:
    return part.options.model_dump(mode="json")


def _lines(cls: type[BaseModel], values: Mapping[str, Any], parts: Parts) -> list[str]:
    described, lines = descriptions(cls), []
    for name, value in values.items():
        part, inner = parts.get(name), model_of(cls.model_fields[name].annotation)
        about = part.about if isinstance(part, Chosen) else ""
        lines += _comment(" ".join(filter(None, (described.get(name), about))))
        if isinstance(part, Chosen):
            lines += _block(name, _lines(type(part.options), value, {}))
        elif part is not None:
            lines += _block(name, [line for key, each in part.items() for line in _choice(key, each)])
        elif inner is not None and isinstance(value, dict):
            lines += _block(name, _lines(inner, value, {}))
        elif isinstance(value, dict):
            lines += _block(name, [f"{_flow(key)}: {_flow(each)}" for key, each in value.items()])
        else:
            lines.append(f"{_flow(name)}: {_flow(value)}")
    return lines


def _choice(name: str, part: Chosen) -> list[str]:
    """One name of a mapping of choices; of one that is off, the options follow as comments."""
    block = _block(name, _lines(type(part.options), _dumped(part), {}))
    if part.on:
        return [*_comment(part.about), *block]
    off = [f"{_flow(name)}: false", "# With these options instead of 'false' it is on:"]
    return [*_comment(part.about), *off, *(f"# {line}" for line in block)]


def _block(name: str, below: list[str]) -> list[str]:
    return [f"{_flow(name)}:", *(f"  {line}" for line in below)] if below else [f"{_flow(name)}: {{}}"]


def _comment(text: str) -> list[str]:
    """`text` of a docstring as lines of a comment, in the words of YAML."""
    text = re.sub(r"\bNone\b", "null", re.sub(r"`+([^`]+)`+", r"'\1'", text))
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ") if text else []


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("...\n").rstrip()
