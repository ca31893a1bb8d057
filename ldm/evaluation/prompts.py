"""The benchmark's prompts: GenEval's six categories (Ghosh et al. 2023, arXiv:2310.11513) and four of this world."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.data.captions import caption, parse
from ldm.data.scene import BACKGROUNDS, COUNTS, HELD_OUT, RELATIONS, SIZES, TRAINED, Pair, Statement, Thing

SEED = 20_260_101  # of the prompt set; the training sets' seeds make other random streams whatever their number
TRAINING_SEED = SEED + 1  # of the prompts that choose the best model of a training: not those that it is judged by
STREAM = 9  # sets the prompts' stream apart from a data set's, which is (seed, 0 or 1, index)

Rng = np.random.Generator


@dataclass(frozen=True)
class Prompt:
    """What to draw, as text and as what the text states."""

    category: str
    text: str
    statement: Statement


def _pairs(rng: Rng, count: int, pairs: tuple[Pair, ...] = TRAINED) -> list[Pair]:
    """Pairs that differ in shape and in colour."""
    drawn: list[Pair] = []
    while len(drawn) < count:
        shape, color = pairs[rng.integers(len(pairs))]
        if all(shape != other and color != paint for other, paint in drawn):
            drawn.append((shape, color))
    return drawn


def _things(rng: Rng, count: int, *, color: float = 0.0, size: bool = False) -> tuple[Thing, ...]:
    """Things of different shapes that state their colours with probability ``color``."""
    stated = rng.random() < color
    return tuple(
        Thing(shape, paint if stated else None, str(rng.choice([*SIZES])) if size else None)
        for shape, paint in _pairs(rng, count)
    )


def _relation(rng: Rng) -> str:
    return str(rng.choice([*RELATIONS]))


def _background(rng: Rng) -> str:
    return str(rng.choice([*BACKGROUNDS]))


def _held_out(rng: Rng) -> Statement:
    count = int(rng.integers(1, 3))
    things = tuple(Thing(shape, color) for shape, color in _pairs(rng, count, HELD_OUT))
    return Statement(things, relation=_relation(rng) if count > 1 else None)


CATEGORIES: dict[str, Callable[[Rng], Statement]] = {
    "single object": lambda rng: Statement(_things(rng, 1)),
    "two objects": lambda rng: Statement(_things(rng, 2)),
    "counting": lambda rng: Statement(_things(rng, 1, color=0.5), count=int(rng.choice([*COUNTS]))),
    "colors": lambda rng: Statement(_things(rng, 1, color=1)),
    "position": lambda rng: Statement(_things(rng, 2, color=0.5), relation=_relation(rng)),
    "color attribution": lambda rng: Statement(_things(rng, 2, color=1)),
    "size": lambda rng: Statement(_things(rng, 1, color=0.5, size=True)),
    "background": lambda rng: Statement(_things(rng, 1, color=0.5), background=_background(rng)),
    "full": lambda rng: Statement(
        _things(rng, 2, color=1, size=True), relation=_relation(rng), background=_background(rng)
    ),
    "held out": _held_out,
}


def prompt_set(per_category: int, seed: int = SEED) -> list[Prompt]:
    """``per_category`` prompts of each category, in the order of ``CATEGORIES``; the first few are those of any number.

    Raises:
        ValueError: the number is not positive.
    """
    if per_category < 1:
        raise ValueError(f"{per_category} prompts per category are too few; take at least 1")
    prompts = []
    for number, (category, draw) in enumerate(CATEGORIES.items()):
        for index in range(per_category):
            rng = np.random.default_rng([seed, STREAM, number, index])
            statement = draw(rng)
            prompts.append(Prompt(category, caption(statement, rng), statement))
    return prompts


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file, one on each line: of the benchmark's categories where they are its own, in its order.

    Else all are of the category "prompts".

    Raises:
        ValueError: a line says nothing about a scene of the shapes world; the message names it.
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(Prompt("prompts", line.strip(), parse(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one on each line")
    own = prompt_set(-(-len(prompts) // len(CATEGORIES)))
    return own if [prompt.text for prompt in own] == [prompt.text for prompt in prompts] else prompts
