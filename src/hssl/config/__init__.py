"""One pydantic model per stage: validated before anything runs, saved with every run, read back on resume."""

from hssl.config.aggregate import AggregateConfig, GivenSplit
from hssl.config.base import (
    SCRATCH,
    Fraction,
    StageConfig,
    merge,
    parse_label_budget,
    parse_names,
    parse_yaml,
    read_mapping,
    split_slices,
)
from hssl.config.finetune import FinetuneConfig
from hssl.config.network import PRESETS, HeadKind, NetworkConfig
from hssl.config.pretrain import PretrainConfig
from hssl.config.show import Chosen, as_yaml, default_in_words, option_values
from hssl.config.training import TrainingConfig
from hssl.config.view import ViewConfig

__all__ = [
    "PRESETS",
    "SCRATCH",
    "AggregateConfig",
    "Chosen",
    "FinetuneConfig",
    "Fraction",
    "GivenSplit",
    "HeadKind",
    "NetworkConfig",
    "PretrainConfig",
    "StageConfig",
    "TrainingConfig",
    "ViewConfig",
    "as_yaml",
    "default_in_words",
    "merge",
    "option_values",
    "parse_label_budget",
    "parse_names",
    "parse_yaml",
    "read_mapping",
    "split_slices",
]
