"""The drawn, captioned data set: sample ``index`` is a pure function of (seed, split, index), so nothing is stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ldm.data.draw import draw
from ldm.data.scene import Scene, Statement, caption, draw_scene, draw_statement
from ldm.types import Key, Sample

SPLITS = {"train": 0, "val": 1}
VERSION = 1  # rises when the same (seed, index) would draw another picture


@dataclass
class ShapesConfig:
    """Coloured shapes on a flat background; 8 of the 64 (shape, colour) pairs are held out of every sample."""

    size: int = 64  # pixels, a multiple of 16
    seed: int = 0
    length: int = 100_000  # training samples an epoch

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size {self.size} is not a multiple of 16; try size={max(16, self.size // 16 * 16)}")
        if self.length < 1:
            raise ValueError(f"length {self.length} leaves no sample; try length=100000")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; try seed={-self.seed}")

    def build(self, split: str) -> "Shapes":
        return Shapes(self, split)


class Shapes:
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
        return Sample(pixels.permute(2, 0, 1).float() / 127.5 - 1, text)

    def scene(self, index: int) -> tuple[Scene, str, Statement]:
        """What is drawn at ``index``, its caption, and what the caption states."""
        rng = np.random.default_rng([self.config.seed, SPLITS[self.split], index])
        statement = draw_statement(rng)
        return draw_scene(statement, rng), caption(statement, rng), statement

    def captions(self, count: int) -> Iterator[str]:
        """The first ``count`` captions, without drawing their pictures."""
        return (self.scene(index)[1] for index in range(min(count, len(self))))

    def fingerprint(self) -> str:
        return f"shapes-v{VERSION}-{self.split}-{self.config.size}px-seed{self.config.seed}-{len(self)}"
