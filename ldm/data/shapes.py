"""The drawn, captioned data set: sample ``index`` is a pure function of (seed, split, index), so nothing is stored."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from ldm.data.captions import caption
from ldm.data.draw import draw
from ldm.data.scene import FORMS, MAX_OBJECTS, SIZES, Scene, Statement, draw_scene, draw_statement
from ldm.data.transforms import from_bytes
from ldm.types import Key, Sample

SPLITS = {"train": 0, "val": 1}
VERSION = 1  # rises when the same (seed, index) would draw another picture


@dataclass
class ShapesConfig:
    """Coloured shapes on a flat background; 8 of the 64 (shape, colour) pairs are held out of every sample."""

    size: int = 64  # pixels, a multiple of 16
    seed: int = 0
    length: int = 100_000  # training samples an epoch
    max_objects: int = MAX_OBJECTS  # in a picture; 1 is learned sooner
    sizes: list[str] = field(default_factory=lambda: list(SIZES))  # of the objects
    # how often a caption is of one object, of like ones, of two joined, of two related; their sum is 1
    forms: list[float] = field(default_factory=lambda: list(FORMS.values()))

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size {self.size} is not a multiple of 16; try size={max(16, self.size // 16 * 16)}")
        if self.length < 1:
            raise ValueError(f"length {self.length} leaves no sample; try length=100000")
        if not 1 <= self.max_objects <= MAX_OBJECTS:
            nearest = min(max(self.max_objects, 1), MAX_OBJECTS)
            raise ValueError(f"max_objects {self.max_objects} is not 1 to {MAX_OBJECTS}; try max_objects={nearest}")
        if not self.sizes or not set(self.sizes) <= SIZES.keys():
            raise ValueError(f"sizes {self.sizes} must hold some of {', '.join(SIZES)}; try sizes=[{','.join(SIZES)}]")
        usual = ",".join(map(str, FORMS.values()))
        if len(self.forms) != len(FORMS) or not (min(self.forms) >= 0 and abs(sum(self.forms) - 1) < 1e-8):
            raise ValueError(f"forms {self.forms} must be {len(FORMS)} shares whose sum is 1; try forms=[{usual}]")
        if self.max_objects == 1 and self.forms != list(FORMS.values()):
            raise ValueError(f"forms {self.forms} change nothing where max_objects is 1; try forms=[{usual}]")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; try seed={-self.seed}")

    def holds(self, statement: Statement) -> bool:
        """Whether pictures of this set can show what ``statement`` says, held-out pairs aside."""
        count = len(statement.things) * statement.count
        one, like, joined, related = self.forms if self.max_objects > 1 else (1, 0, 0, 0)
        shown = like if statement.count > 1 else joined + related if count > 1 else one
        fits = count <= self.max_objects and shown > 0
        return fits and all(thing.size in (None, *self.sizes) for thing in statement.things)

    def build(self, split: str) -> "Shapes":
        return Shapes(self, split)


class Shapes:
    """Drawn pictures with captions; sample i is a function of (seed, i)."""

    fixed = True

    def __init__(self, config: ShapesConfig, split: str) -> None:
        self.config = config
        self.split = split

    def __len__(self) -> int:
        return self.config.length if self.split == "train" else max(1, min(2_000, self.config.length // 10))

    def __getitem__(self, key: Key) -> Sample:
        """The picture and caption at ``key.index``; the same in every epoch."""
        scene, text, _ = self.scene(key.index)
        pixels = torch.from_numpy(draw(scene, self.config.size))  # (S, S, 3)
        return Sample(from_bytes(pixels.permute(2, 0, 1)), text)

    def scene(self, index: int) -> tuple[Scene, str, Statement]:
        """What is drawn at ``index``, its caption, and what the caption states."""
        rng = np.random.default_rng([self.config.seed, SPLITS[self.split], index])
        config = self.config
        statement = draw_statement(rng, max_objects=config.max_objects, sizes=config.sizes, forms=config.forms)
        return draw_scene(statement, rng, sizes=config.sizes), caption(statement, rng), statement

    def captions(self, count: int) -> Iterator[str]:
        """The first ``count`` captions, without drawing their pictures."""
        return (self.scene(index)[1] for index in range(min(count, len(self))))

    def fingerprint(self) -> str:
        config = self.config
        name = f"shapes-v{VERSION}-{self.split}-{config.size}px-seed{config.seed}-{len(self)}"
        if config.max_objects != MAX_OBJECTS:
            name += f"-max{config.max_objects}"
        if config.forms != list(FORMS.values()):
            name += f"-forms{'-'.join(map(str, config.forms))}"
        return name if config.sizes == list(SIZES) else f"{name}-{'-'.join(config.sizes)}"
