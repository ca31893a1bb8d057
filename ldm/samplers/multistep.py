"""Linear multistep methods on the predicted noise: PLMS, iPNDM and DEIS.

Legend: B batch, C channels, H W height and width of a latent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log

import numpy as np
from torch import Tensor

from ldm.samplers.interpolation import blend, gauss, mean_weights
from ldm.samplers.step import along, heun_step, implied_noise, move
from ldm.types import Denoise, Grid, Level, Noise, Schedule

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

# What the polynomial of DEIS is one of, by the schedule and nsr.
VARIABLES: dict[str, Callable[[Schedule, float], float]] = {
    "t": lambda schedule, nsr: schedule.t_at(nsr),
    "rho": lambda schedule, nsr: nsr,
    "log_rho": lambda schedule, nsr: log(nsr),
}


@dataclass
class PLMSConfig:
    """Liu et al. 2022, arXiv:2202.09778, with one step of Heun's method to start."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return adams_bashforth(denoise, x, grid, heun_start=True)


@dataclass
class IPNDMConfig:
    """Zhang & Chen 2023, arXiv:2204.13902: PNDM that starts with its own lower orders."""

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return adams_bashforth(denoise, x, grid)


@dataclass
class DEISConfig:
    """Zhang & Chen 2023, arXiv:2204.13902."""

    order: int = 3  # predictions that count, 1 (DDIM) to 4; the paper's tAB is numbered from 0
    variable: str = "t"  # of the polynomial: t (tAB), rho (rhoAB) or log_rho
    lower_order_final: bool = True  # order no higher than the steps that are left

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order {self.order} is not 1, 2, 3 or 4; try order=3")
        if self.variable not in VARIABLES:
            raise ValueError(f"variable '{self.variable}' is not one of {', '.join(VARIABLES)}")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return deis(
            denoise, x, grid, order=self.order, variable=self.variable, lower_order_final=self.lower_order_final
        )


def adams_bashforth(denoise: Denoise, x: Tensor, grid: Grid, *, heun_start: bool = False) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]``: each step along a blend of up to four predicted noises.

    The linear multistep part of PNDM (Liu et al. 2022, arXiv:2202.09778). The paper begins with three steps of a
    Runge-Kutta method, 12 calls of the network; here it is one step of Heun's, 2 calls, as in latent diffusion's PLMS
    (``heun_start``), or none, as in iPNDM. The weights are those of even steps in t, in the last step too.
    """
    noises: list[Tensor] = []
    for now, to in pairwise(grid):
        x0 = denoise(x, now).x0
        if now.blank:
            x = move(x, x0, now, to)
            continue
        noises = [implied_noise(x, x0, now), *noises][:4]
        if heun_start and len(noises) == 1:
            x = heun_step(denoise, x, x0, now, to)
        else:
            x = along(x, blend(ADAMS_BASHFORTH[len(noises) - 1], noises), now, to)
    return x


def deis(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    *,
    order: int = 3,
    variable: str = "t",
    lower_order_final: bool = True,
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Zhang & Chen 2023, arXiv:2204.13902).

    Each step is exact for a noise that is a polynomial of ``variable`` through the last ``order`` predictions. In
    log_rho that is the multistep DPM-Solver without its shortcut for order 2.
    """
    noises: list[Tensor] = []
    levels: list[Level] = []
    for i, (now, to) in enumerate(pairwise(grid)):
        x0 = denoise(x, now).x0
        if now.blank or to.sigma == 0:
            x = move(x, x0, now, to)
            continue
        noises = [implied_noise(x, x0, now), *noises][:order]
        levels = [now, *levels][:order]
        usable = len(grid) - 1 - i if lower_order_final else order
        weights = deis_weights(levels[:usable], to, grid.schedule, variable)
        x = along(x, blend(weights, noises[:usable]), now, to)
    return x


def deis_weights(levels: list[Level], to: Level, schedule: Schedule, variable: str) -> list[float]:
    """What the noises at ``levels`` count on the way from the first of these to ``to``: means over nsr."""
    place = VARIABLES[variable]
    points, masses = gauss()
    nsr = levels[0].nsr * (to.nsr / levels[0].nsr) ** points  # (Q,), spread over all magnitudes of the way
    nodes = np.array([place(schedule, float(level.nsr)) for level in levels])
    return mean_weights(nodes, np.array([place(schedule, float(one)) for one in nsr]), masses * nsr)
