"""The benchmark's prompts: each category says what it should, and never what a training set says."""

from collections import Counter

import numpy as np
import pytest

from ldm.data.captions import parse
from ldm.data.scene import BACKGROUNDS, COLORS, COUNTS, HELD_OUT, RELATIONS, SHAPES, SIZES
from ldm.data.shapes import SPLITS, ShapesConfig
from ldm.evaluation.benchmark import mark, true_pictures
from ldm.evaluation.prompts import CATEGORIES, SEED, prompt_set, read_prompts

NUMBER = 100  # prompts of each category that are looked at
ONE, TWO, MANY = {1}, {2}, set(COUNTS)
NO, YES, EITHER = {False}, {True}, {False, True}
STATES = {  # category: objects in the picture, and whether colours, sizes, a relation and a background are stated
    "single object": (ONE, NO, NO, NO, NO),
    "two objects": (TWO, NO, NO, NO, NO),
    "counting": (MANY, EITHER, NO, NO, NO),
    "colors": (ONE, YES, NO, NO, NO),
    "position": (TWO, EITHER, NO, YES, NO),
    "color attribution": (TWO, YES, NO, NO, NO),
    "size": (ONE, EITHER, YES, NO, NO),
    "background": (ONE, EITHER, NO, NO, YES),
    "full": (TWO, YES, YES, YES, YES),
    "held out": (ONE | TWO, YES, NO, EITHER, NO),
}


@pytest.fixture(scope="module")
def prompts():
    """The prompts of each category."""
    whole = prompt_set(NUMBER)
    return {category: [prompt for prompt in whole if prompt.category == category] for category in CATEGORIES}


def things(prompts):
    return [thing for prompt in prompts for thing in prompt.statement.things]


@pytest.mark.parametrize("number", [1, 7])
def test_every_category_has_the_same_number_of_prompts(number):
    assert Counter(prompt.category for prompt in prompt_set(number)) == dict.fromkeys(CATEGORIES, number)


@pytest.mark.parametrize("number", [0, -3])
def test_no_prompts_at_all_are_refused(number):
    with pytest.raises(ValueError, match=f"^{number} prompts per category are too few; take at least 1$"):
        prompt_set(number)


def test_the_prompts_are_the_same_every_time_and_others_with_another_seed():
    assert prompt_set(20) == prompt_set(20)
    assert prompt_set(20) != prompt_set(20, seed=SEED + 1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_first_prompts_of_a_larger_set_are_the_smaller_set(category, prompts):
    few = [prompt for prompt in prompt_set(9) if prompt.category == category]
    assert few == prompts[category][:9]


def test_what_each_category_states_is_written_down_here():
    assert STATES.keys() == CATEGORIES.keys()


@pytest.mark.parametrize("category", STATES)
def test_a_category_states_what_it_is_about_and_nothing_else(category, prompts):
    numbers, colors, sizes, relations, backgrounds = STATES[category]
    statements = [prompt.statement for prompt in prompts[category]]
    said = things(prompts[category])
    assert {len(statement.things) * statement.count for statement in statements} == numbers
    assert {thing.color is not None for thing in said} == colors
    assert {thing.size is not None for thing in said} == sizes
    assert {statement.relation is not None for statement in statements} == relations
    assert {statement.background is not None for statement in statements} == backgrounds


@pytest.mark.parametrize("category", STATES)
def test_a_category_uses_every_word_it_could(category, prompts):
    said = things(prompts[category])
    statements = [prompt.statement for prompt in prompts[category]]
    assert {thing.shape for thing in said} == set(SHAPES)
    for used, all_of_them in (
        ({thing.color for thing in said}, COLORS),
        ({thing.size for thing in said}, SIZES),
        ({statement.relation for statement in statements}, RELATIONS),
        ({statement.background for statement in statements}, BACKGROUNDS),
    ):
        assert used - {None} in (set(), set(all_of_them))


@pytest.mark.parametrize("category", STATES)
def test_two_things_of_a_prompt_differ_in_shape_and_state_the_same_attributes(category, prompts):
    for prompt in prompts[category]:
        said = prompt.statement.things
        assert len({thing.shape for thing in said}) == len(said)
        assert len({(thing.color is None, thing.size is None) for thing in said}) == 1
        colors = [thing.color for thing in said if thing.color]
        assert len(set(colors)) == len(colors)


def test_two_held_out_things_are_related_and_one_is_not(prompts):
    for prompt in prompts["held out"]:
        assert (prompt.statement.relation is not None) == (len(prompt.statement.things) == 2)


def test_held_out_prompts_name_all_held_out_pairs_and_nothing_else(prompts):
    assert {(thing.shape, thing.color) for thing in things(prompts["held out"])} == set(HELD_OUT)


@pytest.mark.parametrize("category", [category for category in CATEGORIES if category != "held out"])
def test_no_other_category_names_a_held_out_pair(category, prompts):
    assert not {(thing.shape, thing.color) for thing in things(prompts[category])} & set(HELD_OUT)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_is_not_the_same_prompt_again_and_again(category, prompts):
    statements = Counter(prompt.statement for prompt in prompts[category])
    assert len(statements) >= len(SHAPES)
    assert statements.most_common(1)[0][1] < NUMBER / 3


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_training_set_of_the_same_seed_says_other_things(category, split, prompts):
    shapes = ShapesConfig(seed=SEED).build(split)
    theirs = [shapes.scene(index)[2] for index in range(NUMBER)]
    ours = [prompt.statement for prompt in prompts[category]]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) < NUMBER / 10
    assert sum(a.things[0].shape == b.things[0].shape for a, b in zip(ours, theirs, strict=True)) < NUMBER / 3


@pytest.fixture
def streams(monkeypatch):
    """What every random generator made in this test would give first."""
    made, default_rng = [], np.random.default_rng

    def spied(seed):
        made.append(default_rng(seed).bytes(8))
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", spied)
    return made


def test_no_training_set_of_the_same_seed_draws_from_a_prompts_stream(streams):
    prompts = prompt_set(20)
    true_pictures(prompts)
    ours = set(streams)
    assert len(ours) == 2 * len(prompts)  # each of its own, and none of its picture's
    streams.clear()
    for split in SPLITS:
        shapes = ShapesConfig(seed=SEED).build(split)
        for index in range(500):
            shapes.scene(index)
    assert len(streams) == 500 * len(SPLITS)
    assert not ours & set(streams)


def test_true_pictures_are_judged_right():
    prompts = prompt_set(40)
    score = mark(prompts, true_pictures(prompts)).score
    assert score.overall.total == 40 * len(CATEGORIES)
    assert score.overall.value >= 0.995
    assert all(share.value >= 0.995 for share in score.attributes.values())


def test_true_pictures_are_the_same_every_time_and_others_with_another_seed():
    prompts = prompt_set(2)
    assert np.array_equal(true_pictures(prompts), true_pictures(prompts))
    assert not np.array_equal(true_pictures(prompts), true_pictures(prompts, seed=1))
    assert true_pictures(prompts[:1], 128).shape == (1, 128, 128, 3)


def test_a_file_of_prompts_is_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffA red star.\n\n  two small rings\na star left of a ring on a navy background\n", "utf-8")
    prompts = read_prompts(path)
    assert [prompt.text for prompt in prompts] == [
        "A red star.",
        "two small rings",
        "a star left of a ring on a navy background",
    ]
    assert {prompt.category for prompt in prompts} == {"prompts"}
    assert [prompt.statement for prompt in prompts] == [parse(prompt.text) for prompt in prompts]


@pytest.mark.parametrize("before", [[], ["a red star"], ["", "a red star", ""]])
@pytest.mark.parametrize("wrong", ["a red dog", "five stars", "two stars and a ring"])
def test_a_wrong_prompt_in_a_file_is_named_with_its_line(wrong, before, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*before, wrong, "a blue ring"]), "utf-8")
    with pytest.raises(ValueError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}, line {len(before) + 1}: '{wrong}'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_prompt_is_refused(content, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match="prompts.txt holds no prompt"):
        read_prompts(path)
