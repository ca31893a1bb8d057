"""Samplers that follow the reverse SDE or Langevin dynamics.

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

import torch
from torch import Tensor

from ldm.diffusion.sde import drift_and_diffusion
from ldm.samplers.step import move, renewed
from ldm.types import Denoise, Grid, Level, Noise, Schedule


@dataclass
class EulerMaruyamaConfig:
    """The reverse SDE (Song et al. 2021, arXiv:2011.13456, eq. 6) by the Euler-Maruyama method."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return predictor_corrector(denoise, x, grid, noise)


@dataclass
class PredictorCorrectorConfig:
    """Song et al. 2021, arXiv:2011.13456, alg. 2 and 3."""

    corrections: int = 1  # Langevin steps at each level
    snr: float = 0.16  # r of alg. 4, their size

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"corrections {self.corrections} is below 0; try corrections=1")
        if not 0 < self.snr < inf:
            raise ValueError(f"snr {self.snr} is not a positive number; try snr=0.16")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return predictor_corrector(denoise, x, grid, noise, corrections=self.corrections, snr=self.snr)


@dataclass
class AnnealedLangevinConfig:
    """NCSN, Song & Ermon 2019, arXiv:1907.05600, alg. 1."""

    repeats: int = 5  # T, Langevin steps at each level; 100 with the ten levels of the paper
    step: float = 0.2  # epsilon / sigma_L^2: a step's size where the noise is of size 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats {self.repeats} is not at least 1; try repeats=5")
        if not 0 < self.step < 4:
            raise ValueError(f"step {self.step} is not in (0, 4), where Langevin steps are stable; try step=0.2")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return annealed_langevin(denoise, x, grid, noise, repeats=self.repeats, step=self.step)


def score(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The gradient of the log-density at ``x``, from the mean x0 (Tweedie's formula); level.sigma is not 0."""
    return (level.alpha * x0 - x) / level.sigma**2


def langevin(x: Tensor, gradient: Tensor, size: Tensor | float, draw: Tensor) -> Tensor:
    """``x`` after one step of Langevin dynamics of that ``size`` along the score ``gradient``."""
    return x + size * gradient + (2 * size) ** 0.5 * draw


def back(x: Tensor, x0: Tensor, now: Level, to: Level, schedule: Schedule, noise: Noise) -> Tensor:
    """``x`` at ``to`` by dx = (f x - g^2 score) dt + g dw (Song et al. 2021, arXiv:2011.13456, eq. 6), t falling.

    A step from noise alone, where f is all but infinite, or to no noise, where the score is, is ``move``. One too long
    for Euler's rule, across which f x would be longer than x or g^2 dt more than all the noise, is the posterior's.
    """
    if now.blank or to.sigma == 0:
        return move(x, x0, now, to)
    f, g2 = drift_and_diffusion(schedule, float(now.t))
    dt = now.t - to.t
    if abs(f) * dt > 1 or g2 * dt > now.sigma**2:
        kept, fresh = renewed(now, to, 1.0)
        return move(x, x0, now, kept) + fresh * noise()
    return x - (f * x - g2 * score(x, x0, now)) * dt + sqrt(g2 * dt) * noise()


def predictor_corrector(
    denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, corrections: int = 0, snr: float = 0.16
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Song et al. 2021, arXiv:2011.13456, alg. 2 and 3).

    Each step of the reverse SDE is followed by ``corrections`` Langevin steps at its level, of a size that makes the
    drift ``snr`` times as long as the noise (alg. 4 for every schedule; alg. 5 has a factor alpha more).
    Lengths are each image's own: it must not depend on others.
    """
    for now, to in pairwise(grid):
        x = back(x, denoise(x, now).x0, now, to, grid.schedule, noise)
        for _ in range(corrections if to.sigma > 0 else 0):
            gradient, draw = score(x, denoise(x, to).x0, to), noise()
            x = langevin(x, gradient, 2 * (snr * length(draw) / length(gradient)) ** 2, draw)
    return x


def length(x: Tensor) -> Tensor:
    """The Euclidean norm of each row of ``x`` (B, C, H, W), as (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def annealed_langevin(
    denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, repeats: int = 5, step: float = 0.2
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Song & Ermon 2019, arXiv:1907.05600, alg. 1).

    ``repeats`` Langevin steps at each level, of size step / 2 times its variance, that leave the noise of the level
    before to be shrunk. It is the y = x / alpha of the paper's process that goes on from level to level. The last step
    takes out the noise that is left (Jolicoeur-Martineau et al. 2021, arXiv:2009.05475). Levels must be so near, or
    ``repeats`` so many, that now.nsr / to.nsr (1 - step / 2)^repeats is below 1: else the noise grows.
    """
    for now, to in pairwise(grid):
        for _ in range(repeats):
            gradient = score(x, denoise(x, now).x0, now)
            x = langevin(x, gradient, 0.5 * step * now.sigma**2, noise())
        if now.blank or to.sigma == 0:
            x = move(x, denoise(x, now).x0, now, to)
        else:
            x = (to.alpha / now.alpha) * x
    return x
