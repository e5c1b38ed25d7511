"""One HTML page of a benchmark, with everything in it, and its tables as Markdown; made again from the ledger alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from zipfile import BadZipFile

import yaml
from jinja2 import Environment, PackageLoader

from hssl.benchmark.experiment import Cell, Experiment
from hssl.benchmark.report import figures, tables
from hssl.benchmark.report.claims import check_claims, claim_table
from hssl.benchmark.report.pictures import find_overlays, map_features
from hssl.benchmark.report.roles import Roles, find_roles
from hssl.benchmark.run.ledger import LEDGER, PRETRAINING, Ledger, Row, row_key
from hssl.benchmark.run.records import Recorded
from hssl.benchmark.run.runner import EXPERIMENT
from hssl.benchmark.statistics import Difference, compare, ordered_shares, same_cells, summarise
from hssl.errors import HsslError, RunError
from hssl.files import read_json, write_text
from hssl.store import Store
from hssl.text import budget_in_words, duration, signed

REPORT, TABLES = "report.html", "tables.md"
NO_STORE = "Left out: the data of the benchmark are not available."
NO_JOINT = "Left out: no joint pre-training is in the ledger yet."
UNREADABLE = (HsslError, OSError, EOFError, ValueError, BadZipFile)
"""What damaged arrays, masks and weights raise: they cost a page its pictures, not its tables."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: A paragraph below it.
        figures: Its pictures.
        tables: Tables below them.
        narrow: Put the figures side by side.
        folded: Show the titles of the tables only, to be opened.
    """

    title: str
    text: str = ""
    figures: list[figures.Picture] = field(default_factory=list)
    tables: list[tables.Table] = field(default_factory=list)
    narrow: bool = False
    folded: bool = False


@dataclass(frozen=True)
class _Bench:
    """A benchmark, read back: the lines of the ledger that belong to the experiment as last run."""

    path: Path
    experiment: Experiment
    roles: Roles
    cells: Sequence[Cell]
    rows: Sequence[Row]
    pretraining: Sequence[Row]
    store: Store | None

    @property
    def shares(self) -> list[str]:
        """Labels as the experiment has them, the smallest share first."""
        return ordered_shares(self.rows)

    def share(self, arms: Sequence[str]) -> str:
        """The smallest share of the labels that most of `arms` have run."""
        run = {(row["label_budget"], row["arm"]) for row in self.rows}
        return max(self.shares, key=lambda label_budget: sum((label_budget, arm) in run for arm in arms))

    @property
    def main(self) -> Sequence[str]:
        """The main arms; all where an experiment has none of them."""
        return self.roles.main or self.arms

    @property
    def arms(self) -> list[str]:
        return [*self.roles.main, *self.roles.baselines, *self.roles.variants]

    @property
    def colour(self) -> dict[str, str]:
        roles = self.roles
        return figures.colours(
            (roles.scratch, roles.single, roles.joint, roles.adapted), [*roles.baselines, *roles.variants]
        )

    def pretrained(self) -> dict[str, str]:
        """Arms by the hash of their pre-training, and of the one that it goes on from."""
        found: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for hash_ in self._chain(row["pretrain_hash"]):
                found.setdefault(hash_, {})[row["arm"]] = None
        return {hash_: ", ".join(arms) for hash_, arms in found.items()}

    def joint(self) -> Row | None:
        """The pre-training on all tasks, of the joint arm and of the one that then adapts."""
        arms = (self.roles.joint, self.roles.adapted)
        chains = [self._chain(row["pretrain_hash"]) for row in self.rows if row["arm"] in arms]
        firsts = {chain[-1] for chain in chains if chain}
        return next((row for row in self.pretraining if row["config_hash"] in firsts), None)

    @cached_property
    def _goes_on_from(self) -> dict[str, str | None]:
        return {row["config_hash"]: row["init_hash"] for row in self.pretraining}

    def _chain(self, last: str | None) -> list[str]:
        chain: list[str] = []
        while last is not None:
            if last in chain:
                what = f"pre-training {last} goes on from itself"
                raise RunError(what, path=self.path / PRETRAINING, hint="remove its line; the runs stay valid")
            chain.append(last)
            last = self._goes_on_from.get(last)
        return chain


def write_report(bench: Path | str) -> Path:
    """Writes ``report.html`` and ``tables.md`` into the folder of a benchmark.

    The experiment and its two ledgers are enough. Pictures of images and features also need the store and the run
    folders; where those are missing, a line says that they are left out.

    Args:
        bench: The folder.

    Returns:
        The page.

    Raises:
        RunError: The folder holds no benchmark, or none of its runs is finished.
    """
    read = _read(Path(bench))
    claims = check_claims(read.rows, read.roles) if read.experiment.claims == "abstract" else []
    sections = _sections(read)
    environment = Environment(
        loader=PackageLoader("hssl.benchmark.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.jinja").render(
        tiles=_tiles(read), claims=claims, sections=sections, facts=_facts(read), provisional=_provisional(read)
    )
    parts = [
        *([claim_table(claims)] if claims else []),
        *(table for section in sections for table in section.tables),
    ]
    write_text(read.path / TABLES, "\n".join(part.markdown() for part in parts))
    write_text(read.path / REPORT, page)
    return read.path / REPORT


def _sections(bench: _Bench) -> list[Section]:
    found = (
        _gain_section(bench),
        _score_section(bench),
        _curve_section(bench),
        *_variant_sections(bench),
        _overlay_section(bench),
        _group_section(bench),
        _feature_section(bench),
        _method_section(bench),
        _all_section(bench),
    )
    return [section for section in found if section is not None]


def _read(bench: Path) -> _Bench:
    if not (bench / EXPERIMENT).exists():
        raise RunError("holds no benchmark", path=bench, hint="make one with 'hssl benchmark EXPERIMENT -o BENCH'")
    recorded = read_json(bench / EXPERIMENT, Recorded, hint="the same 'hssl benchmark' writes it again")
    wanted = {cell.key: number for number, cell in enumerate(recorded.cells)}
    found = {wanted[key]: row for row in Ledger(bench / LEDGER).rows() if (key := row_key(row)) in wanted}
    if not found:
        raise RunError("none of its runs is finished", path=bench, hint="the same 'hssl benchmark' continues it")
    rows = same_cells(found[number] for number in sorted(found))
    experiment = recorded.experiment
    roles, pretraining = find_roles(experiment), Ledger(bench / PRETRAINING).rows()
    return _Bench(bench, experiment, roles, recorded.cells, rows, pretraining, _store(experiment, rows))


def _store(experiment: Experiment, rows: Sequence[Row]) -> Store | None:
    try:
        store = Store.open(experiment.store)
    except HsslError as error:
        logger.warning("pictures are left out: %s", error)
        return None
    if store.hash != rows[0]["store_hash"]:
        logger.warning("pictures are left out: %s does not hold the data of the benchmark", experiment.store)
        return None
    return store


# Head -----------------------------------------------------------------------------------------------------------


def _tiles(bench: _Bench) -> list[tuple[str, str]]:
    tiles = []
    for arm, other in ((bench.roles.joint, bench.roles.scratch), (bench.roles.joint, bench.roles.single)):
        if arm is None or other is None:
            continue
        label_budget = bench.share((arm, other))
        if gains := [100 * each.mean for each in compare(bench.rows, arm, other, label_budget)]:
            over = f"Dice points, {arm} over {other}, mean of {len(gains)} tasks, {budget_in_words(label_budget)}"
            tiles.append((signed(fmean(gains), 1), over))
            above = sum(gain > 0 for gain in gains)
            tiles.append(
                (f"{above} of {len(gains)}", f"tasks on which {arm} is above {other}, {budget_in_words(label_budget)}")
            )
    return tiles


def _facts(bench: _Bench) -> list[str]:
    experiment, rows = bench.experiment, bench.rows
    cases = {(row["task"], score["case"]) for row in rows for score in row["scores"]}
    part = {"test": "test", "val": "validation"}[experiment.scoring.part]
    grid = {"source": "the grid of the mask files", "store": "the store's grid"}[experiment.scoring.space]
    return [
        f"{len({row['task'] for row in rows})} tasks",
        f"{len(cases)} {part} cases, on {grid}",
        "; ".join(map(budget_in_words, bench.shares)),
        f"{len(bench.arms)} arms",
        f"{len(experiment.seeds)} seed{'s' * (len(experiment.seeds) > 1)}",
        f"{len(rows)} of {len(bench.cells)} runs finished",
    ]


def _provisional(bench: _Bench) -> str:
    remarks = []
    if bench.experiment.scoring.part == "val":
        remarks.append("Scored on validation subjects: figures for tuning, not a result.")
    if len(bench.rows) < len(bench.cells):
        remarks.append(f"{len(bench.cells) - len(bench.rows)} runs are still to be made; figures will change.")
    weights: dict[str, set[str]] = {}
    for row in bench.rows:
        if (used := row["init_weights"]) is not None:
            weights.setdefault(row["pretrain_hash"], set()).add(used)
    for mixed in [hash_ for hash_, used in weights.items() if len(used) > 1]:
        arms = ", ".join(dict.fromkeys(row["arm"] for row in bench.rows if row["pretrain_hash"] == mixed))
        remarks.append(f"Runs of {arms} started from different weights: its pre-training was made more than once.")
    return " ".join(remarks)


# Sections -------------------------------------------------------------------------------------------------------


def _gain_section(bench: _Bench) -> Section | None:
    label_budget = bench.share(bench.main)
    drawn = _gain_bars(bench, label_budget)
    text = (
        "Bars to the right of 0 are gains. Lines are 95 % bootstrap intervals over test subjects, paired by case; "
        "with few subjects they are too narrow."
    )
    return Section(f"Gains with {budget_in_words(label_budget)}", text, [drawn]) if drawn else None


def _gain_bars(bench: _Bench, label_budget: str) -> figures.Picture | None:
    groups: dict[str, list[Difference]] = {}
    colours: dict[str, str] = {}
    roles = bench.roles
    for arm, reference in _pairs(bench):
        over_scratch = reference == roles.scratch
        if not over_scratch and (arm, reference) != (roles.joint, roles.single):
            continue  # those are in the table; six bars a task are too many to look at
        used = bench.colour[arm] if over_scratch else figures.OTHER_COLOURS[0]
        if found := compare(bench.rows, arm, reference, label_budget):
            groups[f"{arm} − {reference}"] = found
            colours[f"{arm} − {reference}"] = used
    if not groups:
        return None
    unit = "difference in Dice points"
    caption = f"Paired differences with {budget_in_words(label_budget)}"
    return figures.both_widths(caption, lambda width: figures.gain_bars(groups, colours, unit, width))


def _pairs(bench: _Bench) -> list[tuple[str, str]]:
    roles = bench.roles
    scratch, single, joint, adapted = roles.scratch, roles.single, roles.joint, roles.adapted
    pairs = (
        (joint, scratch),
        (single, scratch),
        (adapted, scratch),
        (joint, single),
        (adapted, single),
        (adapted, joint),
    )
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _score_section(bench: _Bench) -> Section:
    return Section("Dice by task", tables=[tables.score_table(bench.rows, bench.main, bench.share(bench.main))])


def _all_section(bench: _Bench) -> Section:
    run = {row["label_budget"] for row in bench.rows if row["arm"] in bench.main}
    shares = [label_budget for label_budget in bench.shares if label_budget in run]
    more = [label_budget for label_budget in shares if label_budget != bench.share(bench.main)]
    found = [tables.score_table(bench.rows, bench.main, label_budget) for label_budget in more]
    found += [
        tables.score_table(bench.rows, bench.main, label_budget, m) for label_budget in shares for m in ("nsd", "hd95")
    ]
    if pairs := _pairs(bench):
        found += [tables.difference_table(bench.rows, pairs, label_budget) for label_budget in shares]
    text = (
        f"Surface Dice at a tolerance of {bench.experiment.scoring.tolerance:g} mm: higher is better. "
        "HD95 is the 95th percentile of the distances between the surfaces, the larger one of both directions: "
        "lower is better."
    )
    drawn = [bars for label_budget in more if (bars := _gain_bars(bench, label_budget))]
    return Section("All other figures", text, drawn, found, folded=True)


def _curve_section(bench: _Bench) -> Section | None:
    title = "Label efficiency"
    if len(bench.experiment.label_budgets) < 2:
        return None
    if len(bench.shares) < 2:
        return Section(
            title, f"One share of the labels was run ({budget_in_words(bench.shares[0])}): there is no curve yet."
        )
    run = {arm: {row["label_budget"] for row in bench.rows if row["arm"] == arm} for arm in bench.arms}
    arms = [arm for arm in (*bench.roles.main, *bench.roles.baselines) if len(run[arm]) > 1]
    if not arms:
        return Section(title, "No arm was run with more than one label budget: there is no curve yet.")
    summaries = [each for each in summarise(bench.rows) if each.arm in arms]
    shares = {(row["task"], row["label_budget"]): float(row["fraction"]) for row in bench.rows}
    drawn = figures.both_widths(
        "Dice over the share of labelled subjects; bars: standard deviation over seeds",
        lambda width: figures.efficiency_curves(summaries, shares, arms, bench.colour, width),
    )
    return Section(title, figures=[drawn])


def _variant_sections(bench: _Bench) -> list[Section]:
    roles = bench.roles
    reference = roles.joint or roles.single or roles.scratch
    if reference is None:
        return []
    found = []
    for title, arms in (("Baselines", roles.baselines), ("Ablation and controls", roles.variants)):
        if not arms:
            continue
        own = [
            tables.variant_table(bench.rows, arms, reference, roles.scratch, label_budget)
            for label_budget in bench.shares
            if any(row["label_budget"] == label_budget and row["arm"] in arms for row in bench.rows)
        ]
        text = "" if own else "Not run yet."
        if own and title == "Baselines":
            ranked = (*roles.main, *arms)
            own.insert(0, tables.score_table(bench.rows, ranked, bench.share(arms)))
        found.append(Section(title, text, tables=own))
    return found


def _group_section(bench: _Bench) -> Section | None:
    title, joint = "Groups of tasks", bench.joint()
    if bench.roles.joint is None and bench.roles.adapted is None:
        return None
    if joint is None:
        return Section(title, NO_JOINT)
    groups = joint["groups"]
    if not groups:
        return Section(title, "The joint pre-training of this benchmark has no groups.")
    members: dict[int, list[str]] = {}
    for task, group in groups["groups"].items():
        members.setdefault(group, []).append(task)
    text = "; ".join(f"group {group}: {', '.join(tasks)}" for group, tasks in sorted(members.items()))
    if not groups["tree"]:
        return Section(title, f"Set by hand. {text}.")
    tree = figures.both_widths("Average linkage on cosine distance", lambda width: figures.group_tree(groups, width))
    how = "Found during joint pre-training by clustering mean deep features, without any mask: "
    return Section(title, f"{how}{text}.", [tree])


def _feature_section(bench: _Bench) -> Section | None:
    title, joint = "What the network sees", bench.joint()
    if bench.roles.joint is None and bench.roles.adapted is None:
        return None
    if joint is None:
        return Section(title, NO_JOINT)
    if bench.store is None:
        return Section(title, NO_STORE)
    path = bench.path / "pretrain" / joint["config_hash"]
    if not path.exists():
        return Section(title, "Left out: the folder of the joint pre-training is not available.")
    try:
        before, after = map_features(path, bench.store)
    except UNREADABLE as error:
        return _left_out(title, error)
    caption = (
        "Validation slices by their deepest features (t-SNE), a colour for each task. The percentage counts slices "
        "whose nearest neighbour among other subjects is of the same task"
    )
    drawn = figures.both_widths(caption, lambda width: figures.feature_map(before, after, width))
    return Section(title, figures=[drawn])


def _overlay_section(bench: _Bench) -> Section | None:
    roles = bench.roles
    arms = [arm for arm in (roles.scratch, roles.joint, roles.adapted) if arm is not None]
    if not arms:
        return None
    label_budget = bench.share(arms)
    title = f"Worst, median and best case, {budget_in_words(label_budget)}"
    rows = [row for row in bench.rows if row["label_budget"] == label_budget]
    if len({row["arm"] for row in rows if row["arm"] in arms}) < len(arms):
        return Section(
            title, f"Left out: not every one of {', '.join(arms)} was run with {budget_in_words(label_budget)}."
        )
    if bench.store is None:
        return Section(title, NO_STORE)
    try:
        found = find_overlays(bench.path, bench.store, rows, arms)
    except UNREADABLE as error:
        return _left_out(title, error)
    if not found:
        return Section(title, "Left out: the masks of the runs are not available.")
    text = (
        f"Chosen by the Dice of {arms[-1]} with the first seed. The slice is that with the largest true mask; "
        "numbers are the Dice (%) of the whole case."
    )
    drawn = [figures.Picture(task, figures.overlay_rows(overlays)) for task, overlays in found.items()]
    return Section(title, text, drawn, narrow=True)


def _left_out(title: str, error: Exception) -> Section:
    reason = error.what if isinstance(error, HsslError) else f"{type(error).__name__}: {error}"
    logger.warning("'%s' is left out: %s", title, reason)
    return Section(title, f"Left out: {reason}.")


def _method_section(bench: _Bench) -> Section:
    rows, experiment = bench.rows, bench.experiment
    scored = {row["config_hash"]: row for row in rows}.values()
    pretrained = bench.pretrained()
    used = [row for row in bench.pretraining if row["config_hash"] in pretrained]
    options = {
        "pretrain": experiment.pretrain,
        "finetune": experiment.finetune,
        "finetune_by_task": experiment.finetune_by_task,
    }
    options |= {
        "arms": {name: arm.model_dump(mode="json", exclude_defaults=True) for name, arm in experiment.arms.items()}
    }
    facts = [
        ["Labelled subjects", "; ".join(_labelled(bench, label_budget) for label_budget in bench.shares)],
        ["Fine-tuning and scoring", duration(sum(row["seconds"] for row in scored))],
        ["Pre-training", duration(sum(row["seconds"] for row in used))],
        ["Store", rows[0]["store_hash"][:16]],
        ["Split", rows[0]["split_hash"][:16]],
        ["Revision", ", ".join(sorted({str(row["git"]) for row in rows}))],
        ["Versions", "; ".join(sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows}))],
        ["Machine", "; ".join(sorted({row["machine"] for row in rows}))],
        ["Options", yaml.safe_dump(options, sort_keys=False, default_flow_style=None, width=100).strip()],
    ]
    text = (
        "A seed fixes the labelled subjects, the weights of the new head and the order of batches, the same for every "
        "arm. One pre-training serves all seeds, so the spread over seeds does not include the variation between "
        "pre-trainings."
    )
    found = [tables.Table("Facts", ["", ""], [[tables.TableCell(text) for text in row] for row in facts])]
    if used:
        found.insert(0, tables.pretraining_table(used, pretrained))
    return Section("How it was made", text, tables=found)


def _labelled(bench: _Bench, label_budget: str) -> str:
    counts: dict[str, int] = {
        row["task"]: len(row["labelled"]) for row in bench.rows if row["label_budget"] == label_budget
    }
    return f"{budget_in_words(label_budget)}: " + ", ".join(f"{task} {count}" for task, count in counts.items())
