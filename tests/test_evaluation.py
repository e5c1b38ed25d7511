from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hssl.config import AggregateConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from hssl.errors import ConfigError, LeakError, RunError, SourceError, StoreError
from hssl.evaluation import EvaluationResult, _score, evaluate, worst_median_best
from hssl.metrics import LabelScore, score_labels
from hssl.prediction import Predictor, predict
from hssl.prediction.sheet import DrawnCase
from hssl.runs import Run, RunInfo
from hssl.sources.files import read_image
from hssl.store import Store, aggregate

AFFINE = np.array([[0, 0, 4.0, 5], [-1.5, 0, 0, 20], [0, 1.5, 0, -7], [0, 0, 0, 1]])


class ByIntensity(nn.Module):
    """Reads the class off the intensity: 0, 1/2 and 1 are 0, 1 and 2."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1) + offset)

    def forward(self, x: Tensor) -> Tensor:
        return -((x - self.levels) ** 2)


def ball(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """A ball of label 1 with a core of label 2; odd seeds have no core."""
    centre = np.random.default_rng(seed).uniform(0.4, 0.6, 3) * shape
    radius = np.sqrt(sum((grid - c) ** 2 for grid, c in zip(np.indices(shape), centre, strict=True)))
    core = 2 if seed % 2 == 0 else 1
    return np.where(radius < 2, core, np.where(radius < 5, 1, 0)).astype(np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Eight subjects whose images show their masks: without resampling a network can find them exactly."""
    raw = tmp_path / "Balls"
    for folder in ("images", "labels"):
        (raw / folder).mkdir(parents=True)
    for seed in range(8):
        mask = ball((18, 20, 12), seed)
        pixels = mask * np.float32(40)
        nib.save(nib.Nifti1Image(pixels, AFFINE), raw / "images" / f"p{seed}.nii.gz")
        nib.save(nib.Nifti1Image(mask, AFFINE), raw / "labels" / f"p{seed}.nii.gz")
    config = AggregateConfig(window=(0, 80), fractions=(0.25, 0.25, 0.5), workers=1)
    return aggregate([raw], tmp_path / "store", config=config)


def make_run(path: Path, store: Store, name: str = "Balls", **changes: object) -> Run:
    task, split = store.tasks[name], store.split(name)
    values: dict[str, object] = {
        "stage": "finetune",
        "network": NetworkConfig(features=(2, 2, 2)),
        "task": task,
        "subjects_seen": {name: split.train},
        "masks_seen": {name: [*split.train, *split.val]},
        "provenance": {"data": {}, "store_path": str(store.path)},
        "complete": True,
    }
    config = FinetuneConfig(task=name, patch_size=24, precision="32")
    return Run.prepare(path, config, RunInfo.model_validate({**values, **changes})).create()


@pytest.fixture
def run(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = make_run(tmp_path / "run", store)
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, run.info.task))
    return run


def test_a_perfect_network_scores_perfectly_in_the_original_geometry(run: Run, store: Store) -> None:
    result = evaluate(run.path)
    assert (result.task, result.part, result.space, result.leaked) == ("Balls", "test", "source", [])
    assert (result.store_hash, result.split_hash) == (store.hash, store.split_hash)
    assert sorted({row.subject for row in result.scores}) == store.split("Balls").test
    assert (result.mean.dice, result.mean.hd95, result.mean.surface_dice) == (1.0, 0.0, 1.0)
    for row in result.scores:
        truth = ball((18, 20, 12), int(row.case[1:]))
        present = bool((truth == row.label).any())
        assert row.truth_voxels == row.predicted_voxels == (truth == row.label).sum()
        assert row.dice == (1.0 if present else None)
    cores = sum(int(subject[1:]) % 2 == 0 for subject in store.split("Balls").test)
    assert [mean.cases for mean in result.labels] == [4, cores]


def test_rows_and_means_by_hand(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Ready masks: one case is found, one is shifted, in one all is missed, in one the core is invented.
    test = store.cases("Balls", part="test")
    ready = tmp_path / "ready"
    ready.mkdir()
    truths = {case.id: ball((18, 20, 12), int(case.id[1:])) for case in test}
    changed = [lambda m: m, lambda m: np.roll(m, 1, axis=2), np.zeros_like, lambda m: np.minimum(m * 2, 2)]
    masks = {case.id: change(truths[case.id]) for case, change in zip(test, changed, strict=True)}
    for name, mask in masks.items():
        nib.save(nib.Nifti1Image(mask, AFFINE), ready / f"{name}.nii.gz")
    result = evaluate(run.path, store, predictions=ready)

    expected = {
        name: score_labels(truths[name], mask, (1.5, 1.5, 4.0), [1, 2], tolerance=2.0) for name, mask in masks.items()
    }
    for row in result.scores:
        score = expected[row.case][row.label]
        assert (row.dice, row.hd95, row.surface_dice) == score[2:]
    by_case = [np.mean([s.dice for s in scores.values() if s.dice is not None]) for scores in expected.values()]
    assert result.mean.dice == pytest.approx(np.mean(by_case))
    cores = [scores[2].dice for scores in expected.values() if scores[2].dice is not None]
    assert result.labels[1].dice == pytest.approx(np.mean(cores))
    assert result.labels[1].cases == len(cores)
    assert 0 < result.mean.dice < 1
    assert (run.path / "evaluation" / "test-predictions.json").is_file()


def test_json_and_csv_hold_the_same_rows(run: Run) -> None:
    result = evaluate(run.path)
    folder = run.path / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["test.csv", "test.json"]
    assert EvaluationResult.load(folder / "test.json") == result
    assert "NaN" not in (folder / "test.json").read_text()
    with (folder / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], int(row["label"])) for row in rows] == [(r.case, r.label) for r in result.scores]
    assert [row["dice"] for row in rows] == ["" if r.dice is None else str(r.dice) for r in result.scores]


def test_another_store_has_a_result_of_its_own(run: Run, store: Store, tmp_path: Path) -> None:
    evaluate(run.path)
    own = (run.path / "evaluation" / "test.json").read_bytes()
    config = AggregateConfig(window=(0, 80), fractions=(0, 0, 1), workers=1)
    other = aggregate([tmp_path / "Balls"], tmp_path / "second", config=config)
    evaluate(run.path, other, allow_leak=True)
    assert (run.path / "evaluation" / "test.json").read_bytes() == own
    result = EvaluationResult.load(run.path / "evaluation" / "test-second.json")
    assert len({row.subject for row in result.scores}) == 8
    assert (run.path / "evaluation" / "test-second.csv").exists()


def test_no_result_of_other_data_is_replaced(run: Run, store: Store, tmp_path: Path) -> None:
    folder = run.path / "evaluation"
    test = store.cases("Balls", part="test")
    for ready in (tmp_path / "a", tmp_path / "b"):
        ready.mkdir()
        for case in test:
            shutil.copy(str(case.label_path), ready / f"{case.id}.nii.gz")
    for _ in range(2):
        evaluate(run.path, predictions=tmp_path / "a")
    with pytest.raises(RunError, match=r"test-predictions.json: is the result of other data.*move it away"):
        evaluate(run.path, predictions=tmp_path / "b")
    (folder / "test-predictions.json").unlink()
    assert evaluate(run.path, predictions=tmp_path / "b").predictions == str(tmp_path / "b")

    evaluate(run.path, space="store")
    # Another store of that name, and two of one name.
    for name, split in (("x/store", 1), ("x/other", 1), ("y/other", 2)):
        shutil.copytree(store.path, tmp_path / name)
        splits = json.loads((store.path / "splits.json").read_text())
        splits["tasks"]["Balls"]["test"] = store.split("Balls").test[split:]
        (tmp_path / name / "splits.json").write_text(json.dumps(splits))
    before = (folder / "test-store.json").read_bytes()
    with pytest.raises(RunError, match=r"test-store.json: is the result of other data"):
        evaluate(run.path, tmp_path / "x/store")
    assert (folder / "test-store.json").read_bytes() == before
    evaluate(run.path, tmp_path / "x/other")
    with pytest.raises(RunError, match=r"test-other.json: is the result of other data"):
        evaluate(run.path, tmp_path / "y/other")


def test_rows_to_print_end_with_the_mean_and_name_the_tolerance(run: Run) -> None:
    rows = evaluate(run.path, tolerance=1.5).rows()
    assert [row["label"] for row in rows] == ["label_1", "label_2", "mean"]
    assert rows[-1]["surface Dice (1.5 mm)"] == 1.0


def test_subjects_whose_masks_were_seen_are_refused_or_marked(run: Run, store: Store) -> None:
    seen = store.split("Balls").val
    with pytest.raises(LeakError, match=f"2 of the val subjects: {', '.join(seen)}"):
        evaluate(run.path, part="val")
    assert not (run.path / "evaluation").exists()
    result = evaluate(run.path, part="val", allow_leak=True)
    assert result.leaked == seen
    assert result.rows()[-1]["label"] == "mean (seen in training)"


def test_a_test_subject_seen_in_pre_training_is_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = store.split("Balls").test[1]
    run = make_run(tmp_path / "leaky", store, subjects_seen={"Balls": [subject], "Other": ["p0", "p1"]})
    with pytest.raises(LeakError, match=f"1 of the test subjects: {subject} "):
        evaluate(run.path)


def test_another_task_has_other_subjects_with_the_same_names(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "clean", store, subjects_seen={"Other": store.split("Balls").test})
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, run.info.task))
    assert evaluate(run.path).leaked == []


def test_a_mask_that_has_changed_or_is_gone_is_refused_but_not_needed_in_the_stores_space(
    run: Run, store: Store
) -> None:
    label = Path(str(store.cases("Balls", part="test")[0].label_path))
    nib.save(nib.Nifti1Image(ball((18, 20, 12), 99), AFFINE), label)
    with pytest.raises(StoreError, match="has changed"):
        evaluate(run.path)
    label.unlink()
    with pytest.raises(StoreError, match=r"p0\.nii\.gz: cannot be read: No such file"):
        evaluate(run.path)
    shutil.rmtree(label.parents[1])
    with pytest.raises(SourceError, match="Balls"):
        evaluate(run.path)
    result = evaluate(run.path, space="store")
    assert result.space == "store"
    assert result.mean.dice == 1.0
    assert json.loads((run.path / "evaluation" / "test-store.json").read_text())["space"] == "store"


def test_predicted_files_score_as_the_run_does(
    tmp_path: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store holds float16: prediction from files rounds as it does, or voxels near a border change sides."""
    raw = phantom_root / "Task01_AbdomenCT"
    store = aggregate(raw, tmp_path / "noisy", config=AggregateConfig(fractions=(0.25, 0, 0.75)))
    name = "Task01_AbdomenCT"
    torch.manual_seed(0)
    network = nn.Conv2d(1, len(store.tasks[name].labels) + 1, 3, padding=1)
    run = make_run(tmp_path / "noisy-run", store, name)
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (network, run, run.info.task))
    cases = store.cases(name, part="test")
    files = [Path(case.image_path) for case in cases]
    masks = predict(run.path, files, tmp_path / "masks")
    ready = evaluate(run.path, store, predictions=tmp_path / "masks")
    assert len(cases) == 3
    assert ready.scores == evaluate(run.path, store).scores
    # The rounding matters: from float32 other voxels are found.
    preprocessing, predictor = store.tasks[name].preprocessing, Predictor(run.path)
    changed = 0
    for case, mask in zip(cases, masks, strict=True):
        low, high = case.intensity
        pixels = np.clip((read_image(Path(case.image_path)) - low) / (high - low), 0, 1)
        with monkeypatch.context() as patch:
            patch.setattr(np, "float16", np.float32)
            exact = preprocessing.prepare_image(pixels, case.geometry, intensity=(0, 1))
        found = predictor.mask(exact, case.geometry)
        changed += int(np.count_nonzero(found != np.asanyarray(nib.load(mask).dataobj)))
    assert changed > 0


def test_distances_are_in_mm_in_either_space(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ByIntensity):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.roll(x, 2, dims=3))  # two columns, 3 mm

    run = make_run(tmp_path / "shifted", store)
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (Shifted(), run, run.info.task))
    results = [evaluate(run.path, space=space, tolerance=3.0) for space in ("source", "store")]
    for row, same in zip(*(result.scores for result in results), strict=True):
        assert (row.dice, row.hd95, row.surface_dice) == (same.dice, same.hd95, same.surface_dice)
    assert results[0].labels[1].surface_dice == 1.0
    assert results[0].labels[1].hd95 == pytest.approx(3.0)


def test_ready_masks_must_be_there_and_fit(run: Run, store: Store, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with pytest.raises(SourceError, match="no such folder"):
        evaluate(run.path, predictions=ready)
    ready.mkdir()
    with pytest.raises(SourceError, match="has no mask of case"):
        evaluate(run.path, predictions=ready)
    for case in store.cases("Balls", part="test"):
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), AFFINE), ready / f"{case.id}.nii.gz")
    with pytest.raises(SourceError, match="has the shape"):
        evaluate(run.path, predictions=ready)
    for case in store.cases("Balls", part="test"):
        mask = nib.load(case.label_path)
        values = np.asanyarray(mask.dataobj).astype(np.uint8)
        nib.save(nib.Nifti1Image(values, mask.affine), ready / f"{case.id}.nii.gz")
    assert evaluate(run.path, predictions=ready).mean.dice == 1.0
    nib.save(nib.Nifti1Image(np.where(values == 1, np.uint8(9), values), mask.affine), ready / f"{case.id}.nii.gz")
    with pytest.raises(SourceError, match=r"holds 9, which is not a label of 'Balls' \(\[1, 2\]\)"):
        evaluate(run.path, predictions=ready)
    # The same mask in the same place, stored the other way round: voxel by voxel it would miss.
    turned = mask.affine @ np.array([[-1, 0, 0, values.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values[::-1], turned), ready / f"{case.id}.nii.gz")
    with pytest.raises(SourceError, match="voxels away from its image"):
        evaluate(run.path, predictions=ready)


def test_a_store_made_with_another_preprocessing_or_other_labels_is_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = store.tasks["Balls"]
    other = task.model_copy(update={"preprocessing": task.preprocessing.model_copy(update={"window": (0.0, 99.0)})})
    run = make_run(tmp_path / "other", store, task=other)
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, run.info.task))
    renumbered = make_run(tmp_path / "third", store, task=task.model_copy(update={"labels": {1: "two", 2: "one"}}))
    with pytest.raises(StoreError, match="another preprocessing"):
        evaluate(run.path)
    monkeypatch.setattr(
        "hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), renumbered, renumbered.info.task)
    )
    with pytest.raises(StoreError, match=r"has the labels .*, the run's has \{1: 'two', 2: 'one'\}"):
        evaluate(renumbered.path)


def test_what_cannot_be_evaluated_says_so(tmp_path: Path, store: Store, run: Run) -> None:
    with pytest.raises(ConfigError, match="part 'tset'"):
        evaluate(run.path, part="tset")
    with pytest.raises(ConfigError, match="ready masks"):
        evaluate(run.path, predictions=tmp_path, space="store")
    with pytest.raises(RunError, match="--store"):
        evaluate(make_run(tmp_path / "elsewhere", store, provenance={"data": {}}).path)
    info = run.info.model_copy(update={"stage": "pretrain", "task": None})
    pretrained = Run.prepare(tmp_path / "pretrained", PretrainConfig(), info).create()
    with pytest.raises(RunError, match="pre-training run"):
        evaluate(pretrained.path, store)
    with pytest.raises(RunError, match="cannot be read"):
        EvaluationResult.load(tmp_path / "nothing.json")


def test_a_store_that_was_moved_can_be_given(run: Run, store: Store) -> None:
    shutil.move(store.path, store.path.with_name("moved"))
    with pytest.raises(StoreError, match=r"the store of this run is gone .if it was moved, give it with --store"):
        evaluate(run.path, space="store")
    assert evaluate(run.path, store.path.with_name("moved"), space="store").mean.cases > 0


def test_black_and_white_pictures_are_scored_as_label_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "Squares"
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
    for number in range(4):
        pixels = np.zeros((20, 30), np.uint8)
        pixels[4 : 10 + number, 5:15] = 255
        Image.fromarray(pixels // 2).save(raw / "images" / f"s{number}.png")
        Image.fromarray(pixels).save(raw / "masks" / f"s{number}.png")
    config = AggregateConfig(window=(0, 255), fractions=(0.25, 0.25, 0.5), workers=1)
    store = aggregate([raw], tmp_path / "store", config=config)
    run = make_run(tmp_path / "run", store, "Squares")
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, run.info.task))
    result = evaluate(run.path)
    assert [(row.label, row.dice, row.surface_dice) for row in result.scores] == [(1, 1.0, 1.0)] * 2
    assert result.scores[0].truth_voxels == 10 * (6 + int(result.scores[0].case[1:]))
    ready = evaluate(run.path, predictions=raw / "masks")
    assert ready.scores == result.scores


def test_what_nobody_has_drawn_is_not_scored(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that finds more than was drawn is not wrong there."""
    task = store.tasks["Balls"].model_copy(update={"ignore": 2, "labels": {1: store.tasks["Balls"].labels[1]}})
    truth = np.zeros((4, 5, 6), np.uint8)
    truth[:2] = 1
    truth[3] = 2
    predicted = np.ones_like(truth)
    predicted[2] = 0
    (score,) = _score(store.cases("Balls")[0], task, truth, predicted, (1, 1, 1), 2.0)
    assert (score.label, score.dice, score.predicted_voxels) == (1, 1.0, 60)


def test_masks_that_are_kept_score_the_same_when_they_are_read_back(run: Run, tmp_path: Path) -> None:
    result = evaluate(run.path, masks=tmp_path / "new" / "masks")
    names = sorted(path.name for path in (tmp_path / "new" / "masks").iterdir())
    assert names == sorted({f"{row.case}.nii.gz" for row in result.scores})
    again = evaluate(run.path, predictions=tmp_path / "new" / "masks")
    assert again.scores == result.scores
    kept = nib.load(tmp_path / "new" / "masks" / names[0])
    assert kept.get_data_dtype() == np.uint8
    np.testing.assert_allclose(kept.affine, AFFINE)


def test_the_sheet_shows_the_worst_the_median_and_the_best_case(
    run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[DrawnCase]] = []
    monkeypatch.setattr("hssl.evaluation.draw_sheet", lambda cases, labels, output: drawn.append(cases))
    cases = [case.id for case in store.cases("Balls", part="test")]
    dice = dict(zip(cases, (0.5, 0.25, 1.0, 0.75), strict=True))
    monkeypatch.setattr(
        "hssl.evaluation.score_labels",
        lambda truth, mask, spacing, labels, tolerance: {
            label: LabelScore(1, 1, dice[order.pop(0)], 1.0, 1.0) if label == 1 else absent for label in labels
        },
    )
    order, absent = list(cases), LabelScore(0, 0, None, None, None)
    result = evaluate(run.path, sheet=tmp_path / "sheet.png")
    ((worst, median, best),) = drawn
    names = {value: name for name, value in dice.items()}
    for what, case, value in (("worst", worst, 0.25), ("median", median, 0.5), ("best", best, 1.0)):
        record = next(each for each in store.cases("Balls") if each.id == names[value])
        truth = store.label(record)
        number = int((truth > 0).sum(axis=(1, 2)).argmax())
        assert case.title == f"{what}: {record.id}, slice {number + 1} of {record.shape[0]}, Dice {value:.3f}"
        assert np.array_equal(case.truth, truth[number])
        assert np.array_equal(case.image, store.image(record)[number])
        # The network reads the mask off the image.
        assert np.array_equal(case.mask, truth[number])
        assert case.aspect == 1.0
    assert worst_median_best(result)[0] == ("worst", names[0.25], 0.25)


def test_fewer_cases_have_fewer_rows(run: Run, tmp_path: Path) -> None:
    result = evaluate(run.path)
    first = result.scores[0].case
    one = result.model_copy(update={"scores": [row for row in result.scores if row.case == first]})
    assert [(what, case) for what, case, _ in worst_median_best(one)] == [("worst", first)]
    assert worst_median_best(result.model_copy(update={"scores": []})) == []
    evaluate(run.path, space="store", sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 900


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"predictions": "masks", "sheet": "a.png"}, "network's own predictions only"),
        ({"predictions": "masks", "masks": "kept"}, "network's own predictions only"),
        ({"space": "store", "masks": "kept"}, "kept: masks are kept on the grid of the files"),
        ({"sheet": "missing/a.png"}, "missing: there is no such folder"),
    ],
)
def test_a_sheet_and_masks_that_cannot_be_made_are_refused_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match=says):
        evaluate(run.path, **given)
    assert not (tmp_path / "kept").exists()
    assert not (run.path / "evaluation").exists()
