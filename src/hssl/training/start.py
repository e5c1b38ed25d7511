"""Where a training starts: new weights, or those of an earlier run, and what that run saw."""

from __future__ import annotations

from hssl.config import SCRATCH, FinetuneConfig, PretrainConfig
from hssl.errors import ConfigError, RunError
from hssl.files import file_sha256
from hssl.networks import UNet
from hssl.runs.run import INIT_HASH, WEIGHTS, Run, RunInfo, load_unet
from hssl.store import Store


def load_start(config: PretrainConfig | FinetuneConfig, store: Store) -> tuple[UNet, Run] | None:
    """The encoder-decoder that `config.init` names and its run; None for a start from scratch.

    Raises:
        ConfigError: The options name another network than that of the run.
        RunError: There is no complete run, or it has seen test subjects of this store.
    """
    if config.init == SCRATCH:
        return None
    network, source = load_unet(config.init)
    if "network" in config.model_fields_set and config.network != source.info.network:
        raise ConfigError(
            "option 'network' is not that of this run to start from",
            path=source.path,
            hint="leave it out: the run brings its own; 'hssl config show' writes it into files, remove it there",
        )
    # Another store may hold the same challenge with another split: its test subjects may have been seen.
    for task in store.tasks:
        if leaked := sorted(source.seen(store, task).intersection(store.split(task).test)):
            raise RunError(
                f"was trained on '{leaked[0]}', a test subject of task '{task}' in this store",
                path=source.path,
                hint="pre-train on this store",
            )
    return network.train(), source


def with_source(info: RunInfo, source: Run) -> RunInfo:
    """`info` of a run that starts from `source`: its network, all that both see, and a hash of the weights."""

    def joined(own: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, list[str]]:
        return {task: sorted({*own.get(task, []), *other.get(task, [])}) for task in sorted({*own, *other})}

    digest = file_sha256(source.path / WEIGHTS)
    return info.model_copy(
        update={
            "network": source.info.network,
            "subjects_seen": joined(info.subjects_seen, source.info.subjects_seen),
            "masks_seen": joined(info.masks_seen, source.info.masks_seen),
            "provenance": {**info.provenance, INIT_HASH: digest},
        }
    )
