"""DDIM, its inversion, and DDPM's ancestral sampling.

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast, get_args

from torch import Tensor

from ldm.diffusion.posterior import Variance, reverse_step
from ldm.samplers.step import along, check_eta, implied_noise, move, renewed
from ldm.types import Denoise, Grid, Noise


@dataclass
class DDIMConfig:
    """Song et al. 2021, arXiv:2010.02502."""

    eta: float = 0.0  # 0 is deterministic, 1 is DDPM, more has more noise than that

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddim(denoise, x, grid, noise, eta=self.eta)


@dataclass
class DDPMConfig:
    """Ho et al. 2020, arXiv:2006.11239, alg. 2."""

    variance: str = "posterior"  # of a step's noise: posterior | beta | learned

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise ValueError(f"variance '{self.variance}' is not one of {', '.join(get_args(Variance))}")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return ddpm(denoise, x, grid, noise, variance=cast(Variance, self.variance))


def ddim(denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Song et al. 2021, arXiv:2010.02502, eq. 12).

    Of the variance at the next level, eta^2 times that of DDPM's posterior (eq. 16; above 1 as in ``renewed``) is drawn
    anew; the rest is moved there along the predicted noise.
    """
    for now, to in pairwise(grid):
        kept, fresh = renewed(now, to, eta)
        x = move(x, denoise(x, now).x0, now, kept)
        if fresh > 0:
            x = x + fresh * noise()
    return x


def ddim_inversion(denoise: Denoise, x0: Tensor, grid: Grid) -> Tensor:
    """The x at ``grid[0]`` that ``ddim`` with eta 0 takes to ``x0`` (B, C, H, W), but for the error of the steps.

    The ODE of ``ddim`` run from data to noise (Song et al. 2021, arXiv:2010.02502, Sec. 4.3). Clean x has no noise to
    go along: the first step asks for that of the level it goes to.
    """
    x = x0
    for now, to in pairwise(reversed(grid)):
        asked = now if now.sigma > 0 else to
        seen = (asked.alpha / now.alpha) * x
        x = along(x, implied_noise(seen, denoise(seen, asked).x0, asked), now, to)
    return x


def ddpm(denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, variance: Variance = "posterior") -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Ho et al. 2020, arXiv:2006.11239, alg. 2).

    ``variance`` is that of the noise which a step adds, see ``ldm.diffusion.posterior.reverse_step``. A step is that
    between two levels of ``grid``, however far apart they are; with the posterior's variance it is ``ddim``'s with eta
    1. The last step adds none.

    Raises:
        ValueError: ``variance`` is "learned", and ``denoise`` says none.
    """
    for now, to in pairwise(grid):
        mean, log_variance = reverse_step(denoise(x, now), x, now, to, variance)
        x = mean + (0.5 * log_variance).exp() * noise() if to.sigma > 0 else mean
    return x
