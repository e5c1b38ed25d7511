"""What can be chosen by name: objectives, auxiliaries, layouts and export formats, one line each.

The command line, the validation of options and the contract tests are derived from these registries. A value is
imported when it is first used, so that listing names costs nothing. An extension that is not part of this package is
named by its place, ``my_package.my_module:MyObjective``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from hssl.errors import ConfigError, first_line

Base = TypeVar("Base")


class Registry(Mapping[str, Any]):
    """Names and where their values are.

    Args:
        kind: What it lists, in one word, for messages.
        places: ``module:attribute`` by name; the first name is the default.
    """

    def __init__(self, kind: str, places: Mapping[str, str]) -> None:
        self.kind = kind
        self._places = dict(places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Any:
        """The value of a name, or of a place ``module:attribute``.

        Raises:
            ConfigError: The name is unknown, or the place cannot be imported.
        """
        self.check(name)
        module, _, attribute = self._places.get(name, name).partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # whatever a module of somebody else's raises while it is imported
            if name in self._places:
                raise
            raise ConfigError(
                f"{self.kind} '{name}' cannot be imported: {type(error).__name__}: {first_line(error)}",
                hint="write module:name; the module must be installed, or lie in a folder of PYTHONPATH",
            ) from error

    def subclass(self, name: str, base: type[Base]) -> type[Base]:
        """The class of a name, or of a place ``module:Class``.

        Raises:
            ConfigError: There is no such class, or it is not a subclass of `base`.
        """
        found = self[name]
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{self.kind} '{name}' is not a subclass of {base.__module__}.{base.__name__}",
                hint=f"derive it from {base.__name__}",
            )
        return found

    def check(self, name: str) -> str:
        """Returns `name` if it is registered, or has the form of a place; nothing is imported.

        Raises:
            ConfigError: It is neither registered nor a place.
        """
        if name in self._places or ":" in name:
            return name
        close = get_close_matches(name, self._places, 1)
        question = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"no {self.kind} '{name}'{question}", hint=f"choose one of {self.listed}")

    @property
    def listed(self) -> str:
        """All names, with commas."""
        return ", ".join(self._places)


OBJECTIVES = Registry(
    "objective",
    {
        "hierarchical": "hssl.objectives.hierarchical:Hierarchical",
        "simclr": "hssl.objectives.simclr:SimCLR",
        "byol": "hssl.objectives.byol:BYOL",
        "rotation": "hssl.objectives.rotation:Rotation",
        "jigsaw": "hssl.objectives.jigsaw:Jigsaw",
        "genesis": "hssl.objectives.genesis:Genesis",
        "global_local": "hssl.objectives.global_local:GlobalLocal",
        "masked": "hssl.objectives.masked:Masked",
    },
)
AUXILIARIES = Registry(
    "auxiliary",
    {
        "pretext": "hssl.training.auxiliary.pretext:Pretext",
        "self_training": "hssl.training.auxiliary.self_training:SelfTraining",
    },
)
LAYOUTS = Registry(
    "layout",
    {
        "msd": "hssl.sources.msd:LAYOUT",
        "nnunet": "hssl.sources.nnunet:LAYOUT",
        "nifti": "hssl.sources.nifti:LAYOUT",
        "images2d": "hssl.sources.images2d:LAYOUT",
        "dicom": "hssl.sources.dicom:LAYOUT",
    },
)
EXPORTS = Registry(
    "export format",
    {
        "nnunet": "hssl.export.nnunet:write_nnunet",
        "monai-bundle": "hssl.export.monai_bundle:write_bundle",
        "onnx": "hssl.export.onnx:write_onnx",
        "hub": "hssl.export.hub:write_hub",
    },
)
