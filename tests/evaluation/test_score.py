"""A picture is right when all of its prompt is true of it, and what is wrong is named."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from ldm.data.captions import parse
from ldm.data.scene import (
    HELD_OUT,
    RELATION_GAP,
    RELATIONS,
    TRAINED,
    Object,
    Scene,
    Statement,
    Thing,
    draw_scene,
    draw_statement,
)
from ldm.evaluation.benchmark import ceiling, floor, mark, through, true_pictures
from ldm.evaluation.prompts import CATEGORIES, Prompt, prompt_set
from ldm.evaluation.reader import UNKNOWN, read
from ldm.evaluation.score import ATTRIBUTES, SLACK, Share, Verdict, judge, tally

RED = Object("star", "red", "large", 14.0, 30.0, 13.0)
BLUE = Object("ring", "blue", "small", 50.0, 32.0, 8.0)
FULL = Statement(
    (Thing("star", "red", "large"), Thing("ring", "blue", "small")), relation="left", background="white"
)  # true of RED and BLUE on white


def scene(*objects, background="white"):
    return Scene(background, objects)


def star(color, x=32.0, y=32.0, **changes):
    return replace(Object("star", color, "small", x, y, 8.0), **changes)


def said(*colors, shape="star", **rest):
    """A statement about a thing of each colour, ``None`` for a free one."""
    return Statement(tuple(Thing(shape, color) for color in colors), **rest)


def short(verdict):
    """The attributes that are not wholly fulfilled."""
    return {name for name, (hits, total) in verdict.attributes.items() if hits != total}


# Wilson's interval


@pytest.mark.parametrize("total", [1, 2, 10, 97, 1_000, 20_000])
@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.5, 0.9, 1])
def test_the_interval_is_that_of_scipy(total, part):
    hits = round(part * total)
    theirs = binomtest(hits, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert Share(hits, total).interval == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_nothing_counted_says_nothing():
    assert Share(0, 0).value == 0
    assert Share(0, 0).interval == (0, 1)


# Right and wrong


@pytest.fixture(scope="module")
def truths():
    """1,500 statements and scenes of which they are true."""
    rng = np.random.default_rng(3)
    pairs = TRAINED + HELD_OUT
    statements = [draw_statement(rng, pairs) for _ in range(1_500)]
    return [(statement, draw_scene(statement, rng, pairs)) for statement in statements]


def test_a_scene_drawn_from_a_statement_is_right(truths):
    for statement, shown in truths:
        verdict = judge(statement, shown)
        assert verdict.right and not short(verdict), (statement, shown)


def test_the_order_of_the_objects_read_does_not_matter(truths):
    for statement, shown in truths:
        assert judge(statement, Scene(shown.background, shown.objects[::-1])) == judge(statement, shown)


def test_attributes_count_what_a_statement_states(truths):
    for statement, shown in truths:
        totals = {name: total for name, (_, total) in judge(statement, shown).attributes.items()}
        stated = len(statement.things) * statement.count
        like = statement.count > 1  # like objects are of one colour even where it is free
        expected = {
            "count": 1,
            "shape": stated,
            "color": statement.count * sum(like or thing.color is not None for thing in statement.things),
            "size": statement.count * sum(thing.size is not None for thing in statement.things),
            "relation": int(statement.relation is not None),
            "background": int(statement.background is not None),
        }
        assert totals == {name: total for name, total in expected.items() if total}


WRONG = {  # attribute: the scene of FULL with only that one wrong, and how much of it is fulfilled
    "count": (scene(RED, BLUE, star("green", 30.0, 55.0)), (0, 1)),
    "shape": (scene(replace(RED, shape="cross"), BLUE), (1, 2)),
    "color": (scene(RED, replace(BLUE, color="cyan")), (1, 2)),
    "size": (scene(replace(RED, size="small"), BLUE), (1, 2)),
    "relation": (scene(replace(RED, x=50.0), replace(BLUE, x=14.0)), (0, 1)),
    "background": (scene(RED, BLUE, background="gray"), (0, 1)),
}


def test_every_attribute_can_be_wrong():
    assert WRONG.keys() == set(ATTRIBUTES)
    assert judge(FULL, scene(RED, BLUE)).right


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_attribute_makes_the_picture_wrong_and_is_named(name):
    shown, fulfilled = WRONG[name]
    verdict = judge(FULL, shown)
    assert not verdict.right
    assert short(verdict) == {name}
    assert verdict.attributes[name] == fulfilled


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_stated_may_be_anything(name):
    free = {
        "size": replace(FULL, things=(Thing("star", "red"), Thing("ring", "blue"))),
        "color": replace(FULL, things=(Thing("star", size="large"), Thing("ring", size="small"))),
        "relation": replace(FULL, relation=None),
        "background": replace(FULL, background=None),
    }
    verdict = judge(free.get(name, FULL), WRONG[name][0])
    assert verdict.right == (name in free)
    assert (name in verdict.attributes) == (name not in free)


@pytest.mark.parametrize("more", [1, 2, 6])
def test_an_extra_object_is_wrong_and_those_stated_stay_fulfilled(more):
    extra = [Object("heart", "pink", "large", 10.0 * i, 55.0, 17.0 - i) for i in range(more)]
    verdict = judge(said("red"), scene(*extra[:3], star("red", r=20.0), *extra[3:]))
    assert not verdict.right
    assert short(verdict) == {"count"}


def test_a_second_one_of_what_is_stated_once_is_wrong():
    assert judge(said("red"), scene(star("red"))).right
    assert short(judge(said("red"), scene(star("red", 16.0), star("red", 48.0)))) == {"count"}


def test_a_missing_object_fulfils_nothing():
    verdict = judge(FULL, scene(RED))
    assert not verdict.right
    assert verdict.attributes == {
        "shape": (1, 2),
        "color": (1, 2),
        "size": (1, 2),
        "relation": (0, 1),
        "count": (0, 1),
        "background": (1, 1),
    }


@pytest.mark.parametrize("statement", [said("red"), said("red", count=3), FULL])
def test_an_empty_picture_fulfils_nothing_but_its_background(statement):
    verdict = judge(statement, scene())
    assert not verdict.right
    assert short(verdict) == verdict.attributes.keys() - {"background"}
    assert all(hits == 0 for name, (hits, _) in verdict.attributes.items() if name != "background")


UNKNOWNS = {
    "shape": scene(star("red"), star("red", 48.0, shape=UNKNOWN)),
    "color": scene(star("red"), star(UNKNOWN, 48.0)),
    "background": scene(star("red"), star("red", 48.0), background=UNKNOWN),
    "size": scene(star("red"), star("red", 48.0, size=UNKNOWN)),
}
KNOWN = scene(star("red"), star("red", 48.0))


@pytest.mark.parametrize("statement", [said("red", count=2), said(None, count=2), said(None, "red")])
@pytest.mark.parametrize("name", UNKNOWNS)
def test_anything_unknown_makes_the_picture_wrong_even_where_nothing_is_said_of_it(name, statement):
    assert judge(statement, KNOWN).right
    assert not judge(statement, UNKNOWNS[name]).right


# Like objects


@pytest.mark.parametrize("color", ["red", None])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_like_objects_of_which_one_has_another_color_are_wrong(count, color):
    statement = said(color, count=count)
    stars = [star("red", 8.0 + 16 * i) for i in range(count)]
    assert judge(statement, scene(*stars)).right
    verdict = judge(statement, scene(*stars[1:], star("blue", 8.0)))
    assert not verdict.right
    assert short(verdict) == {"color"}
    assert verdict.attributes["color"] == (count - 1, count)


def test_like_objects_of_a_free_color_may_have_any_one_but_not_another_than_stated():
    blues = scene(star("blue", 16.0), star("blue", 48.0))
    assert judge(said(None, count=2), blues).right
    assert judge(said("red", count=2), blues).attributes["color"] == (0, 2)


@pytest.mark.parametrize("shown", [1, 2, 4])
def test_three_stars_are_neither_fewer_nor_more(shown):
    verdict = judge(said("red", count=3), scene(*(star("red", 8.0 + 16 * i) for i in range(shown))))
    assert not verdict.right
    assert verdict.attributes["count"] == (0, 1)
    assert verdict.attributes["shape"] == (min(shown, 3), 3)


def test_the_free_color_of_like_objects_counts_as_missed_where_there_is_none():
    assert judge(said(None, count=2), scene(star("red"))).attributes["color"] == (1, 2)
    assert judge(said(None, count=2), scene()).attributes["color"] == (0, 2)


# Relations

SWAPPED = {"left": "right", "right": "left", "above": "below", "below": "above"}


def at(relation, along, across=0.0):
    """(x, y) of a thing that lies ``relation`` of the picture's middle, that far."""
    dx, dy = RELATIONS[relation]
    return 32 + dx * along + abs(dy) * across, 32 + dy * along + abs(dx) * across


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_is_judged_with_the_object_that_is_meant(relation):
    statement = said("red", "blue", relation=relation)
    right, wrong = (scene(star("red", *at(side, 20.0)), star("blue")) for side in (relation, SWAPPED[relation]))
    for shown, verdict in ((right, True), (wrong, False)):
        for order in (shown, Scene("white", shown.objects[::-1])):
            assert judge(statement, order).right == verdict
            assert short(judge(statement, order)) == (set() if verdict else {"relation"})


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_free_color_takes_the_place_that_makes_the_relation_true(relation):
    blue_first = scene(star("blue", *at(relation, 20.0)), star("red"))
    assert judge(said(None, "red", relation=relation), blue_first).right
    assert not judge(said("red", None, relation=relation), blue_first).right
    both_red = scene(star("red", *at(relation, 20.0)), star("red"))
    assert judge(said(None, "red", relation=relation), both_red).right
    assert judge(said("red", None, relation=relation), both_red).right


@pytest.mark.parametrize("relation", RELATIONS)
def test_where_either_could_be_meant_either_order_will_do(relation):
    statement = Statement((Thing("star"), Thing("star", size="small")), relation=relation)
    for side in (relation, SWAPPED[relation]):
        assert judge(statement, scene(star("red", *at(side, 20.0)), star("blue"))).right


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(
    ("along", "across", "holds"),
    [
        (RELATION_GAP, 0, True),
        (RELATION_GAP - 0.9 * SLACK, 0, True),
        (RELATION_GAP - 1.1 * SLACK, 0, False),
        (20, 20 + 0.9 * SLACK, True),
        (20, 20 + 1.1 * SLACK, False),
        (20, -20 - 1.1 * SLACK, False),
        (-20, 0, False),
    ],
)
def test_a_relation_has_a_pixel_of_slack_and_no_more(relation, along, across, holds):
    shown = scene(star("red", *at(relation, along, across)), star("blue"))
    assert judge(said("red", "blue", relation=relation), shown).right == holds


def test_of_assignments_that_fulfil_as_much_always_the_same_one_is_told():
    statement = Statement((Thing("star", "red"), Thing("ring", "blue")))
    verdicts = [judge(statement, scene(star("blue", x), star("red", 50.0, shape="ring"))) for x in range(8, 32)]
    assert not any(verdict.right for verdict in verdicts)
    assert all(verdict == verdicts[0] for verdict in verdicts)  # two shapes are right, or two colors


# Many pictures


def test_a_tally_counts_every_verdict_once():
    rng = np.random.default_rng(0)
    prompts = prompt_set(7)
    verdicts = []
    for _ in prompts:
        totals = {name: int(rng.integers(1, 4)) for name in ATTRIBUTES[: rng.integers(1, len(ATTRIBUTES))]}
        counts = {name: (int(rng.integers(0, total + 1)), total) for name, total in totals.items()}
        verdicts.append(Verdict(bool(rng.random() < 0.4), counts))
    score = tally(prompts, verdicts)
    assert score.overall == (sum(verdict.right for verdict in verdicts), len(verdicts))
    assert list(score.categories) == list(CATEGORIES)
    assert {share.total for share in score.categories.values()} == {7}
    assert sum(share.hits for share in score.categories.values()) == score.overall.hits
    sums = Counter()
    for verdict in verdicts:
        for name, (hits, total) in verdict.attributes.items():
            sums[name, "hits"] += hits
            sums[name, "total"] += total
    assert score.attributes == {
        name: (sums[name, "hits"], sums[name, "total"]) for name in ATTRIBUTES if sums[name, "total"]
    }


def test_a_category_counts_its_own_prompts_only():
    verdicts = [Verdict(prompt.category == "colors", {}) for prompt in prompt_set(4)]
    score = tally(prompt_set(4), verdicts)
    assert {category for category, share in score.categories.items() if share.hits} == {"colors"}
    assert score.categories["colors"] == (4, 4) and not score.attributes


def test_more_verdicts_than_prompts_are_no_tally():
    with pytest.raises(ValueError):
        tally(prompt_set(1), [Verdict(True, {})])


@pytest.fixture(scope="module")
def benchmark():
    """The prompts, 20 of each category, and true pictures."""
    prompts = prompt_set(20)
    return prompts, true_pictures(prompts)


def test_the_floor_of_shuffled_prompts_is_low(benchmark):
    prompts, pictures = benchmark
    low = floor(prompts, read(pictures))
    assert low.overall.total == len(prompts)
    assert low.overall.value < 0.05 < 0.99 < mark(prompts, pictures).score.overall.value
    assert 0 < low.attributes["shape"].value < 0.5


def test_the_floor_never_judges_a_picture_by_its_own_prompt():
    texts = [f"a {color} {shape}" for shape, color in TRAINED]
    prompts = [Prompt("colors", text, parse(text)) for text in texts]
    scenes = read(true_pictures(prompts))
    for number in range(2, len(prompts) + 1):
        assert floor(prompts[:number], scenes[:number]).overall == (0, number)


def test_the_floor_of_prompts_that_are_all_the_same_is_the_score():
    prompts = [Prompt("colors", "a red star", said("red"))] * 30
    scenes = read(true_pictures(prompts))
    assert floor(prompts, scenes).overall == (30, 30)


class Identity:
    """An autoencoder that loses nothing."""

    mean = torch.zeros(1)

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents


class Blank(Identity):
    """One that loses everything."""

    def decode(self, latents):
        return torch.zeros_like(latents)


def test_an_autoencoder_that_loses_nothing_returns_the_pictures(benchmark):
    _, pictures = benchmark
    assert len(pictures) > 64  # more than pass through it at once
    assert np.array_equal(through(Identity(), pictures), pictures)


def test_the_ceiling_of_an_autoencoder_that_loses_nothing_is_the_score_of_true_pictures(benchmark):
    prompts, pictures = benchmark
    assert ceiling(prompts, Identity()) == mark(prompts, pictures).score


def test_noise_on_the_latents_is_of_the_size_asked_for_and_the_same_each_time(benchmark):
    _, pictures = benchmark
    gray = np.full_like(pictures, 128)
    noised = through(Identity(), gray, noise=0.2)
    assert noised.astype(float).std() / 127.5 == pytest.approx(0.2, rel=0.02)
    assert np.array_equal(noised, through(Identity(), gray, noise=0.2))


def test_the_ceiling_of_an_autoencoder_that_loses_everything_is_zero(benchmark):
    prompts, _ = benchmark
    assert ceiling(prompts[::10], Blank()).overall.hits == 0


def test_each_picture_is_marked_by_its_own_prompt(benchmark):
    prompts, pictures = benchmark
    marked = mark(prompts, pictures)
    assert marked.scenes == read(pictures)
    assert marked.verdicts == [judge(p.statement, s) for p, s in zip(prompts, marked.scenes, strict=True)]
    assert marked.score == tally(prompts, marked.verdicts)
    assert mark(prompts, np.roll(pictures, 1, axis=0)).score.overall.value < 0.3


def test_a_share_in_words_has_its_interval():
    assert Share(461, 500).percent() == "92.2 % (89.5 to 94.2)" and Share(8, 8).percent(0) == "100 % (68 to 100)"
