"""Whether the scene read from a picture is what a prompt states: right or wrong, and what of it is wrong."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import sqrt
from typing import NamedTuple

from ldm.data.scene import COLORS, Object, Scene, Statement, Thing, related
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.reader import UNKNOWN

ATTRIBUTES = ("count", "shape", "color", "size", "relation", "background")
SLACK = 1.0  # pixels of a picture of 64 that two centres read from pixels may be off together
MATCHED = 6  # objects of a picture that are tried against those stated, the largest first


class Verdict(NamedTuple):
    """``right`` is all or nothing; ``attributes`` holds (fulfilled, stated) for what the prompt states."""

    right: bool
    attributes: dict[str, tuple[int, int]]


class Share(NamedTuple):
    """``hits`` of ``total``, with a 95 % interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927), which is sound near 0 and 1 and for few trials; (0, 1) for none."""
        z = 1.959964
        n, p = self.total, self.value
        if n == 0:
            return 0.0, 1.0
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def percent(self, digits: int = 1) -> str:
        """In words, with the interval: "92.2 % (89.5 to 94.2)"."""
        share, low, high = (f"{100 * value:.{digits}f}" for value in (self.value, *self.interval))
        return f"{share} % ({low} to {high})"


@dataclass
class Score:
    """The share of right pictures, overall and by category, and of fulfilled attributes."""

    overall: Share
    categories: dict[str, Share] = field(default_factory=dict)
    attributes: dict[str, Share] = field(default_factory=dict)


def judge(statement: Statement, scene: Scene) -> Verdict:
    """Whether ``scene`` has exactly the stated objects and nothing unknown in it, and every statement is true of it.

    For the attributes each stated object is compared with the one of the picture that, in the assignment which fulfils
    most, stands for it; one that is missing fulfils nothing.
    """
    best = max((_fulfilled(statement, wanted, found) for wanted, found in _assignments(statement, scene)), key=_total)
    stated = len(statement.things) * statement.count
    best["count"] = (int(len(scene.objects) == stated), 1)
    if statement.background is not None:
        best["background"] = (int(scene.background == statement.background), 1)
    known = scene.background != UNKNOWN and all(UNKNOWN not in (o.shape, o.color, o.size) for o in scene.objects)
    return Verdict(known and all(hits == total for hits, total in best.values()), best)


def tally(prompts: Iterable[Prompt], verdicts: Iterable[Verdict]) -> Score:
    """The verdicts counted."""
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        seen[prompt.category] += 1
        right[prompt.category] += verdict.right
        for name, (fulfilled, stated) in verdict.attributes.items():
            hits[name] += fulfilled
            totals[name] += stated
    return Score(
        Share(right.total(), seen.total()),
        {category: Share(right[category], seen[category]) for category in seen},
        {name: Share(hits[name], totals[name]) for name in ATTRIBUTES if totals[name]},
    )


def _assignments(statement: Statement, scene: Scene) -> Iterator[tuple[tuple[Thing, ...], tuple[Object | None, ...]]]:
    """The stated things, and which object of the picture stands for each: every possibility."""
    objects = sorted(scene.objects, key=lambda thing: -thing.r)[:MATCHED]
    first = statement.things[0]
    colors: tuple[str | None, ...] = (first.color,)
    if statement.count > 1 and first.color is None:  # like objects are of one colour, if only of a free one
        colors = tuple({thing.color: 0 for thing in objects if thing.color != UNKNOWN}) or tuple(COLORS)[:1]
    for color in colors:
        first = replace(first, color=color)
        wanted = (first, *statement.things[1:]) * statement.count
        padded: list[Object | None] = [*objects, *[None] * max(0, len(wanted) - len(objects))]
        for found in dict.fromkeys(permutations(padded, len(wanted))):
            yield wanted, found


def _fulfilled(
    statement: Statement, wanted: tuple[Thing, ...], found: tuple[Object | None, ...]
) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for name in ("shape", "color", "size"):
        pairs = [
            (getattr(thing, name), seen and getattr(seen, name)) for thing, seen in zip(wanted, found, strict=True)
        ]
        stated = [(value, seen) for value, seen in pairs if value is not None]
        if stated:
            counts[name] = sum(value == seen for value, seen in stated), len(stated)
    if statement.relation is not None:
        a, b = found
        holds = a is not None and b is not None and related((a.x, a.y), (b.x, b.y), statement.relation, SLACK)
        counts["relation"] = int(holds), 1
    return counts


def _total(counts: dict[str, tuple[int, int]]) -> int:
    return sum(hits for hits, _ in counts.values())
