"""The probability-flow ODE with steps as long as the wanted accuracy allows.

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from math import exp, inf, isfinite, log
from typing import ClassVar

import torch
from torch import Tensor

from ldm.samplers.interpolation import blend
from ldm.samplers.step import move
from ldm.types import BLANK, Denoise, Grid, Noise

# Dormand & Prince 1980: of each stage its place in the step and what the slopes before it count there. The last stage
# is the step's end; its slope begins the next step.
STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 less order 4
FIRST = 0.1  # length of the first step in log(nsr)
LONGEST = 2.0  # of any: where x0 is not seen yet slopes are alike, and tell nothing of what a long step would pass over
NEAR = 0.01  # nsr; however lax the tolerance, the ODE is followed to here, from where it is one step to no noise


@dataclass
class ODEConfig:
    """Song et al. 2021, arXiv:2011.13456, Sec. 4.3: the probability-flow ODE by an adaptive Runge-Kutta method."""

    one_by_one: ClassVar = True  # steps suit a batch's worst image, and no image may change with its batch

    # error of a step that is allowed, relative to the size of x at unit variance; above 0.01 LONGEST settles steps
    rtol: float = 1e-4
    atol: float = 1e-4  # and on top of that

    def __post_init__(self) -> None:
        for name, tol in (("rtol", self.rtol), ("atol", self.atol)):
            if not 1e-7 <= tol < 1:  # below, the rounding of single precision would settle the steps
                raise ValueError(f"{name} {tol} is not a number from 1e-7 to below 1; try {name}=1e-4")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ode(denoise, x, grid, rtol=self.rtol, atol=self.atol)


def ode(denoise: Denoise, x: Tensor, grid: Grid, *, rtol: float = 1e-4, atol: float = 1e-4) -> Tensor:
    """``x`` (B, C, H, W) taken along ``grid`` to its end: Dormand & Prince's method of order 5 over log(nsr).

    Of ``grid`` only the ends count, not the number of levels between. Where it ends clean, the ODE is followed to where
    the noise that is left is within the tolerance, |z| being about 1, or to the schedule's cleanest level where that
    has more; one step takes x from there. If ``grid`` begins with noise alone, x is moved to where that ends first.
    What is followed is z = x / norm, which has unit variance at every level where x0 has: in y = x / alpha an error
    that is small beside the noise at a step's start is large beside that at its end. Steps are as long for all images
    as the worst needs: within the tolerance an image differs with its batch.

    Raises:
        ValueError: ``denoise`` says what is no number.
    """
    start, end = grid[0], grid[-1]
    clean = end.sigma == 0
    if start.blank:
        seen = grid.at(BLANK)
        x, start = move(x, denoise(x, start).x0, start, seen), seen
    if start.sigma == 0:
        return x
    if clean:
        nearest = max(min(atol + rtol, NEAR), grid.schedule.level(0.0).nsr)
        end = grid.at(float(min(start.nsr, nearest)))

    def slope(z: Tensor, log_nsr: float) -> Tensor:
        level = grid.at(exp(log_nsr))
        kept = level.alpha / level.norm
        return kept * (kept * z - denoise(level.norm * z, level).x0)  # dz / d log(nsr), from dy / d nsr = noise

    z, at, step = x / start.norm, log(start.nsr), -FIRST
    first = slope(z, at)
    while at > log(end.nsr):
        step = max(step, log(end.nsr) - at)
        slopes = [first]
        for place, weights in STAGES:
            ahead = z + step * blend(weights, slopes)
            slopes.append(slope(ahead, at + place * step))
        error = worst(step * blend(ERROR, slopes) / (atol + rtol * torch.maximum(z.abs(), ahead.abs())))
        if not isfinite(error):
            raise ValueError(
                f"x0 is not a number at sigma / alpha {exp(at):.3g}; try --precision fp32, or --sampler heun"
            )
        if error <= 1:
            z, at, first = ahead, at + step, slopes[-1]
        step = max(-LONGEST, step * min(5.0, max(0.2, 0.9 * error**-0.2 if error > 0 else inf)))
    x = end.norm * z
    return move(x, denoise(x, end).x0, end, grid[-1]) if clean else x


def worst(error: Tensor) -> float:
    """The root mean square of the row of ``error`` (B, C, H, W) where it is largest."""
    return float(error.square().mean(dim=(1, 2, 3)).amax().sqrt())
