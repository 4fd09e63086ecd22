"""What looks like a collapse, and for how long."""

import pytest

from nnssl.recipe import PretrainRecipe
from nnssl.trainers.collapse import CollapseWatch, symptoms

RECIPE = PretrainRecipe(steps=100, batch_size=8, warmup_fraction=0.1, collapse_steps=3)
ALIVE = {"loss": 1.0, "feature_std": 0.5, "effective_rank": 4.0, "teacher_entropy": 0.6, "prototype_usage": 0.5}


@pytest.mark.parametrize(
    ("number", "value", "said"),
    [
        ("feature_std", 0.001, "all features are alike"),
        ("effective_rank", 1.01, "one direction is left"),
        ("teacher_entropy", 0.9999, "all teacher targets are uniform"),
        ("teacher_entropy", 0.0, "all teacher targets are one-hot"),
    ],
)
def test_each_health_number_has_its_symptom(number: str, value: float, said: str) -> None:
    assert symptoms(ALIVE, RECIPE) == {}
    found = symptoms(ALIVE | {number: value}, RECIPE)
    assert list(found) == [number] and said in found[number]


def test_uniform_targets_that_are_merely_soft_are_no_collapse() -> None:
    assert symptoms(ALIVE | {"teacher_entropy": 0.989}, RECIPE) == {}  # of a healthy run: 6.85 of ln 1024 = 6.93


def test_a_batch_of_few_volumes_has_a_low_rank_by_itself() -> None:
    assert symptoms(ALIVE | {"effective_rank": 1.0}, PretrainRecipe(batch_size=3)) == {}


def test_a_task_without_teacher_is_watched_by_its_features() -> None:
    assert symptoms({"loss": 0.0}, RECIPE) == {}


def test_only_steps_in_a_row_after_the_warm_up_count() -> None:
    watch, dead = CollapseWatch(RECIPE), ALIVE | {"feature_std": 0.0}
    assert [watch.see(step, dead) for step in range(10)] == [None] * 10
    for step, values in enumerate((dead, dead, ALIVE, dead, dead), start=10):
        assert watch.see(step, values) is None
        assert watch.suspicious == (values is dead)
    assert "for 3 steps" in (watch.see(15, dead) or "")


def test_different_symptoms_do_not_add_up() -> None:
    watch = CollapseWatch(RECIPE)
    for step, number in enumerate(("feature_std", "effective_rank") * 4, start=10):
        assert watch.see(step, ALIVE | {number: 0.0}) is None
