"""The ``hssl`` program: one thin command per stage that parses, calls its Python twin and prints.

Everything heavy is imported inside the commands, so that ``hssl --help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from hssl import __version__
from hssl.config import (
    PRESETS,
    AggregateConfig,
    Chosen,
    FinetuneConfig,
    PretrainConfig,
    StageConfig,
    as_yaml,
    default_in_words,
    option_values,
    parse_label_budget,
    parse_names,
    parse_yaml,
    read_mapping,
)
from hssl.errors import ConfigError, HsslError, write_hint
from hssl.machine import ends_as_interrupted
from hssl.registry import AUXILIARIES, EXPORTS, LAYOUTS, OBJECTIVES

if TYPE_CHECKING:
    from hssl.runs import Run
    from hssl.store import Store

Config = TypeVar("Config", bound=StageConfig)

app = typer.Typer(
    name="hssl",
    help="Learn from many scans without masks, once; then segment each task from a handful of masks.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "HSSL", "help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show the options of a stage.", rich_markup_mode=None)
app.add_typer(config_app, name="config")

STAGES: dict[str, type[StageConfig]] = {
    "aggregate": AggregateConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
}
"""The stages that take a configuration."""
VARIABLES = {"HSSL_DEBUG", "HSSL_DATA", "HSSL_WORKER_PIPE"}
"""Environment variables that are no option of a command."""

INTERRUPTED = 130


def _complete(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes a value in the shell by these names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _of(stage: type[StageConfig], field: str, text: str, *names: str, **more: Any) -> Any:
    """The typer option of a field of a stage; its help gives the field's default."""
    default = default_in_words(stage, field)
    return typer.Option(*names, help=f"{text} [default: {default}]" if default else text, **more)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with any options of this stage (hssl config show)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="Any option of the stage; repeatable."),
]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store that hssl aggregate wrote.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or hf://OWNER/NAME.")]
Device = Annotated[str | None, typer.Option(help="Device as torch names it; a GPU by default if there is one.")]
Components = Annotated[
    bool,
    typer.Option(
        "--components/--no-components",
        help="Keep the largest component of each label that is a single one in all labelled masks of the run.",
    ),
]
_CURVES = "Where curves go: tensorboard, wandb, mlflow; repeatable."
_LOGGERS = {"autocompletion": _complete(("tensorboard", "wandb", "mlflow"))}


def main(arguments: list[str] | None = None) -> int:
    """Runs the program and returns its exit code.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.

    Returns:
        0 when all went well, 2 when the user can correct it (one line on stderr says how), 130 when
        interrupted, 143 after SIGTERM. Any other exception is a bug and comes out as a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal may know no sign beyond ASCII, a file name may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = os.environ.get("HSSL_DEBUG", "").lower() in ("1", "true", "yes", "on") or "--debug" in arguments
    signals: list[int] = []
    try:
        with ends_as_interrupted() as signals:
            code = int(app(arguments or ["--help"], prog_name="hssl", standalone_mode=False) or 0)
    except (HsslError, OSError, typer.TyperException) as error:
        if debug:
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if isinstance(error, OSError) and (hint := write_hint(error)):
            text = f"{error.filename or 'the output'}: {error.strerror} ({hint})"
        sys.stderr.write(f"hssl: error: {' '.join(text.split())}\n")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns Ctrl-C into it by itself
        if arguments[:1] != ["view"]:  # which has no other end
            sys.stderr.write("hssl: interrupted; give the same command again\n")
        code = 128 + signals[0] if signals else INTERRUPTED
    return code


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"hssl {__version__}\n")
        raise typer.Exit


@app.callback()
def _program(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More about what is being done.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    from hssl import console

    console.configure(quiet=quiet, verbose=verbose or debug)
    _warn_of_unknown_variables()


@app.command()
def phantoms(
    output: Output,
    subjects: Annotated[int, typer.Option(min=1, help="Subjects in each challenge.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the anatomy and the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Write synthetic labelled challenges, to try everything on."""
    from hssl import console
    from hssl.phantoms import write_phantoms

    console.print_paths(write_phantoms(output, subjects=subjects, seed=seed), as_json=as_json)


@app.command()
def aggregate(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders of raw challenges.")],
    output: Output,
    layout: Annotated[
        str | None,
        typer.Option(help=f"Reader: {LAYOUTS.listed}. Recognised unless ambiguous.", autocompletion=_complete(LAYOUTS)),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Regular expression that finds the subject in a case id.")] = None,
    channel: Annotated[str | None, typer.Option(help="Channel to take of several, by name or number.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task, for a single source.")] = None,
    window: Annotated[tuple[float, float] | None, typer.Option(help="CT window in HU: low high.")] = None,
    spacing: Annotated[tuple[float, float] | None, typer.Option(help="In-plane spacing in mm: rows columns.")] = None,
    seed: Annotated[int | None, _of(AggregateConfig, "seed", "Seed of the split.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="YAML with a split of your own: FOLDER: {val: [...], test: [...]}.")
    ] = None,
    like_nnunet: Annotated[
        Path | None,
        typer.Option(
            metavar="PLANS.json", help="Spacing, window and orientation of nnU-Net's configuration 2d, for one source."
        ),
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="With --like-nnunet: test on what nnU-Net validates on in this fold.")
    ] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Leave bad cases out and list them.")] = None,
    follow_links: Annotated[
        bool | None, typer.Option("--follow-links", help="Read files that a dataset.json lists outside of its folder.")
    ] = None,
    accept_unchanged: Annotated[
        bool | None, typer.Option("--accept-unchanged", help="Take masks that are as they were exported, too.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; every core by default.")] = None,
    config: ConfigFile = None,
    options: Set = None,
    as_json: Json = False,
) -> None:
    """Put raw challenges into one store, or corrected masks of hssl suggest --export back into it."""
    from hssl import store

    below = _like_nnunet(like_nnunet, fold, sources, splits)
    checked = _load(
        AggregateConfig,
        config,
        options,
        below,
        layout=layout,
        subject=subject,
        channel=channel,
        task=task,
        window=window,
        spacing=spacing,
        seed=seed,
        splits=read_mapping(splits, "splits", "FOLDER: {val: [...], test: [...]}") if splits else None,
        skip_bad=skip_bad,
        follow_links=follow_links,
        accept_unchanged=accept_unchanged,
        workers=workers,
    )
    _print_store(store.aggregate(sources, output, config=checked), as_json=as_json)


@app.command()
def inspect(
    store: StorePath,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of all tasks to this PNG.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a store holds."""
    from hssl.store import Store, contact_sheet

    opened = Store.open(store)
    if verify:
        opened.verify()
    if sheet is not None:
        contact_sheet(opened, sheet)
    _print_store(opened, as_json=as_json)


@app.command()
def pretrain(
    store: StorePath,
    output: Output,
    tasks: Annotated[str | None, typer.Option(help="Tasks to learn from, with commas; all by default.")] = None,
    init: Annotated[
        str | None, _of(PretrainConfig, "init", "A run to start from, hf://OWNER/NAME, or scratch.")
    ] = None,
    objective: Annotated[
        str | None,
        _of(
            PretrainConfig,
            "objective",
            f"{OBJECTIVES.listed}, or module:Class of your own.",
            autocompletion=_complete(OBJECTIVES),
        ),
    ] = None,
    network: Annotated[
        str | None,
        _of(PretrainConfig, "network", "small (for a CPU), base or large.", autocompletion=_complete(PRESETS)),
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="nnUNetPlans.json: take network and patch size of its configuration 2d.")
    ] = None,
    groups: Annotated[
        str | None,
        _of(
            PretrainConfig,
            "groups",
            "auto, none, how many, or a file with task: group lines, or of hssl groups.",
            autocompletion=_complete(("auto", "none")),
        ),
    ] = None,
    steps: Annotated[int | None, _of(PretrainConfig, "steps", "Training steps.")] = None,
    patch_size: Annotated[
        int | None, _of(PretrainConfig, "patch_size", "Side of what the network sees, in pixels.", min=1)
    ] = None,
    batch_size: Annotated[int | None, _of(PretrainConfig, "batch_size", "Images a step.", min=1)] = None,
    seed: Annotated[int | None, _of(PretrainConfig, "seed", "Seed of every random draw.")] = None,
    logger: Annotated[
        list[str] | None,
        _of(
            PretrainConfig,
            "loggers",
            "Where curves go: tensorboard, wandb, mlflow; repeatable.",
            "--logger",
            **_LOGGERS,
        ),
    ] = None,
    config: ConfigFile = None,
    options: Set = None,
    as_json: Json = False,
) -> None:
    """Learn from the scans of a store without masks. The same command continues an interrupted run.

    All options: hssl config show pretrain.
    """
    from hssl.training.pretrain import pretrain as run_pretraining

    planned = None
    below: dict[str, Any] = {}
    if plans is not None:
        from hssl.networks.plans import read_plans

        if network is not None:
            raise ConfigError("--network and --plans both name the network", hint="give one of them")
        planned, side = read_plans(plans)
        below = {"patch_size": side}
    checked = _load(
        PretrainConfig,
        config,
        options,
        below,
        tasks=parse_names(tasks) if tasks else None,
        init=init,
        objective=objective,
        network=planned or network,
        groups=_groups(groups),
        steps=steps,
        patch_size=patch_size,
        batch_size=batch_size,
        seed=seed,
        loggers=logger or None,
    )
    _print_run(run_pretraining(store, output, config=checked), as_json=as_json)


@app.command()
def finetune(
    store: StorePath,
    output: Output,
    task: Annotated[str | None, typer.Option(help="The task to learn.")] = None,
    labels: Annotated[
        str | None,
        _of(
            FinetuneConfig,
            "label_budget",
            "Labelled training subjects: a share (5%), a number (3), or names with commas (p1,p2); 3@5: 5 slices each.",
        ),
    ] = None,
    init: Annotated[str | None, _of(FinetuneConfig, "init", "A pre-trained run, hf://OWNER/NAME, or scratch.")] = None,
    validation: Annotated[
        bool | None,
        typer.Option(
            "--validation/--no-validation",
            help="Choose the best step by the validation subjects' masks (by default), which count as labelled then.",
        ),
    ] = None,
    pretext: Annotated[
        bool | None,
        typer.Option("--pretext/--no-pretext", help="Keep the losses of pre-training on (by default, after one)."),
    ] = None,
    self_training: Annotated[
        bool | None,
        typer.Option(
            "--self-training/--no-self-training", help="Learn from the network's own masks of scans without masks."
        ),
    ] = None,
    steps: Annotated[int | None, _of(FinetuneConfig, "steps", "Training steps.")] = None,
    patch_size: Annotated[
        int | None, _of(FinetuneConfig, "patch_size", "Side of what the network sees, in pixels.", min=1)
    ] = None,
    batch_size: Annotated[int | None, _of(FinetuneConfig, "batch_size", "Patches a step.", min=1)] = None,
    seed: Annotated[int | None, _of(FinetuneConfig, "seed", "Seed of every random draw.")] = None,
    logger: Annotated[
        list[str] | None,
        _of(
            FinetuneConfig,
            "loggers",
            "Where curves go: tensorboard, wandb, mlflow; repeatable.",
            "--logger",
            **_LOGGERS,
        ),
    ] = None,
    config: ConfigFile = None,
    options: Set = None,
    as_json: Json = False,
) -> None:
    """Learn one task from few masks. The same command continues an interrupted run.

    All options: hssl config show finetune.
    """
    from hssl.training.finetune import finetune as run_finetuning

    checked = _load(
        FinetuneConfig,
        config,
        options,
        task=task,
        label_budget=_labels(labels),
        init=init,
        validation=validation,
        auxiliary=_auxiliary(pretext=pretext, self_training=self_training),
        steps=steps,
        patch_size=patch_size,
        batch_size=batch_size,
        seed=seed,
        loggers=logger or None,
    )
    _print_run(run_finetuning(store, output, config=checked), as_json=as_json)


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN... INPUT...", help="A run (several are averaged), then images or folders of them."),
    ],
    output: Output,
    channel: Annotated[int | None, typer.Option(min=0, help="Channel of 4D images; the run's own by default.")] = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.99, help="Share of a tile that overlaps its neighbour.")] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles at once.")] = 16,
    components: Components = True,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of each class too (NAME_probabilities.npz).")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write a map of the uncertainty too (NAME_uncertainty.nii.gz).")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Continue after a bad image; the exit code is still 2.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write a mask for each image, on the image's own grid."""
    from hssl import console, prediction

    runs, inputs = _runs_and_inputs(paths)
    masks = prediction.predict(
        runs,
        inputs,
        output,
        channel=channel,
        overlap=overlap,
        batch_size=batch_size,
        device=device,
        components=components,
        probabilities=probabilities,
        uncertainty=uncertainty,
        skip_bad=skip_bad,
    )
    console.print_paths(masks, as_json=as_json)


@app.command()
def evaluate(
    run: RunPath,
    store: Annotated[Path | None, typer.Option(help="Store to evaluate on; the run's own by default.")] = None,
    part: Annotated[Literal["train", "val", "test"], typer.Option(help="Part of the split.")] = "test",
    allow_leak: Annotated[
        bool,
        typer.Option("--allow-leak", help="Evaluate subjects that training has seen, and mark the result."),
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Score the masks in this folder instead of the network's.")
    ] = None,
    space: Annotated[
        Literal["source", "store"],
        typer.Option(help="Where masks are compared: source (the grid of the files) or store (without the files)."),
    ] = "source",
    tolerance: Annotated[float, typer.Option(min=0, help="Of surface Dice, in mm.")] = 2.0,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the worst, the median and the best case.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the predicted masks here.")] = None,
    components: Components = True,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure Dice, HD95 and surface Dice on unseen subjects."""
    from hssl import console, evaluation

    result = evaluation.evaluate(
        run,
        store,
        part=part,
        allow_leak=allow_leak,
        predictions=predictions,
        space=space,
        tolerance=tolerance,
        sheet=sheet,
        masks=masks,
        components=components,
        device=device,
    )
    if as_json:
        console.print_json(result.model_dump())
    else:
        console.print_rows(result.rows(), title=f"{result.task}, {part} subjects")


@app.command()
def probe(
    run: RunPath,
    store: StorePath,
    tasks: Annotated[str | None, typer.Option(help="Tasks to probe, with commas; all by default.")] = None,
    subjects: Annotated[int, typer.Option(min=1, help="Labelled subjects that a read-out learns from.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Random samples of these subjects.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure what a frozen network knows of each task, without fine-tuning. RUN may be scratch."""
    from hssl import console
    from hssl.config import parse_names
    from hssl.probing import probe as run_probe

    chosen = parse_names(tasks) if tasks else None
    result = run_probe(run, store, tasks=chosen, subjects=subjects, repeats=repeats, seed=seed, device=device)
    if as_json:
        console.print_json(result.model_dump())
    else:
        console.print_rows(result.rows(), title="Dice of read-outs of the frozen network, validation subjects")


@app.command()
def suggest(
    store: StorePath,
    task: Annotated[str, typer.Option(help="The task to draw masks for.")],
    count: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to suggest.")] = 5,
    slices: Annotated[bool, typer.Option("--slices", help="Suggest single slices, and not subjects.")] = False,
    run: Annotated[
        list[str] | None,
        typer.Option(help="A pre-trained or a fine-tuned run; several fine-tuned ones are averaged. None needs none."),
    ] = None,
    by: Annotated[
        Literal["k-medoids", "k-center"],
        typer.Option(help="The most typical of what is not drawn, or the one farthest from all that is drawn."),
    ] = "k-medoids",
    labels: Annotated[
        str | None, typer.Option(help="Regard these as drawn, as hssl finetune --labels; all with a mask by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the label budget.")] = 0,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write a picture of what is suggested.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write images, and masks to be drawn or corrected.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Rank the subjects or slices whose masks would help most, and write them to be drawn."""
    from hssl import console
    from hssl.suggestion import suggest as run_suggest

    found = run_suggest(
        store,
        task=task,
        count=count,
        slices=slices,
        run=run,
        by=by,
        labels=_labels(labels),
        seed=seed,
        sheet=sheet,
        export=export,
        device=device,
    )
    if as_json:
        console.print_json(found.model_dump())
    else:
        console.print_rows(found.rows(), title=f"What to draw next in {task}")
        if export is not None:
            console.print_line(f"Draw as {export / 'README.md'} says, then: hssl aggregate {export} -o {store}")


@app.command()
def groups(
    store: StorePath,
    run: Annotated[Path, typer.Option(help="Pre-trained run whose features are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.json", help="Write the groups here, and the tree of tasks as PNG."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find which tasks belong together."""
    from hssl import console, grouping
    from hssl.runs import load_unet
    from hssl.store import Store

    opened = Store.open(store)
    network, _ = load_unet(run)
    found = grouping.find_groups(network, opened, list(opened.tasks))
    if output is not None:
        found.save(output)
    rows = [{"task": task, "group": group} for task, group in found.groups.items()]
    console.print_rows(rows, title="Groups of tasks", as_json=as_json)


@app.command()
def benchmark(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="YAML: store, tasks, label budgets, arms, seeds.")
    ],
    output: Output,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and the hours, and stop.")] = False,
    cluster: Annotated[
        Path | None, typer.Option(help="YAML with the resources of a job: run on a cluster, by submitit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare arms over tasks, label budgets and seeds.

    The same command continues.
    """
    from hssl import benchmark as room
    from hssl import console

    rows = room.run_benchmark(experiment, output, workers=workers, dry_run=dry_run, cluster=cluster)
    console.print_rows(rows, title=experiment.stem, as_json=as_json)


@app.command()
def report(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="A folder that hssl benchmark wrote.")],
    as_json: Json = False,
) -> None:
    """Write tables and figures of a benchmark into one HTML page."""
    from hssl import benchmark as room
    from hssl import console

    console.print_paths(room.write_report(bench), as_json=as_json)


@app.command()
def export(
    run: RunPath,
    to: Annotated[
        str,
        typer.Option(
            help=f"{EXPORTS.listed}, or module:function of your own.",
            metavar="FORMAT",
            autocompletion=_complete(EXPORTS),
        ),
    ],
    output: Output,
    as_json: Json = False,
) -> None:
    """Write a trained network in another program's format."""
    from hssl import console
    from hssl import export as room

    console.print_paths(room.export_run(run, to, output), as_json=as_json)


@app.command()
def push(
    run: RunPath,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="OWNER/NAME on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace an existing model card by this run's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a trained network to the Hugging Face hub."""
    from hssl import console
    from hssl import export as room

    console.print_paths(room.push(run, repository, public=public, replace_card=replace_card), as_json=as_json)


@app.command()
def demo(
    output: Output = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the full pipeline on synthetic challenges, in five minutes on two cores."""
    from hssl import console
    from hssl.demo import run_demo

    result = run_demo(output, seed=seed)
    console.print_rows(result.rows, title="Test Dice, one labelled subject", as_json=as_json)
    if not as_json:
        console.print_line(f"Picture: {result.picture}\nReport: {result.report}")


@app.command()
def view(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Stores, runs, benchmarks, or folders of them.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 is any that is free.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser too.")] = False,
    as_json: Json = False,
) -> None:
    """Look at stores, runs and benchmarks in a local page, and predict in it.

    Only this machine can ask for it, by the address that is printed. Ctrl-C ends it.
    """
    import webbrowser

    from hssl import console
    from hssl import viewer as room

    def ready(address: str) -> None:
        console.print_paths(address, as_json=as_json)
        sys.stdout.flush()
        if open_browser:
            webbrowser.open(address)

    room.view(paths, port=port, ready=ready)


@config_app.command("show")
def config_show(
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}.", autocompletion=_complete(STAGES)),
    ],
    config: ConfigFile = None,
    options: Set = None,
    as_json: Json = False,
) -> None:
    """Print all options of a stage as YAML: the value of each and what it means."""
    from hssl import console

    cls = _config_class(stage)
    # Without any option given, a template: options that have no default stay empty.
    checked = _load(cls, config, options) if config or options else cls.model_construct()
    parts = _parts(checked)
    if as_json:
        console.print_json(option_values(checked, parts))
    else:
        console.print_line(as_yaml(checked, parts))


def _config_class(stage: str) -> type[StageConfig]:
    if stage not in STAGES:
        raise ConfigError(f"no stage '{stage}' with options", hint=f"one of {', '.join(STAGES)}")
    return STAGES[stage]


def _parts(config: StageConfig) -> dict[str, Chosen | dict[str, Chosen]]:
    """The options of the objective, or of all auxiliaries, which a stage's own model does not know."""
    if isinstance(config, PretrainConfig):
        from hssl.objectives import checked_options

        own = checked_options(config.objective, config.options)
        return {"options": Chosen(own, f"Below are those of '{config.objective}'.")}
    if isinstance(config, FinetuneConfig):
        from hssl.training import auxiliary

        chosen: dict[str, Chosen] = {}
        for name in dict.fromkeys((*config.auxiliary, *AUXILIARIES)):
            module = sys.modules[auxiliary.auxiliary_class(name).__module__]
            options = auxiliary.checked_options(name, config.auxiliaries.get(name, {}))
            chosen[name] = Chosen(options, (module.__doc__ or "").partition("\n")[0], name in config.auxiliaries)
        return {"auxiliary": chosen}
    return {}


def _load(
    cls: type[Config],
    path: Path | None,
    pairs: list[str] | None,
    below: dict[str, Any] | None = None,
    /,
    **given: Any,
) -> Config:
    """The file's options, over `below`, and under those given as ``--set NAME=VALUE`` (YAML) or by name."""
    import yaml

    given = {name: value for name, value in given.items() if value is not None}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}", hint="write --set NAME=VALUE")
        if name in given:
            raise ConfigError(f"option '{name}' is given twice", hint="give it once")
        try:
            given[name] = parse_yaml(text)
        except yaml.YAMLError as error:
            hint = "quote it: --set \"NAME='a: b'\""
            raise ConfigError(f"--set {pair}: the value is not YAML", hint=hint) from error
    return cls.load(path, below, **given)


def _runs_and_inputs(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """The runs, which come first, and the images."""
    count = 1
    while count < len(paths) and ((paths[count] / "run.json").is_file() or str(paths[count]).startswith("hf:")):
        count += 1
    if count == len(paths):
        raise ConfigError("no image to predict is given", hint="hssl predict RUN IMAGE... -o FOLDER")
    return paths[:count], paths[count:]


def _like_nnunet(plans: Path | None, fold: int | None, sources: list[Path], splits: Path | None) -> dict[str, Any]:
    """Options that a plan of nnU-Net stands for; none without one."""
    if plans is None:
        if fold is not None:
            raise ConfigError("--fold needs --like-nnunet", hint="give the plans in the folder of the folds")
        return {}
    from hssl.sources.nnunet_plan import options_like_nnunet

    if len(sources) > 1:
        raise ConfigError("--like-nnunet is for one source", hint="aggregate the others with separate commands")
    if fold is not None and splits is not None:
        raise ConfigError("--fold and --splits both name the split", hint="give one of them")
    return options_like_nnunet(plans, sources[0], fold=fold)


def _labels(text: str | None) -> str | int | list[str] | None:
    return None if text is None else parse_label_budget(text)


def _auxiliary(**given: bool | None) -> dict[str, bool] | None:
    """The auxiliaries that are switched on or off; None where none is named."""
    return {name: value for name, value in given.items() if value is not None} or None


def _groups(text: str | None) -> str | int | dict[str, str] | None:
    """``auto`` and ``none`` stay text, ``3`` is a number; anything else is a YAML file of task: group."""
    if text is None or text in ("auto", "none"):
        return text
    if text.isdecimal():
        return int(text)
    groups = read_mapping(Path(text), "groups", "task: group")
    # What `hssl groups -o FILE.json` writes holds them under this key.
    groups = groups.get("groups", groups)
    if not isinstance(groups, dict):
        raise ConfigError("holds no groups", path=Path(text), hint="write one 'task: group' a line")
    return {str(task): str(group) for task, group in groups.items()}


def _print_store(store: Store, *, as_json: bool) -> None:
    from hssl import console
    from hssl.store import summarise, summary_table

    if as_json:
        console.print_json([row.model_dump() for row in summarise(store)])
    else:
        console.print_table(summary_table(store))


def _print_run(run: Run, *, as_json: bool) -> None:
    """The folder of a run, or with ``--json`` its description and result."""
    from lightning.pytorch.utilities import rank_zero_only

    from hssl import console

    if getattr(rank_zero_only, "rank", 0):  # of several processes the first one prints
        return
    if as_json:
        info = run.info.model_dump(mode="json", include={"stage", "complete", "result"})
        console.print_json({"run": run.path, "task": run.info.task and run.info.task.name, **info})
    else:
        console.print_paths(run.path)


def _warn_of_unknown_variables() -> None:
    """One warning that names the HSSL_* variables which no command reads, with what may have been meant."""
    known = VARIABLES | set(_variables(typer.main.get_command(app), "HSSL"))
    unknown = sorted(name for name in os.environ if name.startswith("HSSL_") and name not in known)
    if unknown:
        close = {name: get_close_matches(name, known, 1, cutoff=0.85) for name in unknown}
        told = [f"{name} (did you mean {close[name][0]}?)" if close[name] else name for name in unknown]
        logging.getLogger(__name__).warning("unknown environment variables: %s", ", ".join(told))


def _variables(command: Any, prefix: str) -> Iterator[str]:
    """The environment variables of a command's options and of those below it, as they are derived from the names."""
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield f"{prefix}_{parameter.name}".upper()
    for name, below in getattr(command, "commands", {}).items():
        yield from _variables(below, f"{prefix}_{name.replace('-', '_').upper()}")
