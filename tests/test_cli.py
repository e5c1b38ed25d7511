"""The program's habits: one-line errors, exit codes, options from files and the environment, JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hssl
from hssl import cli, console
from hssl.cli import STAGES, main
from hssl.config import (
    AggregateConfig,
    FinetuneConfig,
    NetworkConfig,
    PretrainConfig,
    StageConfig,
    default_in_words,
    parse_yaml,
)
from hssl.demo import DemoResult
from hssl.errors import HsslError
from hssl.evaluation import EvaluationResult, Mean
from hssl.grouping import Grouping
from hssl.objectives import objective_class
from hssl.probing import ProbeResult
from hssl.registry import AUXILIARIES, EXPORTS, LAYOUTS, OBJECTIVES, Registry
from hssl.runs import Run, RunInfo
from hssl.store import Preprocessing, Store, TaskInfo
from hssl.store.summary import summarise
from hssl.suggestion import Suggestions
from hssl.training.auxiliary import auxiliary_class


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HSSL_DEBUG", "HSSL_QUIET", "HSSL_VERBOSE"):
        monkeypatch.delenv(name, raising=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hssl {hssl.__version__}\n"


def test_python_m_hssl_without_arguments_shows_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hssl"], capture_output=True, text=True, check=True)
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert f"\n  {command.callback.__name__.replace('_', '-')} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["aggregate"], "Missing argument 'SOURCE...'"),
        (["aggregate", "x", "-o", "y", "--window", "low", "high"], "--window"),
        (["aggregate", "x", "-o", "y", "--window", "9", "1"], "a window is (low, high) with low < high"),
        (["aggregate", "x", "-o", "y", "--set", "sede=1"], "option 'sede'"),
        (["aggregate", "x", "-o", "y", "--set", "seed"], "write --set NAME=VALUE"),
        (["aggregate", "x", "-o", "y", "--seed", "1", "--set", "seed=2"], "option 'seed' is given twice"),
        (["aggregate", "x", "-o", "y", "--config", "missing.yaml"], "missing.yaml: not a readable YAML file"),
        (["aggregate", "x", "-o", "y", "--set", "path=3"], "no option 'path'"),
        (["aggregate", "x", "-o", "y", "--set", "cls=3"], "no option 'cls'"),
        (["aggregate", "x", "-o", "y", "--seed", "-1"], "option 'seed': should be greater than or equal to 0"),
        (["aggregate", "x", "-o", "y", "--set", "seed=null"], "option 'seed': should be a whole number"),
        (["phantoms", "-o", "y", "--seed", "-1"], "--seed"),
        (["inspect", "no-such-store"], "no-such-store"),
        (["config", "show", "dinner"], "no stage 'dinner' with options (one of aggregate"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hssl: error: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_program_itself_exits_with_2_and_shows_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "hssl", "inspect", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "registry"), [("pretrain", OBJECTIVES), ("aggregate", LAYOUTS), ("export", EXPORTS)]
)
def test_the_help_names_every_choice(command: str, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ", ".join(registry) in printed


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_shows_the_traceback(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["config", "show", "dinner"]
    if way == "environment":
        monkeypatch.setenv("HSSL_DEBUG", "1")
    else:
        arguments = ["--debug", *arguments]
    with pytest.raises(HsslError, match="no stage 'dinner'"):
        main(arguments)


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_config_class", interrupt)
    assert main(["config", "show", "aggregate"]) == 130
    assert capsys.readouterr().err.strip() == "hssl: interrupted; give the same command again"


def test_a_file_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/store")

    monkeypatch.setattr(cli, "_config_class", refuse)
    assert main(["config", "show", "aggregate"]) == 2
    assert capsys.readouterr().err == (
        "hssl: error: /data/store: Permission denied (check the rights of file and folder, or give another place)\n"
    )


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_config_class", fail)
    with pytest.raises(ZeroDivisionError):
        main(["config", "show", "aggregate"])


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colour_unless_no_color_is_set(variable: dict[str, str], coloured: bool) -> None:
    pty = pytest.importorskip("pty", reason="needs a terminal to ask")
    code = (
        "import logging; from rich.progress import track; from hssl import console; console.configure();"
        "logging.getLogger('hssl.test').warning('12 cases'); list(track([1], 'predict'));"
        "console.print_rows([{'task': 'Heart', 'dice': 0.5}])"
    )
    # No variable of the machine that runs the tests decides.
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment | {"TERM": "xterm-256color"} | variable,
        stdin=inner,
        stdout=inner,
        stderr=inner,
    ):
        os.close(inner)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
            while part := os.read(outer, 4096):
                shown += part
    os.close(outer)
    assert b"12 cases" in re.sub(rb"\x1b\[[0-9;]*m", b"", shown)
    assert b"Heart" in shown
    # Codes 30 to 38 and 90 to 97 are colours; bold and underlined are none.
    colours = re.findall(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])(?:;[0-9;]*)?m", shown)
    assert bool(colours) == coloured


@pytest.mark.parametrize("stage", STAGES)
def test_config_show_is_a_config_file(stage: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is printed can be given back by --config, and each option is explained."""
    given = ["--set", "task=Heart"] if stage == "finetune" else []
    assert main(["config", "show", stage, *given]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "stage.yaml"
    file.write_text(text)
    assert main(["config", "show", stage, "--config", str(file)]) == 0
    assert capsys.readouterr().out == text
    assert main(["config", "show", stage, "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(text)


def test_config_show_explains_the_parts_of_a_view(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "pretrain"]) == 0
    printed = capsys.readouterr().out
    assert "\nview:\n  # Smallest and largest side" in printed
    assert "\n  rotate: 20.0\n" in printed


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_config_show_explains_the_options_of_the_objective(
    objective: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show = ["config", "show", "pretrain"]
    assert main([*show, "--set", f"objective={objective}"]) == 0
    text = capsys.readouterr().out
    expected = objective_class(objective).Options()
    options = parse_yaml(text)["options"]
    assert options == expected.model_dump(mode="json")
    lines = text.splitlines()
    for name in options:
        place = next(number for number, line in enumerate(lines) if line.startswith(f"  {name}: ".rstrip(" ")))
        assert lines[place - 1].startswith("  # "), name
    # It can be given back, and says the same.
    (tmp_path / "stage.yaml").write_text(text)
    assert main([*show, "--config", str(tmp_path / "stage.yaml")]) == 0
    assert capsys.readouterr().out == text


def test_config_show_explains_each_auxiliary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show = ["config", "show", "finetune", "--set", "task=Heart"]
    assert main([*show, "--set", "auxiliary={self_training: {box: [0.1, 0.2]}}"]) == 0
    text = capsys.readouterr().out
    shown = parse_yaml(text)["auxiliary"]
    assert {name: set(options) for name, options in shown.items()} == {
        name: set(auxiliary_class(name).Options.model_fields) for name in AUXILIARIES
    }
    assert shown["self_training"]["box"] == [0.1, 0.2]
    (tmp_path / "stage.yaml").write_text(text)
    assert main(["config", "show", "finetune", "--config", str(tmp_path / "stage.yaml")]) == 0
    assert capsys.readouterr().out == text
    assert main(show) == 0
    assert parse_yaml(capsys.readouterr().out)["auxiliary"]["self_training"] is False


@pytest.mark.parametrize(
    ("stage", "option", "says"),
    [
        ("pretrain", "options={wieghts: {}}", "objective 'hierarchical': no option 'wieghts'; did you mean 'weights'?"),
        ("pretrain", "options={weights: {places: 1}}", "objective 'hierarchical': option 'weights.places"),
        ("pretrain", "view={flp: 1}", "no option 'view.flp'; did you mean 'view.flip'?"),
        (
            "finetune",
            "auxiliary={pretext: {view: {flp: 1}}}",
            "auxiliary 'pretext': no option 'view.flp'; did you mean 'view.flip'?",
        ),
        ("finetune", "auxiliary={self_training: {cutmx: 1}}", "no option 'cutmx'; did you mean 'cutmix'?"),
    ],
)
def test_a_misspelt_option_inside_another_suggests_the_right_one(
    stage: str, option: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--set", "task=Heart"] if stage == "finetune" else []
    assert main(["config", "show", stage, *more, "--set", option]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "config", "fields"),
    [
        (
            "pretrain",
            PretrainConfig,
            ("init", "objective", "network", "groups", "steps", "patch_size", "batch_size", "seed"),
        ),
        ("finetune", FinetuneConfig, ("label_budget", "init", "steps", "patch_size", "batch_size", "seed")),
        ("aggregate", AggregateConfig, ("seed",)),
    ],
)
def test_the_help_tells_defaults_of_the_options(
    command: str, config: type[StageConfig], fields: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    blocks = re.split(r"\n +(?:-\w, )?--", capsys.readouterr().out)
    shown = {block.split()[0]: " ".join(block.split()) for block in blocks}
    for field in fields:
        name = {"label_budget": "labels"}.get(field, field).replace("_", "-")
        assert f"[default: {default_in_words(config, field)}]" in shown[name]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hssl pretrain --objective j", ["jigsaw"]),
        ("hssl pretrain --network ", ["small", "base", "large"]),
        ("hssl aggregate --layout ni", ["nifti"]),
        ("hssl export --to o", ["onnx"]),
        ("hssl config show p", ["pretrain"]),
        ("hssl finetune --logger w", ["wandb"]),
    ],
)
def test_the_shell_completes_values(line: str, expected: list[str]) -> None:
    environment = os.environ | {
        "_HSSL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    code = "from hssl.cli import app; app(prog_name='hssl')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == expected


def test_an_environment_variable_that_nothing_reads_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"HSSL_PRETRAIN_STEPS": "3", "HSSL_CONFIG_SHOW_AS_JSON": "1", "HSSL_DATA": "/x", "HSSL_WORKER_PIPE": "3"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert main(["config", "show", "aggregate"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("{")  # the variable is read
    monkeypatch.setenv("HSSL_PRETRAIN_STEP", "3")
    monkeypatch.setenv("HSSL_XYZZY", "3")
    assert main(["config", "show", "aggregate"]) == 0
    assert capsys.readouterr().err == (
        "unknown environment variables: HSSL_PRETRAIN_STEP (did you mean HSSL_PRETRAIN_STEPS?), HSSL_XYZZY\n"
    )


def test_a_template_leaves_required_options_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "finetune"]) == 0
    template = yaml.safe_load(capsys.readouterr().out)
    assert template["task"] is None
    assert template["init"] == "scratch"


def test_options_come_from_file_then_environment_then_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("seed: 5\nskip_bad: true\n")
    show = ["config", "show", "aggregate", "--json", "--config", str(file)]

    def shown(*more: str) -> tuple[int, bool]:
        assert main([*show, *more]) == 0
        values = json.loads(capsys.readouterr().out)
        return values["seed"], values["skip_bad"]

    assert shown() == (5, True)
    monkeypatch.setenv("HSSL_CONFIG_SHOW_OPTIONS", "seed=6")
    assert shown() == (6, True)
    assert shown("--set", "seed=7") == (7, True)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (None, None),
        ("5%", "5%"),
        ("3@5", "3@5"),
        ("3", 3),
        ("p1", ["p1"]),
        ("p1, p2", ["p1", "p2"]),
        ("003", ["003"]),
        ("3,", ["3"]),
    ],
)
def test_labels(text: str | None, means: object) -> None:
    assert cli._labels(text) == means


def test_a_split_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, AggregateConfig] = {}

    def aggregate(sources: object, output: object, *, config: AggregateConfig) -> None:
        asked["config"] = config

    monkeypatch.setattr("hssl.store.aggregate", aggregate)
    monkeypatch.setattr(cli, "_print_store", lambda *_, **__: None)
    file = tmp_path / "splits.yaml"
    file.write_text("Heart: {val: [a], test: [b, c]}\n")
    assert main(["aggregate", "x", "-o", "y", "--splits", str(file)]) == 0
    splits = asked["config"].splits
    assert splits is not None
    assert splits["Heart"].test == ("b", "c")
    file.write_text("Heart\n")
    assert main(["aggregate", "x", "-o", "y", "--splits", str(file)]) == 2


def test_groups_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text("Heart: chest\nSpleen: abdomen\n")
    assert cli._groups(str(file)) == {"Heart": "chest", "Spleen": "abdomen"}
    assert cli._groups("auto") == "auto"
    assert cli._groups("3") == 3
    file.write_text('{"groups": {"Heart": 0, "Spleen": 1}, "tree": null}')
    assert cli._groups(str(file)) == {"Heart": "0", "Spleen": "1"}
    for text in ("- Heart\n", "groups: [Heart, Spleen]\n"):
        file.write_text(text)
        with pytest.raises(HsslError, match="holds no groups"):
            cli._groups(str(file))


ROWS = [
    {"task": "Heart", "dice": 0.81234, "hd95": None},
    {"task": "Spleen", "dice": float("nan"), "hd95": 2.0},
]


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_rows([{"label [x]": "edema [/t2]"}], title="[bold]")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("label [x]", "edema [/t2]", "[bold]"))


def test_a_table_rounds_and_json_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_rows(ROWS, title="Results")
    table = capsys.readouterr().out
    assert "Results" in table
    assert "0.812 " in table
    assert "nan" not in table
    console.print_rows(ROWS, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"task": "Heart", "dice": 0.81234, "hd95": None},
        {"task": "Spleen", "dice": None, "hd95": 2.0},
    ]


RUN = {"stage": "finetune", "complete": True, "result": {"best": 0.5}}
PREPROCESSING = Preprocessing(orientation="PLS", spacing=(1.0, 1.0))
TASK = TaskInfo(
    name="Heart", modality="", labels={}, preprocessing=PREPROCESSING, layout="msd", origin="", fingerprint=""
)
SCORES = EvaluationResult(
    run="run",
    task="Heart",
    part="test",
    space="source",
    leaked=[],
    tolerance=2.0,
    predictions=None,
    store_hash="s",
    split_hash="p",
    versions={},
    scores=[],
    labels=[],
    mean=Mean(name="mean", cases=0, dice=None, hd95=None, surface_dice=None),
)
SUGGESTED = Suggestions(
    task="Heart", slices=False, by="k-medoids", features="brightness", drawn=["a"], compared=2, items=[]
)
# Of each command: its arguments, the twin that does the work, what that gives, and the JSON of it.
JSON: dict[str, tuple[str, str, object, object]] = {
    "phantoms": ("-o raw", "hssl.phantoms.write_phantoms", [Path("raw/Heart")], ["raw/Heart"]),
    "aggregate": ("raw -o store", "hssl.store.aggregate", "STORE", "SUMMARY"),
    "inspect": ("store", "hssl.store.Store.open", "STORE", "SUMMARY"),
    "pretrain": ("store -o run", "hssl.training.pretrain.pretrain", "RUN", {"run": "run", "task": "Heart", **RUN}),
    "finetune": (
        "store --task Heart -o run",
        "hssl.training.finetune.finetune",
        "RUN",
        {"run": "run", "task": "Heart", **RUN},
    ),
    "groups": (
        "store --run run",
        "hssl.grouping.find_groups",
        Grouping({"Heart": 1}),
        [{"task": "Heart", "group": 1}],
    ),
    "probe": (
        "run store",
        "hssl.probing.probe",
        ProbeResult(run="run", subjects=1, repeats=2, seed=0, drawn={}, scores=[]),
        {"run": "run", "subjects": 1, "repeats": 2, "seed": 0, "drawn": {}, "scores": []},
    ),
    "suggest": (
        "store --task Heart",
        "hssl.suggestion.suggest",
        SUGGESTED,
        SUGGESTED.model_dump(),
    ),
    "predict": ("run scans -o masks", "hssl.prediction.predict", [Path("masks/a.nii")], ["masks/a.nii"]),
    "evaluate": ("run", "hssl.evaluation.evaluate", SCORES, SCORES.model_dump()),
    "benchmark": ("experiment.yaml -o bench", "hssl.benchmark.run_benchmark", [{"arm": "a"}], [{"arm": "a"}]),
    "report": ("bench", "hssl.benchmark.write_report", Path("bench/report.html"), "bench/report.html"),
    "export": ("run --to onnx -o a.onnx", "hssl.export.export_run", Path("a.onnx"), "a.onnx"),
    "push": ("run a/b", "hssl.export.push", "hf://a/b", "hf://a/b"),
    "demo": (
        "",
        "hssl.demo.run_demo",
        DemoResult([{"task": "Heart"}], Path("a.png"), Path("a.html")),
        [{"task": "Heart"}],
    ),
    "view": (
        "store",
        "hssl.viewer.view",
        lambda _, *, ready, **__: ready("http://127.0.0.1:1/t/"),
        "http://127.0.0.1:1/t/",
    ),
    "config show": ("aggregate", "hssl.cli._load", AggregateConfig(), AggregateConfig().model_dump(mode="json")),
}


@pytest.mark.parametrize("command", JSON)
def test_every_command_gives_one_json_value(
    command: str,
    make_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, twin, gives, expected = JSON[command]
    store = make_store()
    info = RunInfo(**RUN, network=NetworkConfig(), task=TASK, subjects_seen={}, masks_seen={}, provenance={})
    known = {"STORE": store, "RUN": Run(Path("run"), FinetuneConfig(task="Heart"), info)}
    if command == "groups":  # what it reads before its twin is called
        monkeypatch.setattr("hssl.store.Store.open", lambda _: store)
        monkeypatch.setattr("hssl.runs.load_unet", lambda _: (None, None))
    monkeypatch.setattr(twin, gives if callable(gives) else lambda *_, **__: known.get(str(gives), gives))
    assert main([*command.split(), *arguments.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    if expected == "SUMMARY":
        expected = [row.model_dump(mode="json") for row in summarise(store)]
    assert printed == expected


def test_no_command_lacks_json() -> None:
    registered = [*cli.app.registered_commands, *cli.config_app.registered_commands]
    names = [command.name or command.callback.__name__ for command in registered if command.callback]
    assert {name.removeprefix("config ") for name in JSON} == set(names)


@pytest.mark.parametrize("command", ["pretrain", "finetune --task Blobs"])
def test_a_start_that_is_no_run_is_one_line(
    command: str,
    make_store: Callable[..., Store],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stage, *options = command.split()
    assert main([stage, str(make_store().path), *options, "--init", "missing", "-o", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "missing: is not a run folder" in line
    assert not Path("run").exists()


def test_what_was_written_is_one_path_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_paths([Path("a"), Path("b")])
    console.print_paths(Path("c"))
    assert capsys.readouterr().out == "a\nb\nc\n"


def test_messages_go_to_stderr_and_quiet_stops_them(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("hssl.test")
    console.configure()
    log.info("told")
    log.debug("detail")
    console.configure(quiet=True)
    log.info("hidden")
    log.warning("warned")
    console.configure(verbose=True)
    log.debug("more")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.strip() for line in printed.err.splitlines()] == ["told", "warned", "more"]


def test_threads_wait_without_spinning_unless_told_otherwise() -> None:
    show = "import os, hssl.__main__; print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if given is not None:
            environment["OMP_WAIT_POLICY"] = given
        result = subprocess.run(
            [sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == expected


def test_signs_that_a_terminal_does_not_know_are_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "ü−☃.yaml").write_text("task: Hérz\n", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(hssl.__file__).parents[1])}
    show = [sys.executable, "-m", "hssl", "config", "show", "finetune", "--config"]
    done = subprocess.run([*show, "ü−☃.yaml"], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    assert b'task: "H\\xE9rz"' in done.stdout
    done = subprocess.run([*show, "ü−.yaml"], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith(b"hssl: error: \\xfc\\u2212.yaml: not a readable YAML file")
