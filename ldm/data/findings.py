"""What a check of a data set finds, and whether that is fit to be trained on. docs/data.md explains every figure."""

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import log

from ldm.data.stored import Named, Notes
from ldm.data.stream import check_enough, hold_out

SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels, where the shorter side's histogram is divided
SIDE_CLASSES = (
    f"below {SIDES[0]}",
    *(f"{low} to {high - 1}" for low, high in pairwise(SIDES)),
    f"{SIDES[-1]} and more",
)
RATIOS = ("1:2", "3:4", "1:1", "4:3", "2:1")  # of width to height, the middle of each class of that histogram


@dataclass
class Pictures:
    """What the readable pictures are."""

    formats: dict[str, int] = field(default_factory=dict)
    modes: dict[str, Named] = field(default_factory=dict)  # as stored; all become RGB
    smallest: tuple[int, int] = (0, 0)  # width and height of the one with the fewest pixels
    largest: tuple[int, int] = (0, 0)
    sides: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDE_CLASSES, 0))  # shorter side, pixels
    ratios: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RATIOS, 0))
    below_size: Named = field(default_factory=Named)  # shorter side below the training size: they are scaled up


@dataclass
class Captions:
    """What the captions of the readable pictures are; tokens count start and end of text."""

    count: int
    distinct: int
    several: int  # pictures with more than one
    limit: int  # tokens
    cut: Named
    cut_by_clip: int  # as many would be cut with CLIP's whole vocabulary
    spelled: Named  # captions with tokens outside the encoder's vocabulary, which it spells in bytes
    median: int = 0  # tokens
    most_of_them: int = 0  # tokens, which 95 % do not exceed
    longest: int = 0  # tokens


@dataclass
class Archives:
    """How archives fall to the loader workers of all ranks where they are read as a stream."""

    count: int
    fewest: int  # samples of an archive
    most: int
    consumers: int  # ranks x workers
    least_dealt: int  # archives of a consumer, in a pass over those to train on
    most_dealt: int


@dataclass
class Cache:
    """What the latent cache of the training split takes."""

    pictures: int
    captions: int  # distinct
    bytes: int
    exact: bool  # False where pictures have several captions, of which one each is drawn: the bytes are a bound


@dataclass
class Findings:
    """What a look through a data set found."""

    path: str
    kind: str
    captioned: bool  # False: captions are not looked for, and all pictures are listed
    size: int
    listed: int  # pictures with a caption, or all where none is looked for
    usable: int
    broken: Named
    notes: Notes
    pictures: Pictures
    captions: Captions
    same_bytes: Named  # as an earlier picture's file
    same_pixels: Named  # decoded
    archives: Archives | None
    cache: Cache
    reasons: list[str]  # why it is not fit


def reasons(found: Findings, max_broken: float, ranks: int, workers: int) -> list[str]:
    """Why the data set is not fit to be trained on; none where it is."""
    told, notes = [], found.notes
    if notes.refused.count:
        told.append(f"training refuses it: {notes.refused.count} entries must not be there or cannot be read")
    if not found.listed:
        bare = notes.missing.count + notes.empty.count
        none = f"none of its {bare} pictures has a caption (a first stage reads none: --no-captions)"
        told.append(none if bare else "there are no pictures in it")
    elif found.broken.count > max_broken * found.listed:
        told.append(f"{found.broken.count} of {found.listed} pictures are broken, more than --max-broken {max_broken}")
    elif not found.usable:
        told.append("no picture is left")
    if notes.repeated.count:
        told.append(f"{notes.repeated.count} keys come twice: which picture and caption belong together is not certain")
    if found.archives:
        if notes.cut.count > max_broken * found.archives.count:
            share = f"{notes.cut.count} of {found.archives.count} archives"
            told.append(f"{share} are cut off, more than --max-broken {max_broken}")
        try:
            check_enough(len(hold_out(notes.archives, [])[0]), ranks, workers)
        except ValueError as error:
            told.append(f"{error} (data.name=shards reads any number)")
    return told


def deal(archives: list[int], ranks: int, workers: int) -> Archives:
    """How ``archives``, the samples of each, are dealt out: to ranks first and to their workers then."""
    order = range(len(hold_out(archives, [])[0]))
    most, least = order[::ranks][::workers], order[ranks - 1 :: ranks][workers - 1 :: workers]
    return Archives(len(archives), min(archives), max(archives), ranks * workers, len(least), len(most))


def side_class(side: int) -> str:
    """The class of the shorter side's histogram: "64 to 127"."""
    return SIDE_CLASSES[bisect_right(SIDES, side)]


def ratio_class(width: int, height: int) -> str:
    """The nearest of RATIOS, in octaves: a picture of 1 x 8 pixels is "1:2"."""
    return min(RATIOS, key=lambda ratio: abs(log(width / height / Fraction(ratio.replace(":", "/")))))
