"""A run as a repository of the Hugging Face hub: its configuration, its weights and a model card.

The repository is a run folder, so whatever takes a run also takes ``hf://OWNER/NAME``. Paths and the name of the
machine stay behind; the ids of the subjects seen go along, because without them no leak could be found.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from hssl.errors import ConfigError, first_line, install
from hssl.evaluation import EvaluationResult
from hssl.files import new_folder, write_text
from hssl.runs.hub import CARD
from hssl.runs.run import CONFIG, INFO, WEIGHTS, Run
from hssl.text import markdown

logger = logging.getLogger(__name__)

_LOCAL = ("store_path", "machine")  # of the provenance: says something about the maker, nothing about the run


def write_hub(run: Path | str, output: Path) -> Path:
    """Writes a run as a folder that can be uploaded to the hub, with a model card to complete.

    A card that lies in the run folder is kept, so the result can be edited and pushed.

    Args:
        run: A complete run folder.
        output: The folder, new.

    Returns:
        `output`.

    Raises:
        RunError: `run` is not a complete run.
        ConfigError: `output` already exists.
    """
    opened = Run.open(run)
    with new_folder(output) as folder:
        write_run(opened, folder)
        own = opened.path / CARD
        write_text(folder / CARD, own.read_text(encoding="utf-8") if own.is_file() else model_card(opened))
    return output


def push(run: Path | str, repository: str, *, public: bool = False, replace_card: bool = False) -> str:
    """Uploads a run to the Hugging Face hub, as the user who is logged in there.

    A model card that already exists stays: somebody may have written in it.

    Args:
        run: A complete run folder, or what :func:`write_hub` made of it.
        repository: ``OWNER/NAME``; made if it is missing.
        public: Whether a new repository is public.
        replace_card: Replace an existing card by this run's.

    Returns:
        The address to use instead of a run folder, ``hf://OWNER/NAME``.

    Raises:
        RunError: `run` is not a complete run.
        ConfigError: huggingface_hub is missing, or the hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its transport
    except ImportError as error:
        raise ConfigError("pushing needs huggingface_hub", hint=install("hub")) from error
    repository = repository.removeprefix("hf://")
    if repository.count("/") != 1:
        raise ConfigError(f"'{repository}' is not a repository of the hub", hint="give OWNER/NAME")
    with TemporaryDirectory() as temporary:
        folder = write_hub(run, Path(temporary) / "repository")
        try:
            hub = HfApi(library_name="hssl")
            hub.create_repo(repository, private=not public, exist_ok=True)
            if not replace_card and hub.file_exists(repository, CARD):
                (folder / CARD).unlink()
                logger.info("the existing model card is kept; --replace-card replaces it by this run's")
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a run of hssl")
        except (OSError, ValueError, HTTPError) as error:  # the hub's own errors, and those of the way there
            raise ConfigError(
                f"cannot upload to '{repository}': {first_line(error)}", hint="log in with 'hf auth login'"
            ) from error
    return f"hf://{repository}"


def write_run(run: Run, folder: Path) -> None:
    """Writes what of a run others need into `folder`, without paths of this machine.

    Raises:
        RunError: The run is not complete.
    """
    run.load_weights()  # says so if they are missing or damaged
    shutil.copyfile(run.path / WEIGHTS, folder / WEIGHTS)
    config, info = run.config, run.info
    if not config.init.startswith("hf:"):
        config = config.model_copy(update={"init": Path(config.init).name})
    provenance = {name: value for name, value in info.provenance.items() if name not in _LOCAL}
    task = info.task and info.task.model_copy(update={"origin": "", "skipped": [], "duplicates": []})
    info = info.model_copy(update={"provenance": provenance, "task": task})
    write_text(folder / CONFIG, config.model_dump_json(indent=1))
    write_text(folder / INFO, info.model_dump_json(indent=1))


def model_card(run: Run) -> str:
    """A model card in Markdown, with the facts that the hub reads in front.

    Raises:
        RunError: The evaluation of its test subjects is damaged.
    """
    info = run.info
    data = info.provenance.get("data", {})
    facts: dict[str, Any] = {
        "library_name": "hssl",
        "license": "unknown",
        "pipeline_tag": "image-segmentation" if info.task else "image-feature-extraction",
        "tags": ["hssl", "medical", "segmentation", "self-supervised-learning"],
        "hssl": {
            "stage": info.stage,
            "tasks": sorted(info.subjects_seen),
            "store_sha256": data.get("store"),
            "split_sha256": data.get("split"),
        },
    }
    head = f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n"
    use = _USE_SEGMENTATION if info.task else _USE_FEATURES
    return head + about(run) + use + _AS_A_MODULE + scores(run) + seen_and_limits(run) + _LICENCE


def about(run: Run) -> str:
    """Heading and first lines: what the network is."""
    task = run.info.task
    if task is None:
        return _PRETRAINED
    preprocessing = task.preprocessing
    return _FINETUNED.format(
        task=markdown(task.name),
        labels=", ".join(f"{value} {markdown(name)}" for value, name in task.labels.items()),
        spacing=" x ".join(f"{side:g}" for side in preprocessing.spacing),
        window="{:g} to {:g}".format(*preprocessing.window) if preprocessing.window else "percentiles of each image",
    )


def scores(run: Run) -> str:
    """The means of ``RUN/evaluation/test.json`` as a section; empty where the test subjects were not evaluated.

    Raises:
        RunError: The file is damaged.
    """
    path = run.path / "evaluation" / "test.json"
    if not path.is_file():
        return ""
    result = EvaluationResult.load(path)
    rows = result.rows()
    lines = [" | ".join(rows[0]), "|".join("---" for _ in rows[0])]
    lines += [" | ".join(_cell(value) for value in row.values()) for row in rows]
    table = "\n".join(f"| {line} |" if " | " in line else f"|{line}|" for line in lines)
    leaked = ""
    if result.leaked:
        leaked = f" Training has seen {len(result.leaked)} of them, so this says nothing about new ones."
    return _SCORES.format(subjects=len({row.subject for row in result.scores}), leaked=leaked, table=table)


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else markdown(str(value))


def seen_and_limits(run: Run) -> str:
    """The subjects that training has seen, by task, and what the network is not for."""
    info = run.info
    seen = "\n".join(
        f"| {markdown(task)} | {len(subjects)} | {len(info.masks_seen.get(task, []))} |"
        for task, subjects in sorted(info.subjects_seen.items())
    )
    return _SEEN.format(seen=seen)


_PRETRAINED = """# A pre-trained U-Net for medical image segmentation

Encoder and decoder, pre-trained on scans without masks by `hssl`.
"""
_USE_FEATURES = """To fine-tune it:

    hssl finetune STORE -o RUN --task TASK --labels 5% --init hf://OWNER/NAME
"""
_FINETUNED = """# A U-Net that segments {task}

Fine-tuned with `hssl`. Labels: {labels}. It sees pixels of {spacing} mm and intensities scaled by {window}.
"""
_USE_SEGMENTATION = """To use it:

    hssl predict hf://OWNER/NAME IMAGE.nii.gz -o MASKS
"""
_AS_A_MODULE = """
As a `torch.nn.Module` with its features per stage:

    import hssl
    network = hssl.load("hf://OWNER/NAME")
    features = network.encode(images)   # images [B, 1, H, W] in [0, 1]; a list, shallow to deep

`hssl` is not on PyPI yet: whoever published this has its source, and `pip install '.[hub]'` in that folder installs it.
"""
_SCORES = """
## Scores

On the {subjects} test subjects of its task.{leaked}

{table}
"""
_SEEN = """
## What it has seen

| task | subjects | of them with mask |
|---|---|---|
{seen}

The ids of these subjects are in `run.json`: `hssl evaluate` refuses to score any of them.

## Limits

For research. Not a medical device, and not for decisions about patients. It knows scanners, sites and populations of
its data only; how well it does on others has to be measured there.
"""
_LICENCE = """
## Licence

To be chosen by whoever publishes this, under the terms of the data: put it in place of `license: unknown` above.
"""
