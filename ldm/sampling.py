"""How images are drawn: which sampler walks over which noise levels, under which guidance. Part of a model's folder."""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from ldm.config import choice, section, update
from ldm.diffusion.grids import GRIDS
from ldm.diffusion.guidance import GuidanceConfig
from ldm.samplers import SAMPLERS
from ldm.types import Level, Prediction, Schedule


@dataclass
class SampleConfig:
    """How much is drawn, and what bounds it."""

    steps: int = 50  # noise levels that the sampler visits
    batch: int = 16  # images drawn at once; does not change them
    tile: int = 0  # pixels a side of what is decoded at once, in overlapping tiles; 0 is the whole batch
    clip: float = 0.0  # x0 is cut to [-clip, clip] in every step: 1 is DDPM's, for pixels; 0 is off

    def __post_init__(self) -> None:
        for name, usual in (("steps", 50), ("batch", 16)):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1; try {name}={usual}")
        if self.tile < 0:
            raise ValueError(f"tile {self.tile} is not at least 0; try tile=512, or tile=0 for the whole")
        if not 0 <= self.clip < inf:
            raise ValueError(f"clip {self.clip} is not a number from 0; try clip=3, or clip=0 for off")


@dataclass
class Sampling:
    """All that says how a model draws, but for what; each field is a section of the configuration."""

    sampler: Any = choice(SAMPLERS, "ddim")
    grid: Any = choice(GRIDS, "uniform")
    guidance: GuidanceConfig = section(GuidanceConfig)
    sample: SampleConfig = section(SampleConfig)

    @property
    def batch(self) -> int:
        """Images drawn at once: one where the sampler's steps would else suit all images of a batch together."""
        return 1 if getattr(self.sampler, "one_by_one", False) else self.sample.batch

    def rehearsal(self, schedule: Schedule) -> tuple[int, bool]:
        """How often an image's denoiser is called, and whether noise is drawn on the way: a walk over one number."""
        calls, draws = 0, 0

        def denoise(x: Tensor, level: Level) -> Prediction:
            nonlocal calls
            calls += 1
            return Prediction(torch.zeros_like(x), torch.zeros_like(x))

        def noise() -> Tensor:
            nonlocal draws
            draws += 1
            return torch.zeros(1, 1, 1, 1)

        self.sampler(denoise, torch.ones(1, 1, 1, 1), self.grid(schedule, self.sample.steps), noise)
        return calls, draws > 0

    def but(self, *overrides: str) -> "Sampling":
        """The same with ``section.key=value`` laid over it, all checked.

        Raises:
            ConfigError: there is no such key, or the value does not fit.
        """
        return update(self, overrides)
