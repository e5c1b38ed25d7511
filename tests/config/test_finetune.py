from __future__ import annotations

import pytest

from hssl.config import FinetuneConfig, GivenSplit
from hssl.errors import ConfigError


def test_subjects_may_have_numbers_for_names(tmp_path):
    path = tmp_path / "finetune.yaml"
    for text, budget in (("003", "003"), ("3", 3), ("[1, 002]", ("1", "002")), ("5%", "5%")):
        path.write_text(f"task: A\nlabel_budget: {text}\n")
        assert FinetuneConfig.load(str(path)).label_budget == budget
    assert GivenSplit.checked({"val": [1, "b"]}).val == ("1", "b")


def test_auxiliaries_that_are_not_named_are_as_by_default():
    assert FinetuneConfig(task="A").auxiliaries == {"pretext": {}}
    assert FinetuneConfig(task="A", auxiliary={"self_training": True}).auxiliaries == {
        "pretext": {},
        "self_training": {},
    }
    both = {"pretext": False, "self_training": {"weight": 0.5}}
    assert FinetuneConfig(task="A", auxiliary=both).auxiliaries == {"self_training": {"weight": 0.5}}


def test_an_auxiliary_of_ones_own_is_named_by_its_place():
    assert FinetuneConfig(task="A", auxiliary={"mine.aux:Own": {"depth": 2}}).auxiliaries == {
        "pretext": {},
        "mine.aux:Own": {"depth": 2},
    }


def test_options_of_an_auxiliary_go_over_those_of_the_file(tmp_path):
    path = tmp_path / "finetune.yaml"
    path.write_text("task: A\nauxiliary: {pretext: {weight: 0.1, batch_size: 2}}\n")
    config = FinetuneConfig.load(path, auxiliary={"pretext": {"weight": 0.5}, "self_training": True})
    assert config.auxiliaries == {"pretext": {"weight": 0.5, "batch_size": 2}, "self_training": {}}
    assert FinetuneConfig.load(path, auxiliary={"pretext": True}).auxiliaries["pretext"]["weight"] == 0.1
    assert FinetuneConfig.load(path, auxiliary={"pretext": False}).auxiliaries == {}


def test_what_is_off_does_not_change_the_fingerprint():
    config = FinetuneConfig(task="A", auxiliary={"pretext": {}, "self_training": False})
    assert config.fingerprint_fields() == FinetuneConfig(task="A").fingerprint_fields()
    other = FinetuneConfig(task="A", auxiliary={"pretext": {"weight": 0.2}})
    assert other.fingerprint_fields() != config.fingerprint_fields()


@pytest.mark.parametrize("value", ["often", None, [1]])
def test_an_auxiliary_is_on_off_or_its_options(value):
    with pytest.raises(ConfigError, match=r"option 'auxiliary.pretext': .*true or false"):
        FinetuneConfig.checked({"task": "A", "auxiliary": {"pretext": value}})


@pytest.mark.parametrize(
    ("budget", "subjects", "slices"), [("3@5", 3, 5), ("5%@2", "5%", 2), ("a,b@1", ("a", "b"), 1), ("3", "3", None)]
)
def test_a_budget_may_name_slices(budget, subjects, slices):
    config = FinetuneConfig(task="A", label_budget=budget)
    assert (config.label_budget, config.labelled_slices) == (subjects, slices)


@pytest.mark.parametrize("budget", ["3@", "3@0", "3@x", "3@-1"])
def test_a_budget_without_a_number_of_slices(budget):
    with pytest.raises(ConfigError, match="has no number of slices behind the @, as 3@5 has"):
        FinetuneConfig.checked({"task": "A", "label_budget": budget})
