"""What a statement about a scene of the shapes world reads like, and what such a caption states."""

import re

import numpy as np

from ldm.data.scene import BACKGROUNDS, COLORS, COUNTS, SHAPES, SIZES, Statement, Thing

WORDINGS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
FRAME = "a picture of "

_RELATIONS = {wording: relation for relation, wordings in WORDINGS.items() for wording in wordings}
_BACKGROUND = re.compile(rf" on an? ({'|'.join(BACKGROUNDS)}) background$")
_JOINTS = re.compile(rf" (and|{'|'.join(sorted(_RELATIONS, key=len, reverse=True))}) ")
_PHRASE = re.compile(
    rf"(an?|{'|'.join(COUNTS.values())})(?: ({'|'.join(SIZES)}))?(?: ({'|'.join(COLORS)}))?"
    rf" ({'|'.join(SHAPES)})(e?s)?"
)


def caption(statement: Statement, rng: np.random.Generator) -> str:
    """A lower-case wording of ``statement``, e.g. "a small red star to the left of a ring on a navy background"."""
    phrases = [_phrase(thing, statement.count) for thing in statement.things]
    if statement.relation is not None:
        text = f" {rng.choice(WORDINGS[statement.relation])} ".join(phrases)
    else:
        text = " and ".join(phrases)
    if rng.random() < 0.2:
        text = f"{FRAME}{text}"
    if statement.background is not None:
        text = f"{text} on a {statement.background} background"
    return text


def parse(text: str) -> Statement:
    """What a caption states; capitals, a frame and a full stop do not matter.

    Raises:
        ValueError: it does not read as ``caption`` writes them.
    """
    rest = " ".join(text.lower().split()).rstrip(". ").removeprefix(FRAME)
    ground = _BACKGROUND.search(rest)
    phrases = _JOINTS.split(rest[: ground.start()] if ground else rest)
    read = [_PHRASE.fullmatch(phrase) for phrase in phrases[::2]]
    if not 1 <= len(read) <= 2 or None in read:
        raise ValueError(
            f"'{text}' is no caption of the shapes world; write e.g. \"three small red stars\" or "
            '"a blue ring above a large heart on a white background"'
        )
    numbers = {word: count for count, word in COUNTS.items()}
    found = [match.groups() for match in read if match]
    counts = [numbers.get(number, 1) for number, *_ in found]
    if len(found) > 1 and max(counts) > 1:
        raise ValueError(f"'{text}': a caption counts like objects or joins two, not both")
    things = tuple(Thing(shape, color, size) for _, size, color, shape, _ in found)
    for thing, count, (*_, plural) in zip(things, counts, found, strict=True):
        if (plural or "") != ("" if count == 1 else _plural(thing.shape)):
            raise ValueError(f"'{text}': '{thing.shape}{plural or ''}' is not the number that stands before it")
    joint = phrases[1] if len(found) > 1 else None
    return Statement(things, counts[0], _RELATIONS.get(joint or ""), ground[1] if ground else None)


def _phrase(thing: Thing, count: int) -> str:
    words = [word for word in (thing.size, thing.color) if word]
    if count > 1:
        return " ".join([COUNTS[count], *words, thing.shape + _plural(thing.shape)])
    words.append(thing.shape)
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _plural(shape: str) -> str:
    return "es" if shape == "cross" else "s"
