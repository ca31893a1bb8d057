"""DDIM and, as its special case, DDPM's ancestral sampling."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from torch import Tensor

from ldm.samplers.step import move
from ldm.types import Denoise, Grid, Level, Noise


@dataclass
class DDIMConfig:
    """Song et al. 2021, arXiv:2010.02502."""

    eta: float = 0.0  # 0 is deterministic, 1 is DDPM

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta} is not in [0, 1]; 0 is DDIM and 1 is DDPM")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddim(denoise, x, grid, noise, eta=self.eta)


@dataclass
class DDPMConfig:
    """Ho et al. 2020, arXiv:2006.11239, alg. 2, with the posterior's variance."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddim(denoise, x, grid, noise, eta=1.0)


def ddim(denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Song et al. 2021, arXiv:2010.02502, eq. 12).

    Of the variance at the next level, eta^2 times that of DDPM's posterior (eq. 16) is drawn anew; the rest is moved
    there along the predicted noise.
    """
    for now, to in pairwise(grid):
        fresh = eta * to.sigma * sqrt(max(0.0, 1 - (to.nsr / now.nsr) ** 2))
        kept = Level(to.t, to.alpha, sqrt(max(0.0, to.sigma**2 - fresh**2)))
        x = move(x, denoise(x, now).x0, now, kept)
        if fresh > 0:
            x = x + fresh * noise()
    return x
