"""The shapes world: what can be said of a scene, and a scene in which it is true.

A ``Statement`` says some of a scene; what it leaves out is ``None`` and free. Statement first, then caption and scene
from it, so that every caption is true of its picture by construction. Lengths are pixels of a 64 x 64 picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BACKGROUNDS = {"black": (20, 20, 20), "gray": (110, 110, 110), "white": (245, 245, 245), "navy": (20, 30, 70)}
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 40),
    "yellow": (240, 210, 50),
    "green": (50, 170, 70),
    "cyan": (70, 200, 220),
    "blue": (50, 90, 220),
    "purple": (150, 60, 190),
    "pink": (245, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
SIZES = {"small": (7.0, 9.0), "large": (13.0, 17.0)}  # radius of the circumscribed circle
FORMS = {"one": 0.2, "like": 0.2, "and": 0.2, "relation": 0.4}  # what a statement is about, and how often
COUNTS = {2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = max(COUNTS)
RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}  # direction from B to A, y downward
SIDE = 64.0
MARGIN = 2.0  # free pixels to the border and between the circles around two objects
RELATION_GAP = 16.0  # least distance of two related centres along the relation's axis

Pair = tuple[str, str]  # (shape, colour)
HELD_OUT: tuple[Pair, ...] = tuple(
    (shape, color) for i, shape in enumerate(SHAPES) for j, color in enumerate(COLORS) if (i + j) % 8 == 0
)
TRAINED: tuple[Pair, ...] = tuple((s, c) for s in SHAPES for c in COLORS if (s, c) not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """What is said of one object; ``None`` leaves the attribute free."""

    shape: str
    color: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Statement:
    """What a caption says: ``count`` like things, or two things (``relation`` is A's place as seen from B)."""

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Object:
    """One shape; lengths in units of a 64 px picture's pixels."""

    shape: str
    color: str
    size: str
    x: float  # centre, pixels, y grows downward
    y: float
    r: float  # radius of the circumscribed circle


@dataclass(frozen=True)
class Scene:
    """What is in a picture."""

    background: str
    objects: tuple[Object, ...]


def draw_statement(
    rng: np.random.Generator,
    pairs: tuple[Pair, ...] = TRAINED,
    max_objects: int = MAX_OBJECTS,
    sizes: Sequence[str] = tuple(SIZES),
    forms: Sequence[float] = tuple(FORMS.values()),
) -> Statement:
    """A random statement over the (shape, colour) ``pairs``: one object, like objects, two joined, or two related.

    It never asks for more than ``max_objects`` of them, 1 to ``MAX_OBJECTS``, nor for another size than ``sizes``.
    ``forms`` are the probabilities of ``FORMS``; with a single object there is but the first.
    """
    form = rng.choice(tuple(FORMS), p=forms) if max_objects > 1 else "one"
    number = 2 if form in ("and", "relation") else 1
    things: list[Thing] = []
    while len(things) < number:
        shape, color = pairs[rng.integers(len(pairs))]
        thing = Thing(
            shape,
            color if rng.random() < 0.85 else None,
            str(rng.choice(sizes)) if rng.random() < 0.3 else None,
        )
        if thing not in things:  # "a star and a star" would be a count
            things.append(thing)
    return Statement(
        tuple(things),
        count=int(rng.choice([count for count in COUNTS if count <= max_objects])) if form == "like" else 1,
        relation=str(rng.choice(list(RELATIONS))) if form == "relation" else None,
        background=str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.3 else None,
    )


def draw_scene(
    statement: Statement,
    rng: np.random.Generator,
    pairs: tuple[Pair, ...] = TRAINED,
    sizes: Sequence[str] = tuple(SIZES),
) -> Scene:
    """A random scene in which ``statement`` is true; what it leaves free stays within ``pairs`` and ``sizes``.

    Raises:
        ValueError: the statement asks for what does not fit into the picture.
    """
    background = statement.background or str(rng.choice(list(BACKGROUNDS)))
    things = statement.things * statement.count
    colors = {thing: thing.color or _free_color(thing.shape, rng, pairs) for thing in statement.things}
    for attempt in range(1_000):
        drawn = [thing.size or str(rng.choice(sizes)) for thing in things]
        place = _place if attempt < 20 or statement.relation else _place_in_quadrants
        places = place([SIZES[size] for size in drawn], statement.relation, rng)
        if places is not None:
            objects = (
                Object(thing.shape, colors[thing], size, *place)
                for thing, size, place in zip(things, drawn, places, strict=True)
            )
            return Scene(background, tuple(objects))
    raise ValueError(f"no room for {statement}; ask for at most 4 objects")


def _free_color(shape: str, rng: np.random.Generator, pairs: tuple[Pair, ...]) -> str:
    allowed = [color for color in COLORS if (shape, color) in pairs]
    return str(rng.choice(allowed))


def _place(
    ranges: list[tuple[float, float]], relation: str | None, rng: np.random.Generator
) -> list[tuple[float, float, float]] | None:
    """(x, y, r) of every object, or ``None`` where they found no room in a few tries."""
    placed: list[tuple[float, float, float]] = []
    for low, high in ranges:
        for _ in range(20):
            r = rng.uniform(low, high)
            x, y = rng.uniform(r + MARGIN, SIDE - r - MARGIN, size=2)
            if all(np.hypot(x - px, y - py) >= r + pr + MARGIN for px, py, pr in placed):
                placed.append((float(x), float(y), float(r)))
                break
        else:
            return None
    return placed if relation is None or related(placed[0][:2], placed[1][:2], relation) else None


def _place_in_quadrants(
    ranges: list[tuple[float, float]], _: str | None, rng: np.random.Generator
) -> list[tuple[float, float, float]] | None:
    """Like ``_place`` with a quarter of the picture for each object: four large ones hardly ever fit by chance."""
    if len(ranges) > 4:
        return None
    cell = SIDE / 2 - 1.5 * MARGIN  # the border's margin, and half of the one between neighbours
    placed = []
    for quadrant, (low, high) in zip(rng.permutation(4), ranges, strict=False):
        r = rng.uniform(low, min(high, cell / 2))
        x, y = rng.uniform(r, cell - r, size=2) + MARGIN + np.array(divmod(quadrant, 2)) * (cell + MARGIN)
        placed.append((float(x), float(y), float(r)))
    return placed


def related(a: tuple[float, float], b: tuple[float, float], relation: str, slack: float = 0.0) -> bool:
    """Whether the centre ``a`` lies ``relation`` of ``b``: far enough, and along the axis of larger displacement.

    ``slack`` is the error, in pixels, that both centres together may have.
    """
    dx, dy = a[0] - b[0], a[1] - b[1]
    sx, sy = RELATIONS[relation]
    along, across = (dx * sx, abs(dy)) if sx else (dy * sy, abs(dx))
    return along >= RELATION_GAP - slack and along > across - slack
