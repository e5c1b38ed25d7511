"""YAML in, validated options out, and the message for a mistake."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hssl.errors import ConfigError, first_line
from hssl.registry import Registry

SCRATCH = "scratch"
"""The value of `init` for a start without loaded weights."""

Fraction = Annotated[float, Field(ge=0, le=1)]
# YAML reads a bare 32 as a number, and `hssl groups -o FILE.json` writes numbers for the names of groups.
number_as_text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
SubjectName = Annotated[str, number_as_text]


class _Yaml(yaml.SafeLoader):
    """YAML whose whole numbers are decimal: 003 is a name, as of a subject, and neither 3 nor octal."""


_INT = "tag:yaml.org,2002:int"
_LARGEST, _DEEPEST = 1_000_000, 50
_TOO_DEEP = f"is nested more than {_DEEPEST} levels deep"
_Yaml.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """What a YAML text holds; whole numbers are decimal, and one with a leading zero is a name.

    Raises:
        yaml.YAMLError: It is not YAML, names a key twice, or is larger or deeper than options are.
    """
    loader = _Yaml(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError(_TOO_DEEP) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # what PyYAML makes of 2001-13-45 and the like
        raise yaml.YAMLError(f"a value cannot be read: {first_line(error)}") from error
    finally:
        loader.dispose()


def _check_node(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], depth: int = 1) -> tuple[int, int]:
    """Counts the values and levels of a node; an alias counts each time it is used, so few lines may hold billions.

    Raises:
        yaml.YAMLError: There are too many, or a mapping names a key twice.
    """
    if depth > _DEEPEST:  # an alias that holds itself has no end
        raise yaml.YAMLError(_TOO_DEEP)
    if node not in known:
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
            if twice := next((key for key, count in keys.items() if count > 1), None):
                raise yaml.YAMLError(f"names '{twice}' twice")
            below = [each for pair in node.value for each in pair]
        else:
            below = node.value if isinstance(node, yaml.SequenceNode) else []
        counts = [_check_node(each, known, depth + 1) for each in below]
        known[node] = 1 + sum(size for size, _ in counts), 1 + max((levels for _, levels in counts), default=0)
    size, levels = known[node]
    if levels > _DEEPEST:
        raise yaml.YAMLError(_TOO_DEEP)
    if size > _LARGEST:
        raise yaml.YAMLError(f"holds more than {_LARGEST:,} values, most of them by aliases")
    return size, levels


def parse_names(text: str) -> list[str]:
    """The names in a text with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def split_slices(label_budget: Any) -> tuple[Any, int | None]:
    """A label budget and the slices of each case in it: ``3@5`` is 3 subjects, 5 slices of each of their cases.

    Raises:
        ValueError: There is no whole number above 0 behind the ``@``.
    """
    if not isinstance(label_budget, str) or "@" not in label_budget:
        return label_budget, None
    subjects, _, slices = label_budget.rpartition("@")
    if not slices.strip().isdecimal() or int(slices) < 1:
        raise ValueError(f"'{label_budget}' has no number of slices behind the @, as 3@5 has")
    return parse_label_budget(subjects), int(slices)


def parse_label_budget(text: str) -> str | int | list[str]:
    """``5%`` and ``3@5`` stay text, ``3`` is a number of subjects; ``a,b``, ``003`` and ``3,`` are lists of them."""
    text = text.strip()
    _, at, slices = text.rpartition("@")
    if text.endswith("%") or (at and slices.isdecimal()):
        return text
    return int(text) if text.isdecimal() and (text == "0" or not text.startswith("0")) else parse_names(text)


_KINDS = {
    r"a valid (tuple|list)": "a list",
    r"a valid dictionary( or instance of \w+)?": "names with values",
    r"a valid string": "text",
    r"a valid integer": "a whole number",
    r"a valid number": "a number",
    r"a valid boolean": "true or false",
}
"""What pydantic calls the kinds of values, and what one would say."""


class StageConfig(BaseModel):
    """Base of every configuration: unknown keys are errors, values are frozen once validated."""

    # Infinity and NaN have no place in the JSON that a run keeps.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def load(cls, path: Path | str | None = None, below: dict[str, Any] | None = None, /, **overrides: Any) -> Self:
        """Reads a YAML file, puts `overrides` on top, and validates.

        Args:
            path: A YAML (or JSON) file with any subset of the fields; None for the defaults.
            below: Fields that take the place of defaults.
            **overrides: Fields by name.

        Raises:
            ConfigError: The file cannot be read, or a value is not valid; the message names the field.
        """
        values = dict(below or {})
        if path is not None:
            values.update(read_mapping(path, "options", may_be_empty=True))
        return cls.checked(merge(values, overrides, ("auxiliary",)), path=path)

    @classmethod
    def over(cls, config: Self | None, **options: Any) -> Self:
        """`options` that are not None over a configuration, or over the defaults; what is not set stays unset.

        Raises:
            ConfigError: A value is not valid; the message names the field.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if config is not None and not given:
            return config
        values = {} if config is None else {name: getattr(config, name) for name in config.model_fields_set}
        return cls.checked(merge(values, given, ("auxiliary",)))

    @classmethod
    def checked(cls, values: dict[str, Any], *, path: Path | str | None = None, owner: str = "") -> Self:
        """Validates `values`; a mistake becomes a one-line :class:`ConfigError`, which begins with `owner`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(
                f"{owner}: " * bool(owner) + _told(error, cls),
                path=path,
                hint="'hssl config show STAGE' lists all options and what they may be",
            ) from error


def read_mapping(
    path: Path | str, what: str, line: str = "name: value", *, may_be_empty: bool = False
) -> dict[str, Any]:
    """Reads a YAML (or JSON) file of names and values.

    Args:
        path: The file.
        what: What it should hold, for messages.
        line: How a line of it looks, for messages.
        may_be_empty: Take an empty file for an empty mapping.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        loaded = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        hint = "give a YAML or JSON file in UTF-8; 'hssl config show STAGE' writes one"
        raise ConfigError(f"not a readable YAML file: {error}", path=path, hint=hint) from error
    if loaded is None and may_be_empty:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"holds no {what}", path=path, hint=f"write one '{line}' a line")
    return loaded


def registered(registry: Registry, name: str) -> str:
    """`name` if the registry knows it, for a validator.

    Raises:
        ValueError: The registry does not know it.
    """
    try:
        return registry.check(name)
    except ConfigError as error:
        raise ValueError(f"{error.what}, {error.hint}") from error


def merge(common: dict[str, Any], own: dict[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """`own` over `common`, level by level.

    Args:
        common: Values that `own` overrides.
        own: Values; a mapping is merged into a mapping name by name, and ``true`` leaves a mapping as it is.
        names: The only names whose mappings are merged and not replaced; None is all.
    """
    result = dict(common)
    for name, value in own.items():
        below = result.get(name)
        if isinstance(below, dict) and (names is None or name in names) and isinstance(value, dict):
            value = merge(below, value)
        elif isinstance(below, dict) and value is True:
            value = below
        result[name] = value
    return result


def _told(error: ValidationError, cls: type[StageConfig]) -> str:
    """The first mistake in one line, without pydantic's names of the kinds that a value may have."""
    mistakes = error.errors()
    # An unknown name comes first: it may be a misspelled one that is missing.
    first = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    name = _option(first)
    if first["type"] == "extra_forbidden":
        *outer, last = map(str, first["loc"])
        close = get_close_matches(last, _fields(cls, outer), 1)
        return f"no option '{name}'" + (f"; did you mean '{'.'.join([*outer, *close])}'?" if close else "")
    says = " or ".join(dict.fromkeys(_says(each) for each in mistakes if _option(each) == name))
    return f"option '{name}': {says}" if name else says


def _fields(cls: type[BaseModel], path: Sequence[str]) -> Collection[str]:
    """Names of the options at a place of a configuration; none where it has no options of its own."""
    kind: Any = cls
    for name in path:
        model = model_of(kind)
        # In a mapping of names to configurations, each name has the same options.
        kind = model.model_fields[name].annotation if model and name in model.model_fields else _values(kind)
    model = model_of(kind)
    return model.model_fields if model else ()


def _kinds(kind: Any) -> list[Any]:
    """The alternatives of a union; any other annotation is the only one."""
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def model_of(kind: Any) -> type[BaseModel] | None:
    """The model among the alternatives of an annotation; None without one."""
    found = (each for each in _kinds(kind) if isinstance(each, type) and get_origin(each) is None)
    return next((each for each in found if issubclass(each, BaseModel)), None)


def _values(kind: Any) -> Any:
    """What a mapping among the alternatives of an annotation holds; None without one."""
    return next((get_args(each)[1] for each in _kinds(kind) if get_origin(each) is dict), None)


def _option(mistake: ErrorDetails) -> str:
    # A value that may be of several kinds has a mistake for each, with the kind at the end of its place.
    parts = [str(part) for part in mistake["loc"]]
    while parts and (parts[-1] in ("str", "int", "bool", "constrained-int", "constrained-str") or "[" in parts[-1]):
        parts.pop()
    return ".".join(parts)


def _says(mistake: ErrorDetails) -> str:
    if mistake["type"] == "missing":
        return "has to be given"
    said = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    for kind, plain in _KINDS.items():
        said = re.sub(kind, plain, said)
    return said
