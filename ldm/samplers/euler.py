"""Euler's and Heun's methods for the probability-flow ODE, plain and with fresh noise.

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

from ldm.samplers.ddim import ddim
from ldm.samplers.step import check_eta, heun_step, renoised
from ldm.types import Denoise, Grid, Noise

MAX_RAISE = sqrt(2) - 1  # share by which churn may raise a level: no more new noise than there was


@dataclass
class EulerConfig:
    """First order: straight along the noise where a step starts, which is DDIM with eta 0."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddim(denoise, x, grid, noise)


@dataclass
class EulerAncestralConfig:
    """First order, each step below its level and raised to it by new noise, as k-diffusion's sampler of this name.

    Written in y = x / alpha that is DDIM with the same eta, on every schedule.
    """

    eta: float = 1.0  # 0 is Euler's method, 1 is DDPM

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddim(denoise, x, grid, noise, eta=self.eta)


@dataclass
class HeunConfig:
    """Second order, two calls of the network a step (Karras et al. 2022, arXiv:2206.00364, alg. 1)."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return heun(denoise, x, grid)


@dataclass
class EDMConfig:
    """Heun's method with churn (Karras et al. 2022, arXiv:2206.00364, alg. 2), as for ImageNet (Table 5).

    The paper's S_min of 0.05 and S_max of 50 are for data of standard deviation 0.5, and these for the same of 1.
    """

    churn: float = 40.0  # S_churn; 0 is ``heun``
    s_min: float = 0.1  # only levels whose nsr lies between these are churned
    s_max: float = 100.0
    s_noise: float = 1.003  # size of the new noise; above 1 for networks that remove a little too much

    def __post_init__(self) -> None:
        if not 0 <= self.churn < inf:
            raise ValueError(f"churn {self.churn} is not a number from 0 on; try churn=40")
        if not 0 <= self.s_min <= self.s_max:
            raise ValueError(f"s_min {self.s_min} and s_max {self.s_max} are not 0 <= s_min <= s_max; try 0.1 and 100")
        if not 0 < self.s_noise < inf:
            raise ValueError(f"s_noise {self.s_noise} is not a positive number; try s_noise=1.003")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        churned = (self.s_min, self.s_max)
        return edm(denoise, x, grid, noise, churn=self.churn, churned=churned, s_noise=self.s_noise)


def heun(denoise: Denoise, x: Tensor, grid: Grid) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Karras et al. 2022, arXiv:2206.00364, alg. 1)."""
    for now, to in pairwise(grid):
        x = heun_step(denoise, x, denoise(x, now).x0, now, to)
    return x


def edm(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    noise: Noise,
    *,
    churn: float = 0.0,
    churned: tuple[float, float] = (0.0, inf),
    s_noise: float = 1.0,
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Karras et al. 2022, arXiv:2206.00364, alg. 2).

    Before each step from a level whose nsr is within ``churned``, new noise of size ``s_noise`` raises it by the share
    churn / steps. No level is raised above the schedule's noisiest.
    """
    share = min(churn / (len(grid) - 1), MAX_RAISE)
    for now, to in pairwise(grid):
        if share > 0 and not now.blank and churned[0] <= now.nsr <= churned[1]:
            higher = grid.at(float(now.nsr) * (1 + share))
            now, x = higher, renoised(x, now, higher, s_noise * noise())
        x = heun_step(denoise, x, denoise(x, now).x0, now, to)
    return x
