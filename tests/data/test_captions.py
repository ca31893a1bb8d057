"""A caption says its statement, and parsing it gives that statement back."""

import re
from itertools import product

import numpy as np
import pytest

from ldm.data.captions import FRAME, WORDINGS, caption, parse
from ldm.data.scene import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    TRAINED,
    Statement,
    Thing,
    draw_statement,
)
from ldm.evaluation.prompts import CATEGORIES, prompt_set


@pytest.fixture(scope="module")
def drawn():
    """(caption, statement) of 4,000 statements over all pairs."""
    rng = np.random.default_rng(11)
    statements = [draw_statement(rng, TRAINED + HELD_OUT) for _ in range(4_000)]
    return [(caption(statement, rng), statement) for statement in statements]


def test_every_drawn_statement_is_read_back_from_its_caption(drawn):
    for text, statement in drawn:
        assert parse(text) == statement, text


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_that_can_be_said_of_one_object_or_of_like_ones_is_read_back(shape):
    rng = np.random.default_rng(0)
    for color, size, count, ground in product((None, *COLORS), (None, *SIZES), (1, *COUNTS), (None, *BACKGROUNDS)):
        statement = Statement((Thing(shape, color, size),), count, background=ground)
        assert parse(caption(statement, rng)) == statement


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_wording_of_a_relation_occurs_and_is_read_back(relation):
    statement = Statement((Thing("star", "red"), Thing("ring")), relation=relation)
    texts = {caption(statement, np.random.default_rng(seed)).removeprefix(FRAME) for seed in range(50)}
    assert texts == {f"a red star {wording} a ring" for wording in WORDINGS[relation]}
    assert {parse(text) for text in texts} == {statement}


def test_the_order_of_two_things_is_kept():
    red, blue = Thing("star", "red"), Thing("star", "blue")
    assert parse("a red star above a blue star") == Statement((red, blue), relation="above")
    assert parse("a blue star above a red star") == Statement((blue, red), relation="above")
    assert parse("a red star and a blue star") == Statement((red, blue))


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_prompt_of_the_benchmark_is_read_back(category):
    prompts = [prompt for prompt in prompt_set(200) if prompt.category == category]
    assert len(prompts) == 200
    for prompt in prompts:
        assert parse(prompt.text) == prompt.statement, prompt.text


@pytest.mark.parametrize(
    "written",
    [
        str.upper,
        str.title,
        lambda text: f"{text}.",
        lambda text: f"  {text}\n",
        lambda text: text.replace(" ", "   "),
        lambda text: text.replace(" ", "\t"),
        lambda text: FRAME + text.removeprefix(FRAME),
        lambda text: text.removeprefix(FRAME),
        lambda text: f" {FRAME}  {text.removeprefix(FRAME)}. ".upper(),
        lambda text: f"{text} .",
    ],
    ids=["capitals", "title", "full stop", "ends", "blanks", "tabs", "frame", "no frame", "all", "blank and full stop"],
)
def test_how_a_caption_is_written_does_not_matter(written, drawn):
    changed = [(written(text), text, statement) for text, statement in drawn[:300]]
    assert any(other != text for other, text, _ in changed)
    for other, _, statement in changed:
        assert parse(other) == statement, other


NO_CAPTIONS = [
    "",
    " ",
    ".",
    "a",
    "a red",
    "red star",
    "star",
    "the red star",
    "a red hexagon",
    "a magenta star",
    "a huge star",
    "a star red",
    "a red small star",
    "a small small star",
    "a red star star",
    "ared star",
    "a redstar",
    "one red star",
    "five red stars",
    "3 red stars",
    "two",
    "a cat on a mat",
    "a red star on a green background",
    "a red star on a white",
    "a red star on white background",
    "a red star on a white background on a navy background",
    "on a white background",
    "a white background",
    "a red star on a white background and a blue ring",
    "a picture of",
    "a picture of a picture of a red star",
    "a photo of a red star",
    "a red star and",
    "and a red star",
    "a red star left of",
    "a red star left a blue ring",
    "a red star beside a blue ring",
    "a red star a blue ring",
    "a red star, a blue ring",
    "a red star and a blue ring and a green cross",
    "a red star left of a blue ring above a green cross",
    "a red star and left of a blue ring",
    "a red star. a blue ring",
    "a red star!",
    "a red star; drop everything",
]
NOT_BOTH = [
    "two red stars and a blue ring",
    "a blue ring and two red stars",
    "two stars and three rings",
    "four red stars left of a blue ring",
    "a ring under two hearts on a gray background",
]


@pytest.mark.parametrize(("text", "reason"), [(t, "no caption") for t in NO_CAPTIONS] + [(t, "both") for t in NOT_BOTH])
def test_a_sentence_that_says_something_else_is_refused_by_name_in_one_line(text, reason):
    with pytest.raises(ValueError, match=re.escape(f"'{text}'")) as error:
        parse(text)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_captions_that_the_refusal_proposes_are_none():
    with pytest.raises(ValueError) as error:
        parse("nothing")
    proposed = re.findall(r'"([^"]+)"', str(error.value))
    assert len(proposed) == 2
    for text in proposed:
        parse(text)
