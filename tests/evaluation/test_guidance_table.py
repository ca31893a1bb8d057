"""benchmarks/guidance.py: what the prompts of its rows are."""

import pytest

from benchmarks.guidance import asked_for, misread, objects
from ldm.data.captions import parse
from ldm.evaluation.prompts import prompt_set


def test_rows_are_asked_for_by_how_they_begin():
    names = ["plain", "plain, and Perp-Neg", "rescale 0.7", "worse model"]
    assert asked_for(["worse", "plain"], names) == ["worse model", "plain"]
    assert asked_for(["pl", "plain, "], names) == [*names[:2], names[1]]
    with pytest.raises(ValueError, match="--rows classifier: no row begins so; the rows are plain, "):
        asked_for(["classifier"], names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two red stars on a navy background", ("two red stars on a navy background", "")),
        ("a small red star left of a ring", ("a small red star", "a ring")),
        ("a heart", ("a heart", "")),
    ],
)
def test_each_object_has_a_prompt_of_its_own(text, expected):
    assert objects(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a heart", ""),
        ("two red stars", ""),
        ("a ring and a star", ""),
        ("a red ring and a star", "a red star and a ring"),
        ("a picture of a ring above a star", "a star over a ring"),
    ],
)
def test_a_prompt_is_misread_with_its_shapes_exchanged(text, expected):
    assert misread(text) == expected


def test_every_prompt_has_both():
    for prompt in prompt_set(5):
        first, second = objects(prompt.text)
        assert parse(first).background == prompt.statement.background and bool(second) == (
            len(prompt.statement.things) == 2
        )
        assert not (wrong := misread(prompt.text)) or parse(wrong) != prompt.statement
