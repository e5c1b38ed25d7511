from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hssl.benchmark import write_report
from hssl.benchmark.report import figures, pictures
from hssl.benchmark.report import page as report
from hssl.benchmark.report.tables import Table, TableCell, score_table, variant_table
from hssl.benchmark.statistics import Difference, Summary
from hssl.config import NetworkConfig
from hssl.errors import RunError, StoreError
from hssl.networks import build_network
from hssl.palette import label_colours
from hssl.store import Store

TASKS = ("A", "B", "C")
ORIGIN: dict[str, Any] = {
    "init_weights": None,
    "store_hash": "a" * 64,
    "split_hash": "b" * 64,
    "versions": {"hssl": "0"},
    "git": "<script>",
    "machine": "one",
    "started": "2026-01-01T00:00:00Z",
    "seconds": 60.0,
}
ARMS = {
    "scratch": {"domains": "none"},
    "single": {"domains": "single"},
    "joint": {},
    "adapted": {"adapt": {"steps": 5}},
    "baseline": {"pretrain": {"objective": "other"}},
    "no-image": {"pretrain": {"options": {"weights": {"image": 0}}}},
}


def make_bench(path: Path) -> Path:
    """A ledger without runs or store: joint is 10 points above scratch on every task, single 5."""
    rng = np.random.default_rng(0)
    gains = {"scratch": 0.0, "single": 0.05, "joint": 0.1, "adapted": 0.12, "baseline": 0.02, "no-image": 0.08}
    rows, cells = [], []
    for label_budget, fraction in (("5%", 0.05), ("100%", 1.0)):
        for seed in (0, 1):
            for number, task in enumerate(TASKS):
                base = rng.uniform(0.4, 0.6, 4)
                for arm in ARMS:
                    dice = base + gains[arm]
                    hash_ = f"{arm}{label_budget}{seed}{number}"
                    place = {"arm": arm, "task": task, "label_budget": label_budget, "fraction": fraction, "seed": seed}
                    cells.append({**place, "hash": hash_})
                    rows.append({**place, "config_hash": hash_, **result_of(arm, dice)})
    # A line of an earlier plan, under the same names: it must not show.
    rows.append({**rows[0], "config_hash": "old", "dice": 0.0})
    experiment = {
        "store": str(path / "nowhere"),
        "arms": ARMS,
        "label_budgets": ["5%", "100%"],
        "seeds": [0, 1],
        "claims": "abstract",
    }
    tree = [[0, 1, 0.2, 2], [2, 3, 0.9, 3]]
    groups = {"groups": {"A": 0, "B": 0, "C": 1}, "silhouettes": {"2": 0.6}, "tree": tree}
    pretraining = {"config_hash": "joint", "init_hash": None, "objective": "hierarchical", "tasks": TASKS, "steps": 9}
    pretraining |= {"losses": {"loss": 1.0}, **ORIGIN}
    path.mkdir()
    (path / "experiment.json").write_text(json.dumps({"experiment": experiment, "cells": cells}))
    (path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "pretraining.jsonl").write_text(json.dumps(pretraining | {"groups": groups}) + "\n")
    return path


def result_of(arm: str, dice: np.ndarray[Any, Any]) -> dict[str, Any]:
    scores = [
        {
            "case": f"c{i}",
            "subject": f"s{i}",
            "label": 1,
            "name": "organ",
            "dice": float(d),
            "hd95": 3.0,
            "nsd": float(d),
        }
        for i, d in enumerate(dice)
    ]
    mean = float(dice.mean())
    return {
        "pretrain_hash": None if arm == "scratch" else arm,
        "dice": mean,
        "hd95": 3.0,
        "nsd": mean,
        "part": "test",
        "space": "source",
        "tolerance": 2.0,
        "labelled": ["s9"],
        "steps": 9,
        "loss": 0.5,
        "training_seconds": 0.5,
        "scores": scores,
        **ORIGIN,
    }


def test_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    page = write_report(make_bench(tmp_path / "bench")).read_text(encoding="utf-8")
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page)
    assert "<script>" not in page
    # Gains, curves and tree, for a page and for a phone; and the gains with all labels.
    assert page.count('src="data:image/svg+xml') == page.count('srcset="data:image/svg+xml') == 4
    assert page.count('class="badge holds"') == 2
    assert page.count('class="badge does-not-hold"') == 1  # no gain above 18.60
    assert page.count('class="badge not-tested"') == 1  # 10 % was not run
    assert "72 of 72 runs" in page
    assert page.count("Left out: the data of the benchmark are not available.") == 2
    tables = (tmp_path / "bench" / "tables.md").read_text(encoding="utf-8")
    assert "higher on 3 of 3 tasks, +10.00 to +10.00 points" in tables
    assert "| task | scratch | single | joint | adapted |" in tables
    assert "| A | adapted − joint | +2.00 |" in tables  # of four subjects
    assert "| −8.00 | 0 of 3 | +2.00 | 3 of 3 |" in tables
    assert "| −2.00 | 0 of 3 | +8.00 | 3 of 3 |" in tables


def test_a_label_that_one_arm_rightly_misses_counts_for_all(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    rows = [json.loads(line) for line in (bench / "ledger.jsonl").read_text().splitlines()]
    for row in rows:
        score = row["scores"][0]
        score |= {"dice": 0.0} if row["arm"] == "joint" else dict.fromkeys(("dice", "hd95", "nsd"))
        row["dice"] = np.mean([each["dice"] for each in row["scores"] if each["dice"] is not None])
    (bench / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(bench).read_text(encoding="utf-8")
    note = "Where a case lacks a label, a mask without it counts as perfect if the mask of another run shows it."
    assert page.count(note) == (bench / "tables.md").read_text(encoding="utf-8").count(note) > 1
    means = {row[0].text: [float(cell.text.split()[0]) for cell in row[1:]] for row in report_scores(bench).rows}
    assert means["A"][0] - means["A"][2] == pytest.approx(25 - 7.5, abs=0.11)


def report_scores(bench: Path) -> Table:
    """The first table of scores of a report."""
    read = report._read(bench)
    return score_table(read.rows, read.roles.main, "5%")


def change_experiment(bench: Path, keep: Callable[[dict[str, Any]], bool], **experiment: Any) -> Path:
    """Changes the experiment of a finished benchmark, and leaves out cells and lines."""
    content = json.loads((bench / "experiment.json").read_text())
    content = {
        "experiment": {**content["experiment"], **experiment},
        "cells": [cell for cell in content["cells"] if keep(cell)],
    }
    (bench / "experiment.json").write_text(json.dumps(content))
    return bench


def test_arms_with_one_share_each_have_no_curve_and_a_claim(tmp_path: Path) -> None:
    wanted = {("scratch", "100%"), ("joint", "5%")}
    arms = {"scratch": {"domains": "none", "label_budgets": ["100%"]}, "joint": {"label_budgets": ["5%"]}}
    bench = change_experiment(
        make_bench(tmp_path / "bench"), lambda cell: (cell["arm"], cell["label_budget"]) in wanted, arms=arms
    )
    for file in ("experiment.json", "ledger.jsonl"):
        (bench / file).write_text((bench / file).read_text().replace('"5%"', '"10%"'))
    page = write_report(bench).read_text(encoding="utf-8")
    assert "No arm was run with more than one label budget" in page
    assert "not every one of scratch, joint was run with 10 % of the labels" in page
    assert "at least 95 % on 3 of 3 tasks" in page
    assert "on at least six tasks of nine (of 3 here: 2)" in page


def test_a_page_has_the_sections_of_its_arms(tmp_path: Path) -> None:
    arms = {"scratch": {"domains": "none"}, "single": {"domains": "single"}}
    bench = change_experiment(
        make_bench(tmp_path / "bench"),
        lambda cell: cell["arm"] in arms and cell["label_budget"] == "5%",
        arms=arms,
        label_budgets=["5%"],
    )
    page = write_report(bench).read_text(encoding="utf-8")
    for title in ("Baselines", "Ablation and controls", "Groups of tasks", "What the network sees", "Label efficiency"):
        assert f"<h2>{title}</h2>" not in page
    assert "Not run yet" not in page
    joint = {"scratch": ARMS["scratch"], "joint": {}, "baseline": ARMS["baseline"]}
    bench = change_experiment(make_bench(tmp_path / "other"), lambda cell: cell["arm"] == "scratch", arms=joint)
    (bench / "pretraining.jsonl").unlink()
    page = write_report(bench).read_text(encoding="utf-8")
    assert page.count("Not run yet.") == 1  # baselines
    assert page.count("Left out: no joint pre-training is in the ledger yet.") == 2  # groups, features


def test_a_section_shows_the_smallest_share_of_its_own_arms(tmp_path: Path) -> None:
    bench = change_experiment(
        make_bench(tmp_path / "bench"),
        lambda cell: cell["label_budget"] == ("5%" if cell["arm"] == "baseline" else "100%"),
    )
    page = write_report(bench).read_text(encoding="utf-8")
    assert "Dice points, joint over scratch, mean of 3 tasks, 100 % of the labels" in page
    assert "<h2>Gains with 100 % of the labels</h2>" in page
    assert "<h2>Worst, median and best case, 100 % of the labels</h2>" in page
    assert "100 % of the labels: higher on 3 of 3 tasks" in page
    text = (bench / "tables.md").read_text(encoding="utf-8")
    assert text.index("## Dice (%) with 100 % of the labels") < text.index("## Dice (%) with 5 % of the labels")
    assert "| task | baseline |" in text


def test_pictures_that_cannot_be_made_leave_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise BadZipFile("File is not a zip file")

    bench = make_bench(tmp_path / "bench")
    (bench / "pretrain" / "joint").mkdir(parents=True)
    monkeypatch.setattr(report, "_store", lambda experiment, rows: object())
    monkeypatch.setattr(report, "find_overlays", fails)
    monkeypatch.setattr(report, "map_features", fails)
    page = write_report(bench).read_text(encoding="utf-8")
    assert page.count("Left out: BadZipFile: File is not a zip file.") == 2
    assert "is left out: BadZipFile" in caplog.text
    monkeypatch.setattr(report, "map_features", lambda *_: [][0])
    with pytest.raises(IndexError):  # a mistake of ours is no damaged file
        write_report(bench)


def test_a_map_needs_some_slices(
    make_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"Blobs": 3}, shape=(3, 28, 32))  # one subject validates
    shape = NetworkConfig(features=(4, 8, 8))
    run = SimpleNamespace(
        config=SimpleNamespace(seed=0), info=SimpleNamespace(network=shape, subjects_seen={"Blobs": []})
    )
    monkeypatch.setattr(pictures, "load_unet", lambda path: (build_network(shape), run))
    with pytest.raises(StoreError, match="a map needs 4 validation slices, here are 3"):
        pictures.map_features(tmp_path, store)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of their files."""
    found: list[Figure] = []

    def draw(figure: Figure) -> str:
        figure.draw_without_rendering()
        found.append(figure)
        return ""

    monkeypatch.setattr(figures, "_svg", draw)
    monkeypatch.setattr(figures, "_png", draw)
    return found


def test_legends_hold_every_name_and_end_on_the_page(drawn: list[Figure]) -> None:
    arms = ["_hidden", r"$\no$", *(f"an arm with a rather long name, number {number}" for number in range(18))]
    colour = figures.colours((None, None, None, None), arms)
    assert len(set(colour.values())) == len(arms)
    summaries = [
        Summary(r"$\T$", label_budget, arm, frozenset((0,)), 0.5, None) for arm in arms for label_budget in ("5%", "9%")
    ]
    figures.efficiency_curves(summaries, {(r"$\T$", "5%"): 0.05, (r"$\T$", "9%"): 0.09}, arms, colour)
    difference = Difference(r"$\T$", "5%", "a", "b", 1, 6, 6, 0.1, 0.0, 0.2, 0.5)
    figures.gain_bars({arm: [difference] for arm in arms}, colour, "points")
    for figure in drawn:
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == arms
        assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("width", [figures.WIDTH, figures.NARROW])
def test_charts_have_room_beside_long_names(width: float, drawn: list[Figure]) -> None:
    task = "Task999_" + "AVeryLongName" * 5
    difference = Difference(task, "5%", "a", "b", 1, 6, 6, 0.1, 0.0, 0.2, 0.5)
    figures.gain_bars({"a − b": [difference]}, {"a − b": "red"}, "points", width)
    groups = {"groups": {task: 0, "B": 0, "C": 1}, "tree": [[0, 1, 0.2, 2], [2, 3, 0.9, 3]]}
    figures.group_tree(groups, width)
    for figure in drawn:
        assert figure.get_figwidth() == width
        assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width
        for label in figure.axes[0].get_yticklabels():
            extent = label.get_window_extent()
            assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1 + 1


def test_labels_of_a_mask_have_colours_of_their_own_and_a_legend(drawn: list[Figure]) -> None:
    mask = np.repeat(np.arange(12, dtype=np.uint8), 12).reshape(12, 12)
    labels = {value: f"organ {value}" for value in range(1, 14)}
    overlay = pictures.Overlay("best", "c", np.zeros((12, 12), np.float32), mask, {"a$": mask}, {"a$": 1}, 1, labels)
    figures.overlay_picture([overlay])
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"organ {value}" for value in range(1, 12)
    ]  # those that it shows
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert colours == [label_colours(labels)[value] for value in range(1, 12)]  # as in every other picture
    assert len(set(colours)) == 11
    figures.overlay_picture([overlay, replace(overlay, labels=labels | {1: "another task's"})])
    assert len(drawn[1].legends) == 0


def test_an_ablation_of_single_domain_pretraining_stands_beside_it(tmp_path: Path) -> None:
    arms = {"scratch": {"domains": "none"}, "single": {"domains": "single"}}
    arms["no-image"] = {"domains": "single", "pretrain": {"options": {"weights": {"image": 0}}}}
    bench = change_experiment(make_bench(tmp_path / "bench"), lambda cell: cell["arm"] in arms, arms=arms)
    write_report(bench)
    tables = (bench / "tables.md").read_text(encoding="utf-8")
    assert (
        "| arm | Dice (%) | single, same runs | mean rank | − single | tasks above | − scratch | tasks above |"
        in tables
    )
    assert re.search(r"\| no-image \| [\d.]+ \| [\d.]+ \| 1.00 \| \+3.00 \| 3 of 3 \| \+8.00 \| 3 of 3 \|", tables)


def test_numbers_of_subjects_are_another_share_of_each_task(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    share = {"few": {"A": 0.02, "B": 0.4, "C": 0.1}, "more": {"A": 0.04, "B": 0.8, "C": 0.2}}
    for file in ("experiment.json", "ledger.jsonl"):
        text = (bench / file).read_text()
        for name, old, value in (("few", "5%", "2"), ("more", "100%", "4")):
            text = text.replace(f'"{old}"', f'"{value}"')
            for task, fraction in share[name].items():
                start = rf'"task": "{task}", "label_budget": "{value}", "fraction": '
                text = re.sub(rf"{start}[\d.]+", lambda _, s=start, f=fraction: f"{s}{f}", text)
        (bench / file).write_text(text)
    write_report(bench)
    tables = (bench / "tables.md").read_text(encoding="utf-8")
    assert tables.index("## Dice (%) with 2 labelled subjects") < tables.index("## Dice (%) with 4 labelled subjects")
    assert "| 5 % of the labels" not in tables


def test_variants_are_compared_over_what_they_share_with_the_reference() -> None:
    def row(arm: str, task: str, seed: int, dice: float) -> dict[str, Any]:
        scores = [{"case": "c", "subject": "c", "label": 1, "dice": dice}]
        return {"arm": arm, "task": task, "label_budget": "5%", "seed": seed, "dice": dice, "scores": scores}

    rows = [row("joint", task, seed, 0.5 + seed / 10) for task in "AB" for seed in (0, 1)]
    rows += [row("less", "A", 1, 0.4), row("more", "A", 0, 0.9), row("more", "B", 0, 0.1)]
    # Nothing to score there: neither a Dice of 0 nor one to compare.
    rows.append({**row("less", "B", 0, 0.0), "dice": None, "scores": []})
    table = variant_table(rows, ("less", "more"), "joint", None, "5%")
    assert [[cell.text for cell in cells] for cells in table.rows] == [
        ["joint", "55.0", "55.0", "–", "–", "–"],
        ["less", "40.0", "60.0", "–", "−20.00", "0 of 1"],
        ["more", "50.0", "50.0", "–", "+0.00", "1 of 2"],
    ]


def test_a_pretraining_made_twice_is_said(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    lines = [json.loads(line) for line in (bench / "ledger.jsonl").read_text().splitlines()]
    for row in lines:
        row["init_weights"] = {"single": "a", "joint": f"b{row['seed']}"}.get(row["arm"])
    (bench / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    page = write_report(bench).read_text(encoding="utf-8")
    assert page.count("started from different weights") == 1
    assert "Runs of joint started from different weights" in page


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no benchmark"):
        write_report(tmp_path)
    bench = make_bench(tmp_path / "bench")
    (bench / "ledger.jsonl").write_text("")
    with pytest.raises(RunError, match="none of its runs"):
        write_report(bench)


def test_only_an_experiment_that_asks_is_judged_by_the_paper(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    of_the_paper = re.compile("abstract|Zheng|2107.04886|claim", re.IGNORECASE)
    assert of_the_paper.search(body_of(write_report(bench)))
    change_experiment(bench, lambda cell: True, claims="none")
    assert not of_the_paper.search(body_of(write_report(bench)))
    assert not of_the_paper.search((bench / "tables.md").read_text(encoding="utf-8"))


def body_of(page: Path) -> str:
    """What a page says, without its style and pictures."""
    text = page.read_text(encoding="utf-8").partition("<body>")[2]
    return re.sub(r"data:[^\"]*", "", text)


def test_unfinished_and_tuning_are_said(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "bench")
    content = json.loads((bench / "experiment.json").read_text())
    content["experiment"]["scoring"] = {"part": "val"}
    (bench / "experiment.json").write_text(json.dumps(content))
    (bench / "ledger.jsonl").write_text("".join((bench / "ledger.jsonl").read_text().splitlines(keepends=True)[:7]))
    page = write_report(bench).read_text(encoding="utf-8")
    assert "figures for tuning, not a result" in page
    assert "65 runs are still to be made" in page


def test_markdown() -> None:
    table = Table("Scores", ["task", "a|b"], [[TableCell("x"), TableCell("1.0", best=True)]], "Mean.")
    assert table.markdown() == "## Scores\n\n| task | a\\|b |\n| :-- | --: |\n| x | **1.0** |\n\nMean.\n"
    names = Table("T", ["<b>`"], [[TableCell("[a](b)")], [TableCell("Task_1 *\n| −1.0")]])
    assert names.markdown().splitlines()[2:] == [
        "| &lt;b&gt;\\` |",
        "| :-- |",
        "| \\[a\\](b) |",
        "| Task_1 \\* \\| −1.0 |",
    ]


def test_score_table_marks_the_best_and_sums_up() -> None:
    rows = [
        {"task": task, "label_budget": "5%", "arm": arm, "seed": seed, "dice": dice + seed / 10, "hd95": 1.0}
        for task, arm, dice in (("A", "x", 0.2), ("A", "y", 0.3), ("B", "x", 0.5), ("B", "y", 0.1))
        for seed in (0, 1)
    ]
    table = score_table(rows, ("x", "y", "absent"), "5%")
    assert table.header == ["task", "x", "y"]
    assert table.rows[0] == [TableCell("A"), TableCell("25.0 ± 7.1"), TableCell("35.0 ± 7.1", best=True)]
    assert table.rows[2] == [TableCell("mean of 2 tasks"), TableCell("40.0", best=True), TableCell("25.0")]
    assert table.rows[3] == [TableCell("mean rank"), TableCell("1.50", best=True), TableCell("1.50", best=True)]
    # While a seed is missing the task's figures stand unmarked and say so, and its means do not count over tasks.
    table = score_table([*rows[:-1], *({**row, "task": "C"} for row in rows[:4])], ("x", "y"), "5%")
    assert table.rows[1] == [TableCell("B"), TableCell("55.0 ± 7.1"), TableCell("10.0 (1 of 2 seeds)")]
    assert table.rows[3] == [
        TableCell("mean of 2 tasks that all arms have with the same seeds"),
        TableCell("25.0"),
        TableCell("35.0", best=True),
    ]
