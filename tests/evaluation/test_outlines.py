"""A fit finds which shape covers the pixels of an object, and where and how large it is."""

from math import cos, pi, radians, sin, sqrt

import numpy as np
import pytest

from ldm.data.draw import inside
from ldm.data.scene import SHAPES, SIZES
from ldm.evaluation.outlines import _outline, fit

SIDE = 40  # pixels of a patch
CELLS = 8  # of a pixel, along each side, that decide what share of it is covered
ARM = 0.34  # half the width of the cross's arms
END = sqrt(1 - ARM**2)  # where they end, so that their corners lie on the unit circle


def heart():
    """Area and centre of gravity of the heart's curve, by the shoelace formula on very many points."""
    u = np.linspace(0, 2 * pi, 100_000, endpoint=False)
    x = 16 * np.sin(u) ** 3 / 17
    y = -(13 * np.cos(u) - 5 * np.cos(2 * u) - 2 * np.cos(3 * u) - np.cos(4 * u)) / 17
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    centre = [((c + np.roll(c, -1)) * cross).sum() / (6 * area) for c in (x, y)]
    return abs(area), tuple(centre)


MIDDLE = (0.0, 0.0)
SOLIDS = {  # area and centre of gravity of the shape with radius 1
    "circle": (pi, MIDDLE),
    "ring": (pi * (1 - 0.55**2), MIDDLE),
    "square": (2.0, MIDDLE),
    "triangle": (3 * sqrt(3) / 4, MIDDLE),
    "diamond": (2 * 0.62, MIDDLE),
    "star": (10 * 0.5 * 0.42 * sin(radians(36)), MIDDLE),
    "cross": (2 * (2 * ARM * 2 * END) - (2 * ARM) ** 2, MIDDLE),  # two bars, less the square they share
    "heart": heart(),
}


def patch(shape, x, y, r):
    """The share of each pixel (P, P) that the shape covers."""
    n = CELLS
    cells = inside(shape, r * n, (x * n, y * n), (SIDE * n, SIDE * n))
    return cells.reshape(SIDE, n, SIDE, n).mean(axis=(1, 3), dtype=np.float32)


def places(count, seed=0):
    """``count`` random (x, y, r): centres anywhere between pixels, radii of the world's sizes."""
    rng = np.random.default_rng(seed)
    radii = [rng.uniform(*SIZES[size]) for size in rng.choice(list(SIZES), count)]
    return [(*rng.uniform(SIDE / 2 - 1, SIDE / 2 + 1, 2), r) for r in radii]


def test_every_shape_of_the_world_has_a_closed_form():
    assert SOLIDS.keys() == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_of_an_outline_is_that_of_the_shape(shape):
    assert _outline(shape).area == pytest.approx(SOLIDS[shape][0], rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_an_outline_is_that_of_the_shape(shape):
    assert _outline(shape).centre == pytest.approx(SOLIDS[shape][1], abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_the_area_lies_to_the_left_as_every_shape_is_its_own_mirror_image(shape):
    sums, area, _ = _outline(shape)
    assert sums[-1, sums.shape[1] // 2] == pytest.approx(area / 2, rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fit_recovers_shape_centre_and_radius(shape):
    truth = np.array(places(100))
    seen = fit(np.stack([patch(shape, *place) for place in truth]))
    assert {SHAPES[number] for number in seen.shape} == {shape}
    assert np.hypot(seen.x - truth[:, 0], seen.y - truth[:, 1]).max() < 0.3
    assert np.abs(seen.r / truth[:, 2] - 1).max() < 0.02
    assert seen.overlap.min() > 0.9 and seen.overlap.max() <= 1 + 1e-5


def test_a_fit_does_not_depend_on_the_other_patches():
    patches = np.stack([patch(shape, *place) for shape, place in zip(SHAPES, places(len(SHAPES)), strict=True)])
    together = fit(patches)
    for number in range(len(SHAPES)):
        alone = fit(patches[number : number + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            assert one[0] == pytest.approx(all_of_them[number], abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_that_moves_is_found_moved(shape):
    near = patch(shape, 18.3, 18.6, 12.0)
    here, there = (fit(patches[None]) for patches in (near, np.roll(near, (3, 2), axis=(0, 1))))
    assert (there.x - here.x, there.y - here.y) == (pytest.approx(2, abs=1e-3), pytest.approx(3, abs=1e-3))
    assert there.r == pytest.approx(here.r) and there.shape == here.shape


def checks():
    return np.indices((SIDE, SIDE)).sum(axis=0) // 4 % 2


def bar():
    return np.abs(np.arange(SIDE)[:, None] - SIDE / 2 + 0.5) < 3 + np.zeros((SIDE, SIDE))


def spokes():
    """Three thin lines from the middle, as no shape has them."""
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    turns = [radians(turn) for turn in (-30, 90, 210)]
    return np.any([(abs(x * sin(a) - y * cos(a)) < 1.5) & (x * cos(a) + y * sin(a) > 0) for a in turns], axis=0)


@pytest.mark.parametrize("picture", [checks, bar, spokes], ids=lambda make: make.__name__)
def test_what_is_none_of_the_shapes_overlaps_none_of_them_well(picture):
    assert fit(picture()[None].astype(np.float32)).overlap[0] < 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_that_is_half_there_overlaps_worse_than_a_whole_one(shape):
    whole = patch(shape, 20, 20, 15)
    assert fit(0.5 * whole[None]).overlap[0] < 0.6 < fit(whole[None]).overlap[0]
