"""benchmarks/unseen_prompts.py: which pictures it counts."""

from benchmarks.unseen_prompts import CHOSEN_BY, unseen
from ldm.evaluation.prompts import CATEGORIES, SEED, TRAINING_SEED
from ldm.evaluation.score import Share


def test_only_pictures_of_texts_that_are_not_known_are_counted():
    marked = [
        ("counting", "two red stars", True),
        ("counting", "two rings", False),
        ("size", "a large ring", True),
        ("size", "a small ring", True),
    ]
    found = unseen(marked, {"two rings", "a small ring"})
    assert found.keys() == {*CATEGORIES, "all"}
    assert (found["counting"], found["size"], found["all"]) == (Share(1, 1), Share(1, 1), Share(2, 2))
    assert found["full"] == Share(0, 0)


def test_the_benchmarks_own_prompts_and_those_of_trainings_are_known():
    assert {SEED, TRAINING_SEED} <= CHOSEN_BY.keys() and 2026 not in CHOSEN_BY
