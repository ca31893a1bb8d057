"""The reader sees what is there, and calls nothing clean that is not."""

from io import BytesIO
from itertools import combinations, permutations

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from ldm.data.draw import SUPERSAMPLING, _fill, draw, inside, outline
from ldm.data.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TRAINED,
    Object,
    Scene,
    draw_scene,
    draw_statement,
)
from ldm.data.shapes import SPLITS
from ldm.evaluation.reader import RADII, TINT, UNKNOWN, read

FRESH = 5_000
MIDDLE = 32.3  # of an object that lies alone in the picture, off the pixels' raster
RADIUS = {"small": 8.0, "large": 15.0}
STREAM = [0, len(SPLITS)]  # of random numbers: a training set's are (seed, a split's number, index)


@pytest.fixture(scope="module")
def fresh():
    """(scenes, pictures) that no training set holds, held-out pairs among them."""
    rng = np.random.default_rng(STREAM)
    pairs = TRAINED + HELD_OUT
    scenes = [draw_scene(draw_statement(rng, pairs), rng, pairs) for _ in range(FRESH)]
    return scenes, np.stack([draw(scene) for scene in scenes])


def alone(shape, color="red", size="large", *, background="white", x=MIDDLE, y=MIDDLE, r=None):
    """A scene of one object."""
    return Scene(background, (Object(shape, color, size, x, y, r or RADIUS[size]),))


def polygon(corners, color="red", background="white"):
    """A picture of a polygon (E, 2), drawn as the world draws its shapes."""
    n = SUPERSAMPLING
    cells = _fill(np.asarray(corners) * n, (64 * n, 64 * n))
    cover = cells.reshape(64, n, 64, n).mean(axis=(1, 3))[..., None]
    return np.rint(cover * COLORS[color] + (1 - cover) * BACKGROUNDS[background]).astype(np.uint8)


def blend(a, b, share):
    """``a`` and ``share`` of the way to ``b``."""
    return np.rint(a + share * (b.astype(float) - a)).astype(np.uint8)


def seen(picture):
    return read(picture[None])[0]


def clean(scene):
    """Whether the scene holds an object, and nothing in it is unknown."""
    words = [word for thing in scene.objects for word in (thing.shape, thing.color, thing.size)]
    return bool(words) and UNKNOWN not in (scene.background, *words)


def kind(thing):
    return thing.shape, thing.color, thing.size


def offset(truth, found):
    """The largest distance between the centres of like objects, paired as well as can be; infinite if some differ."""
    if truth.background != found.background or sorted(map(kind, truth.objects)) != sorted(map(kind, found.objects)):
        return np.inf
    distance = np.array(
        [[np.hypot(a.x - b.x, a.y - b.y) if kind(a) == kind(b) else 1e6 for b in found.objects] for a in truth.objects]
    )
    return distance[linear_sum_assignment(distance)].max()


def exact(truths, pictures):
    """The share of pictures that are read as what they show, positions within a pixel."""
    return np.mean([offset(truth, found) <= 1 for truth, found in zip(truths, read(pictures), strict=True)])


def test_fresh_scenes_are_read_exactly(fresh):
    assert exact(*fresh) >= 0.999


def test_the_comparison_with_the_truth_sees_every_difference():
    a, b = Object("star", "red", "small", 12.0, 12.0, 8.0), Object("ring", "blue", "large", 40.0, 40.0, 15.0)
    truth = Scene("white", (a, b))
    assert offset(truth, Scene("white", (b, a))) == 0
    assert offset(truth, Scene("white", (Object("star", "red", "small", 12.0, 14.0, 8.0), b))) == 2
    for other in (
        Scene("black", (a, b)),
        Scene("white", (a,)),
        Scene("white", (a, b, b)),
        Scene("white", (a, Object("ring", "red", "large", 40.0, 40.0, 15.0))),
    ):
        assert offset(truth, other) == np.inf


def test_radii_are_read_within_half_a_pixel(fresh):
    scenes, pictures = fresh
    for truth, found in zip(scenes[:500], read(pictures[:500]), strict=True):
        if len(truth.objects) == 1:
            assert found.objects[0].r == pytest.approx(truth.objects[0].r, abs=0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_in_every_color_size_and_on_every_background(shape, background, size):
    scenes = [alone(shape, color, size, background=background) for color in COLORS]
    assert exact(scenes, np.stack([draw(scene) for scene in scenes])) == 1


# What a picture looks like does not matter, as long as it shows the same


def test_pictures_of_twice_the_size_read_the_same(fresh):
    scenes = fresh[0][:200]
    assert exact(scenes, np.stack([draw(scene, 128) for scene in scenes])) >= 0.99


def test_light_noise_does_not_change_the_reading(fresh):
    scenes, pictures = fresh[0][:200], fresh[1][:200]
    noise = np.random.default_rng(0).normal(0, 4, pictures.shape)
    noisy = np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8)
    assert exact(scenes, noisy) >= 0.99


def test_jpeg_compression_that_keeps_the_colors_sharp_does_not_change_the_reading(fresh):
    def through_jpeg(picture):
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
        return np.array(Image.open(file))

    scenes, pictures = fresh[0][:200], fresh[1][:200]
    compressed = np.stack([through_jpeg(picture) for picture in pictures])
    assert not np.array_equal(compressed, pictures)
    assert exact(scenes, compressed) >= 0.99


def test_single_wrong_pixels_are_no_objects():
    picture = draw(alone("star", x=22, y=22))
    specked = picture.copy()
    specked[50, 50], specked[10, 55], specked[60, 8] = COLORS["blue"], COLORS["green"], BACKGROUNDS["black"]
    assert seen(specked) == seen(picture)


def test_a_reading_does_not_depend_on_the_other_pictures(fresh):
    pictures = fresh[1][:300]  # more than are read at once
    assert [seen(picture) for picture in pictures] == read(pictures)


def test_objects_at_the_same_place_of_neighbouring_pictures_stay_apart():
    scenes = [alone(shape, "blue", background=ground) for shape in SHAPES for ground in BACKGROUNDS]
    assert exact(scenes, np.stack([draw(scene) for scene in scenes])) == 1


def test_a_picture_that_cannot_be_read_leaves_its_neighbours_alone():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    scene = alone("heart")
    found = read(np.stack([noise, draw(scene), noise]))
    assert offset(scene, found[1]) < 1
    assert [thing.background for thing in found] == [UNKNOWN, "white", UNKNOWN]


def test_no_pictures_read_as_no_scenes():
    assert read(np.zeros((0, 64, 64, 3), np.uint8)) == []


# What must not pass for a clean scene


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_flat_background_holds_no_object(background):
    assert seen(draw(Scene(background, ()))) == Scene(background, ())


def test_noise_is_unknown_and_holds_no_object():
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    assert read(noise) == [Scene(UNKNOWN, ())] * 20


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_noise_within_a_clean_border_is_no_clean_object(background):
    picture = draw(Scene(background, ()))
    picture[16:48, 16:48] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    assert seen(picture).background == background
    assert seen(picture).objects and not clean(seen(picture))


@pytest.mark.parametrize(
    "color", [(128, 0, 128), (60, 60, 60), (180, 180, 180), (245, 245, 200), (20, 20, 45), *COLORS.values()]
)
def test_a_border_of_no_known_background_gives_unknown_and_no_objects(color):
    picture = draw(alone("circle", "red"))
    picture[(picture == BACKGROUNDS["white"]).all(axis=-1)] = color
    assert seen(picture) == Scene(UNKNOWN, ())


@pytest.mark.parametrize(("left", "right"), combinations(BACKGROUNDS, 2))
def test_a_border_of_two_backgrounds_is_unknown(left, right):
    picture = draw(alone("star", background=left))
    picture[:, 32:] = draw(alone("star", background=right))[:, 32:]
    assert seen(picture) == Scene(UNKNOWN, ())


@pytest.mark.parametrize("colors", [("red", "red"), ("red", "blue"), ("cyan", "green")])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_two_objects_that_overlap_are_one_unknown(shape, size, colors):
    r = RADIUS[size]
    for other in SHAPES:
        for ground in BACKGROUNDS:
            a = Object(shape, colors[0], size, 32 - 0.35 * r, 32 - 0.35 * r, r)
            b = Object(other, colors[1], size, 32 + 0.35 * r, 32 + 0.35 * r, r)
            found = seen(draw(Scene(ground, (a, b))))
            assert len(found.objects) == 1 and not clean(found), (other, ground)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("size", SIZES)
def test_two_circles_of_one_color_that_touch_are_one_unknown(size, color):
    r = RADIUS[size]
    twins = tuple(Object("circle", color, size, 32 + side * (r - 0.25), MIDDLE, r) for side in (-1, 1))
    found = seen(draw(Scene("gray", twins)))
    assert len(found.objects) == 1 and not clean(found)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_half_blended_with_the_background_is_unknown(color, background):
    for shape in SHAPES:
        for size in SIZES:
            picture = draw(alone(shape, color, size, background=background))
            pale = blend(picture, draw(Scene(background, ())), 0.5)
            found = seen(pale)
            assert found.objects and not clean(found), (shape, size)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_that_fades_into_the_background_is_unknown(color, background):
    for size, r in RADIUS.items():
        ramp = np.clip((np.arange(64) + 0.5 - MIDDLE + r) / (2 * r), 0, 1)[None, :, None]  # across the object
        for shape in SHAPES:
            picture = draw(alone(shape, color, size, background=background))
            found = seen(blend(picture, draw(Scene(background, ())), ramp))
            assert found.objects and not clean(found), (shape, size)


def between(a, b):
    return (np.array(COLORS[a]) + COLORS[b]) / 2


def nearest(color):
    """The palette's colour nearest to ``color``, and how far it is."""
    return min((float(np.linalg.norm(color - value)), name) for name, value in COLORS.items())[::-1]


# Halfway between red and yellow lies orange; orange and yellow are so near to each other that their middle is either
NEAR = {pair: nearest(between(*pair)) for pair in combinations(COLORS, 2) if nearest(between(*pair))[1] < 1.5 * TINT}


def test_only_two_pairs_of_colors_have_another_one_near_their_middle():
    assert NEAR.keys() == {("red", "yellow"), ("orange", "yellow")}


@pytest.mark.parametrize("pair", [pair for pair in combinations(COLORS, 2) if pair not in NEAR], ids=" ".join)
def test_an_object_of_a_color_between_two_is_not_clean(pair):
    for background in BACKGROUNDS:
        for shape in SHAPES:
            for size in SIZES:
                a, b = (draw(alone(shape, color, size, background=background)) for color in pair)
                assert not clean(seen(blend(a, b, 0.5))), (background, shape, size)


@pytest.mark.parametrize("pair", permutations(COLORS, 2), ids=" ".join)
def test_an_object_of_two_colors_is_not_clean(pair):
    for background in BACKGROUNDS:
        for shape in SHAPES:
            left, right = (draw(alone(shape, color, background=background, x=32)) for color in pair)
            left[:, 32:] = right[:, 32:]
            assert not clean(seen(left)), (background, shape)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_an_extra_blob_is_one_object_more_and_unknown(color, background):
    for shape in SHAPES:
        picture = draw(alone(shape, background=background, x=22, y=22))
        picture[50:54, 50:54] = COLORS[color]
        whole, blob = sorted(seen(picture).objects, key=lambda thing: -thing.r)
        assert (whole.shape, whole.color) == (shape, "red")
        assert blob.shape == blob.size == UNKNOWN


@pytest.mark.parametrize("color", COLORS)
def test_a_blob_as_large_as_an_object_is_unknown(color):
    """Lumps with a wavy outline: neither the area nor the colour tells them from a shape."""
    rng = np.random.default_rng([*STREAM, 1])
    rows, columns = np.indices((64, 64)) - MIDDLE + 0.5
    angle, r = np.arctan2(rows, columns), np.hypot(rows, columns)
    for _ in range(20):
        waves = sum(rng.normal(0, 0.2) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 8))
        lump = r < rng.uniform(9, 14) * (1 + waves)
        if np.ptp(waves) < 0.9:
            continue  # not far from a circle
        picture = draw(Scene("white", ()))
        picture[lump] = COLORS[color]
        assert not clean(seen(picture))


def test_a_blend_of_two_pictures_is_not_clean(fresh):
    _, pictures = fresh
    rng = np.random.default_rng([*STREAM, 2])
    firsts, seconds = rng.choice(len(pictures), (2, 500))
    blends = [blend(pictures[a], pictures[b], rng.uniform(0.3, 0.7)) for a, b in zip(firsts, seconds, strict=True)]
    assert [i for i, found in enumerate(read(np.stack(blends))) if clean(found)] == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arm", range(5))
def test_a_star_with_a_missing_arm_is_unknown(arm, size):
    star = outline("star") * RADIUS[size] + MIDDLE
    assert clean(seen(polygon(star)))
    assert seen(polygon(np.delete(star, 2 * arm, axis=0))).objects[0].shape == UNKNOWN


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("axis", "side"), [(0, -1), (0, 1), (1, -1), (1, 1)])
def test_a_cross_with_a_missing_arm_is_unknown(axis, side, size):
    corners = outline("cross")
    assert clean(seen(polygon(corners * RADIUS[size] + MIDDLE)))
    left = corners[corners[:, axis] * side < 0.9]  # an arm's end lies at 0.94
    assert len(left) == len(corners) - 2
    assert seen(polygon(left * RADIUS[size] + MIDDLE)).objects[0].shape == UNKNOWN


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_half_drawn_shape_is_unknown(shape, size, side):
    gone = np.s_[:, 32:] if side == "left" else np.s_[:, :32]
    for background in BACKGROUNDS:
        picture = draw(alone(shape, "green", size, background=background, x=32))
        picture[gone] = BACKGROUNDS[background]
        assert [thing.shape for thing in seen(picture).objects] == [UNKNOWN], background


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turn", [0, 45, 90, 200])
def test_a_circle_with_a_large_bite_is_unknown(turn, size):
    r, a = RADIUS[size], np.deg2rad(turn)
    picture = draw(alone("circle", size=size))
    assert clean(seen(picture))
    bite = inside("circle", 0.7 * r, (MIDDLE + r * np.cos(a), MIDDLE + r * np.sin(a)), (64, 64))
    picture[bite] = BACKGROUNDS["white"]
    assert not clean(seen(picture))


TURNS = {  # degrees that make another shape of it
    "square": [30, 45, 60],
    "triangle": [30, 60, 90, 180],
    "star": [12, 36, 180],
    "cross": [20, 45],
    "diamond": [30, 45, 90],
    "heart": [30, 90, 180],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("shape", "turn"), [(shape, turn) for shape, turns in TURNS.items() for turn in turns])
def test_a_turned_shape_is_not_read_as_itself(shape, turn, size):
    a = np.deg2rad(turn)
    turned = outline(shape) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    assert seen(polygon(outline(shape) * RADIUS[size] + MIDDLE)).objects[0].shape == shape
    assert seen(polygon(turned * RADIUS[size] + MIDDLE)).objects[0].shape != shape


@pytest.mark.parametrize("place", [(0, 32), (64, 32), (32, 0), (32, 64), (0, 0), (64, 64)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_with_its_centre_on_the_edge_of_the_picture_is_not_read_as_a_whole_one(shape, size, place):
    x, y = place
    scene = alone(shape, size=size, x=x, y=y)
    assert offset(scene, seen(draw(scene))) > 1


def test_an_object_that_the_edge_of_the_picture_cuts_is_unknown():
    for shape in SHAPES:
        for size in SIZES:
            inset = RADIUS[size] / 2
            for x, y in [(inset, 32), (64 - inset, 32), (32, inset), (32, 64 - inset)]:
                assert not clean(seen(draw(alone(shape, size=size, x=x, y=y)))), (shape, size, x, y)


def test_a_frame_wider_than_any_object_is_unknown():
    """All of it lies outside of the patch that an object is looked at in."""
    picture = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    picture[0] = BACKGROUNDS["black"]
    picture[0, 4:60, 4:60] = COLORS["red"]
    picture[0, 6:58, 6:58] = BACKGROUNDS["black"]
    (scene,) = read(picture)
    assert [(thing.shape, thing.size) for thing in scene.objects] == [(UNKNOWN, UNKNOWN)]


@pytest.mark.parametrize("r", [2.5, 4.0, 5.5, 19.0, 22.0, 26.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_of_no_size_of_the_world_is_unknown(shape, r):
    assert not RADII[0] <= r <= RADII[1]
    (thing,) = seen(draw(alone(shape, r=r))).objects
    assert thing.shape == thing.size == UNKNOWN


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((64, 64, 3), np.uint8),
        ((1, 3, 64, 64), np.uint8),
        ((1, 64, 48, 3), np.uint8),
        ((1, 64, 64, 4), np.uint8),
        ((1, 64, 64), np.uint8),
        ((1, 64, 64, 3), np.float32),
        ((1, 64, 64, 3), np.int64),
    ],
)
def test_what_is_no_pictures_is_refused_in_one_line(shape, dtype):
    with pytest.raises(ValueError) as error:
        read(np.zeros(shape, dtype))
    assert str(shape) in str(error.value) and np.dtype(dtype).name in str(error.value)
    assert "\n" not in str(error.value)
