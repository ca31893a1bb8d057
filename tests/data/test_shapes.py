"""The shapes world: every picture shows what its caption says, and nothing that is held out."""

import re
from collections import Counter
from math import hypot, pi, radians, sin, sqrt

import numpy as np
import pytest
import torch

from ldm.data.captions import caption
from ldm.data.draw import draw
from ldm.data.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TRAINED,
    Object,
    Scene,
    Statement,
    Thing,
    draw_scene,
    draw_statement,
)
from ldm.data.shapes import ShapesConfig
from ldm.types import Key

COUNTS = {"two": 2, "three": 3, "four": 4}
WORDINGS = {
    "left of": "left",
    "to the left of": "left",
    "right of": "right",
    "to the right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
PHRASE = rf"(an?|two|three|four) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})(es|s)?"
CAPTION = re.compile(
    rf"(a picture of )?{PHRASE}(?: (and|{'|'.join(sorted(WORDINGS, key=len))}) {PHRASE})?"
    rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?"
)


@pytest.fixture(scope="module")
def samples():
    """(scene, caption, statement) of 500 training samples."""
    shapes = ShapesConfig().build("train")
    return [shapes.scene(i) for i in range(500)]


def thing(number, size, color, shape, plural):
    """What one phrase of a caption says, its article and plural checked."""
    first = size or color or shape
    assert number in COUNTS or number == ("an" if first[0] in "aeiou" else "a")
    assert (plural or "") == (("es" if shape == "cross" else "s") if number in COUNTS else "")
    return Thing(shape, color, size)


def parse(text):
    """The statement that a caption makes, read with a grammar of the test's own."""
    found = CAPTION.fullmatch(text)
    assert found, text
    _, *first, joint, number, size, color, shape, plural, background = found.groups()
    things = [thing(*first)] + ([thing(number, size, color, shape, plural)] if joint else [])
    return Statement(tuple(things), COUNTS.get(first[0], 1), WORDINGS.get(joint), background)


def assert_true_of(statement, scene):
    things = statement.things * statement.count
    assert len(scene.objects) == len(things)
    assert statement.background in (None, scene.background)
    for said, shown in zip(things, scene.objects, strict=True):
        assert shown.shape == said.shape
        assert said.color in (None, shown.color)
        assert said.size in (None, shown.size)
    if statement.count > 1:
        assert len({shown.color for shown in scene.objects}) == 1
    if statement.relation:
        a, b = scene.objects
        right, down = a.x - b.x, a.y - b.y
        along = {"left": -right, "right": right, "above": -down, "below": down}[statement.relation]
        assert along >= 16 and along == max(abs(right), abs(down))


def assert_fits(scene):
    for a in scene.objects:
        low, high = SIZES[a.size]
        assert low <= a.r <= high
        assert min(a.x, a.y, 64 - a.x, 64 - a.y) - a.r >= 2 - 1e-9
        assert all(hypot(a.x - b.x, a.y - b.y) >= a.r + b.r + 2 - 1e-9 for b in scene.objects if b is not a)


def test_a_sample_is_a_pure_function_of_seed_split_and_index():
    first, second = (ShapesConfig(seed=5).build("train") for _ in range(2))
    forwards = [first[Key(0, i)] for i in range(20)]
    torch.rand(3), np.random.default_rng().random()
    for i in reversed(range(20)):
        again = second[Key(7, i)]
        assert again.caption == forwards[i].caption
        assert torch.equal(again.image, forwards[i].image)


@pytest.mark.parametrize("other", [("val", 0), ("train", 1)])
def test_another_split_or_seed_gives_other_scenes(other):
    split, seed = other
    ours, theirs = ShapesConfig().build("train"), ShapesConfig(seed=seed).build(split)
    assert not {ours.scene(i)[0] for i in range(100)} & {theirs.scene(i)[0] for i in range(100)}


def test_every_statement_is_true_of_its_scene(samples):
    for scene, _, statement in samples:
        assert_true_of(statement, scene)


def test_every_object_has_room_to_the_border_and_to_the_others(samples):
    for scene, _, _ in samples:
        assert_fits(scene)


def test_every_caption_says_its_statement_and_nothing_else(samples):
    for _, text, statement in samples:
        assert parse(text) == statement, text


def test_every_form_and_wording_occurs(samples):
    statements = [statement for _, _, statement in samples]
    words = Counter(CAPTION.fullmatch(text)[7] for _, text, _ in samples)
    assert words.keys() == {None, "and", *WORDINGS}
    assert {statement.count for statement in statements} == {1, 2, 3, 4}
    assert any(text.startswith("a picture of") for _, text, _ in samples)
    things = [thing for statement in statements for thing in statement.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.color for thing in things} == {None, *COLORS}
    assert {thing.size for thing in things} == {None, *SIZES}
    assert {statement.background for statement in statements} == {None, *BACKGROUNDS}
    assert {scene.background for scene, _, _ in samples} == set(BACKGROUNDS)


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_no_picture_holds_more_objects_than_asked_for(objects):
    shapes = ShapesConfig(max_objects=objects).build("train")
    scenes = [shapes.scene(i) for i in range(200)]
    assert {len(scene.objects) for scene, _, _ in scenes} == set(range(1, objects + 1))
    assert all(parse(text) == statement for _, text, statement in scenes)


@pytest.mark.parametrize("size", SIZES)
def test_every_object_has_one_of_the_sizes_asked_for(size):
    shapes = ShapesConfig(sizes=[size]).build("train")
    for scene, _, statement in (shapes.scene(i) for i in range(100)):
        assert {thing.size for thing in statement.things} <= {None, size}
        assert {thing.size for thing in scene.objects} == {size}
        assert_fits(scene)


def test_captions_take_the_forms_as_often_as_asked_for():
    shares = [0.1, 0.6, 0.3, 0.0]
    said = [ShapesConfig(forms=shares).build("train").scene(i)[2] for i in range(1_000)]
    forms = ["like" if s.count > 1 else "relation" if s.relation else ("one", "and")[len(s.things) - 1] for s in said]
    for form, share in zip(("one", "like", "and", "relation"), shares, strict=True):
        assert abs(forms.count(form) / len(said) - share) < 4 * (share * (1 - share) / len(said)) ** 0.5 + 1e-9


@pytest.mark.parametrize(
    ("forms", "text", "held"),
    [
        ([1, 0, 0, 0], "a star", True),
        ([1, 0, 0, 0], "two stars", False),
        ([1, 0, 0, 0], "a star and a ring", False),
        ([0, 1, 0, 0], "a star", False),
        ([0, 1, 0, 0], "four stars", True),
        ([0, 1, 0, 0], "a star and a ring", False),
        ([0, 0, 1, 0], "a star above a ring", True),  # two that are joined may lie so, too
        ([0, 0, 1, 0], "two stars", False),
    ],
)
def test_a_set_without_a_form_holds_no_statement_that_only_such_pictures_show(forms, text, held):
    assert ShapesConfig(forms=forms).holds(parse(text)) is held


def test_articles_and_plurals_are_english():
    rng = np.random.default_rng(0)
    said = {
        caption(Statement((thing,), count), rng).removeprefix("a picture of ")
        for thing, count in [(Thing("heart", "orange"), 1), (Thing("cross", size="small"), 3), (Thing("ring"), 1)]
        for _ in range(9)
    }
    assert said == {"an orange heart", "three small crosses", "a ring"}


def test_eight_pairs_are_held_out_one_of_each_shape_and_color():
    shapes = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"]
    colors = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
    assert set(HELD_OUT) == {(shape, colors[-i % 8]) for i, shape in enumerate(shapes)}
    assert len(HELD_OUT) == 8 and len(TRAINED) == 56 and not set(HELD_OUT) & set(TRAINED)


def test_no_picture_and_no_caption_holds_a_held_out_pair(samples):
    shown = {(thing.shape, thing.color) for scene, _, _ in samples for thing in scene.objects}
    said = {(thing.shape, thing.color) for _, text, _ in samples for thing in parse(text).things}
    assert not shown & set(HELD_OUT)
    assert not said & set(HELD_OUT)
    assert shown == set(TRAINED)


@pytest.mark.parametrize(("shape", "color"), HELD_OUT)
def test_a_free_color_never_makes_a_held_out_pair(shape, color):
    rng = np.random.default_rng(0)
    drawn = {draw_scene(Statement((Thing(shape),)), rng).objects[0].color for _ in range(100)}
    assert drawn == set(COLORS) - {color}


def test_held_out_pairs_can_be_asked_for():
    rng = np.random.default_rng(0)
    for _ in range(20):
        statement = draw_statement(rng, HELD_OUT)
        scene = draw_scene(statement, rng, HELD_OUT)
        assert_true_of(statement, scene)
        assert {(thing.shape, thing.color) for thing in scene.objects} <= set(HELD_OUT)


@pytest.mark.parametrize("shape", SHAPES)
def test_four_large_objects_fit(shape):
    rng = np.random.default_rng(0)
    statement = Statement((Thing(shape, "green", "large"),), 4)
    for _ in range(10):
        scene = draw_scene(statement, rng)
        assert_true_of(statement, scene)
        assert_fits(scene)


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_two_large_objects_fit_in_every_relation(relation):
    statement = Statement((Thing("square", None, "large"), Thing("heart", None, "large")), relation=relation)
    scene = draw_scene(statement, np.random.default_rng(0))
    assert_true_of(statement, scene)
    assert_fits(scene)


def test_more_objects_than_fit_are_refused():
    with pytest.raises(ValueError, match="at most 4"):
        draw_scene(Statement((Thing("star", "red", "large"),), 5), np.random.default_rng(0))


ARM = 0.34  # half the width of the cross's arms
AREAS = {  # of the shape with radius 1
    "circle": pi,
    "ring": pi * (1 - 0.55**2),
    "square": 2,
    "triangle": 3 * sqrt(3) / 4,
    "diamond": 1.24,
    "star": 10 * 0.42 * sin(radians(36)) / 2,
    "cross": 8 * ARM * sqrt(1 - ARM**2) - 4 * ARM**2,  # two bars that end on the unit circle, less what they share
    "heart": pi * (13 * 12 + 3 * 2 * 4) / 17**2,  # Green's theorem on 12 sin u - 4 sin 3u and 13 cos u - ... - cos 4u
}


def cover(shape, radius, x=31.3, y=32.6):
    """The share of each pixel that one object covers."""
    scene = Scene("white", (Object(shape, "red", "large", x, y, radius),))
    return (245 - draw(scene)[..., 1].astype(float)) / (245 - 40)


@pytest.mark.parametrize("radius", [8.0, 16.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_drawn_is_that_of_the_shape(shape, radius):
    places = np.random.default_rng(0).uniform(30, 34, size=(20, 2))  # edges fall anywhere between the pixels
    area = np.mean([cover(shape, radius, x=x, y=y).sum() for x, y in places])
    assert area == pytest.approx(AREAS[shape] * radius**2, rel=0.01)


def test_shapes_stand_upright():
    triangle, heart = (cover(shape, 16, x=32, y=32).sum(axis=1) for shape in ("triangle", "heart"))
    assert triangle.argmax() >= 38  # its base is below, half a radius from the centre
    assert heart.argmax() < 32
    assert heart[46] < 3  # its point is below


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_within_its_circle(shape):
    rows, columns = np.nonzero(cover(shape, 15))
    assert (np.hypot(columns + 0.5 - 31.3, rows + 0.5 - 32.6) <= 15 + sqrt(0.5)).all()


def test_colors_are_exact_inside_objects_and_on_the_background(samples):
    for scene, _, _ in samples[:100]:
        image = draw(scene)
        assert tuple(image[0, 0]) == BACKGROUNDS[scene.background]
        for shown in scene.objects:
            x = shown.x + (0.775 * shown.r if shown.shape == "ring" else 0)  # the middle of the ring's band
            assert tuple(image[int(shown.y), int(x)]) == COLORS[shown.color], shown


def test_the_hole_of_a_ring_shows_the_background():
    assert cover("ring", 16)[32, 31] == 0


@pytest.mark.parametrize("size", [16, 32, 128])
def test_other_sizes_show_the_same_scene_scaled(size):
    scaled, usual = ShapesConfig(size=size).build("train"), ShapesConfig().build("train")
    assert scaled[Key(0, 3)].image.shape == (3, size, size)
    for i in range(10):
        pair = scaled[Key(0, i)].image, usual[Key(0, i)].image
        big, small = sorted(pair, key=lambda image: -image.shape[-1])
        shrunk = torch.nn.functional.interpolate(big[None], size=small.shape[1:], mode="area")[0]
        assert (shrunk - small).abs().mean() < 0.01
        assert scaled.scene(i) == usual.scene(i)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 72},
        {"size": -64},
        {"length": 0},
        {"seed": -1},
        {"max_objects": 5},
        {"max_objects": 0},
        {"sizes": []},
        {"sizes": ["huge"]},
        {"forms": [0.5, 0.5]},
        {"forms": [0.5, 0.5, 0.5, 0.5]},
        {"forms": [-0.5, 0.5, 0.5, 0.5]},
        {"forms": [float("nan")] * 4},
        {"forms": [0.3333333, 0.3333333, 0.3333333, 0]},
        {"forms": [0, 0.5, 0.5, 0], "max_objects": 1},
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} {re.escape(str(value))} .*try {name}="):
        ShapesConfig(**wrong)


def test_images_are_float_in_minus_one_to_one_and_hold_the_bytes_exactly():
    shapes = ShapesConfig().build("val")
    image = shapes[Key(0, 4)].image
    assert image.dtype == torch.float32 and image.min() >= -1 and image.max() <= 1
    drawn = torch.from_numpy(draw(shapes.scene(4)[0])).permute(2, 0, 1)
    assert torch.equal(((image + 1) * 127.5).round().byte(), drawn)


def test_the_fingerprint_tells_apart_whatever_gives_other_samples():
    configs = [{}, {"size": 32}, {"seed": 1}, {"length": 50}, {"max_objects": 1}, {"sizes": ["large"]}]
    configs.append({"forms": [0.1, 0.3, 0.2, 0.4]})
    prints = [ShapesConfig(**c).build(split).fingerprint() for c in configs for split in ("train", "val")]
    assert len(set(prints)) == len(prints)
