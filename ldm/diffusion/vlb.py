"""The variational bound on -log p(x0), term by term, in bits per dimension; and its term for training.

Legend: B batch, C channels, H W height and width, T steps, K evaluations.
"""

from collections.abc import Callable
from itertools import pairwise
from math import exp, log, pi
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.posterior import Variance, like, posterior, reverse_step
from ldm.diffusion.process import noised
from ldm.diffusion.times import evenly_spread
from ldm.types import BLANK, Denoise, Grid, Level, Noise, Prediction

Reconstruction = Callable[[Tensor, Tensor, Tensor], Tensor]  # x0, mean, log-variance -> log p(x0), each (B, C, H, W)


class Bound(NamedTuple):
    """The bound's terms of each sample, in bits per dimension, as the draws of noise made them."""

    prior: Tensor  # (B,) L_T, of x at the noisiest level to where sampling starts
    steps: Tensor  # (B, T - 1) L_{T-1} to L_1, noisiest first
    reconstruction: Tensor  # (B,) L_0
    mse: Tensor  # (B, T) mean squared error of the predicted x0 in each step

    @property
    def total(self) -> Tensor:
        """The bound (B,)."""
        return self.prior + self.steps.sum(dim=1) + self.reconstruction


def gaussian(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The log-density of ``x0`` under N(``mean``, exp(``log_variance``)), elementwise, in nats.

    With it a bound is on a density, and no code length: it may be negative, and moves with the data's scale.
    """
    return -0.5 * ((x0 - mean).square() * (-log_variance).exp() + log_variance + log(2 * pi))


def discretised(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The log-probability of the bin of ``x0``, elementwise, in nats (DDPM, arXiv:2006.11239, eq. 13).

    ``x0`` holds 8-bit pixels, scaled to 256 values in [-1, 1]. The outermost bins reach to infinity. A difference of
    logarithms is taken on the side where both are accurate, so that no probability needs a floor.
    """
    std = (0.5 * log_variance).exp()
    half, far = 1 / 255, 1e18  # beyond any edge, with a square that single precision holds
    low = torch.where(x0 < half - 1, -far, (x0 - half - mean) / std)
    high = torch.where(x0 > 1 - half, far, (x0 + half - mean) / std)
    above = low + high > 0
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return high + (-(low - high).expm1()).log()


def gaussian_kl(mean: Tensor, log_variance: Tensor, model_mean: Tensor, model_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(model_mean, model_variance)), elementwise, in nats."""
    excess = log_variance - model_log_variance
    shift = (mean - model_mean).square() * (-model_log_variance).exp()
    return 0.5 * (excess.expm1() - excess + shift)


def vlb_term(
    said: Prediction,
    x0: Tensor,
    x: Tensor,
    now: Level,
    to: Level,
    *,
    variance: Variance = "learned",
    reconstruction: Reconstruction = gaussian,
) -> Tensor:
    """The bound's term (B,) of the step from ``now`` to ``to``, in bits per dimension, for a model that ``said`` so.

    KL(q(x_s | x_t, x0) || p(x_s | x_t)), or where ``to`` is clean -log p(x0 | x_t) (DDPM, arXiv:2006.11239, eq. 5).
    ``x0`` and its noised ``x`` are (B, C, H, W); levels of tensors (B, 1, 1, 1) give every sample its own step. No
    gradient reaches the predicted x0, which the simple loss trains; this trains the variance (iDDPM,
    arXiv:2102.09672, Sec. 3.1). Times T, the mean over uniform steps estimates the bound but for L_T.
    """
    mean, log_variance = reverse_step(said._replace(x0=said.x0.detach()), x, now, to, variance)
    if not isinstance(to.sigma, Tensor) and to.sigma == 0:
        return _bits(-reconstruction(x0, mean, log_variance))
    true_mean, true_variance = posterior(x, x0, now, to)
    kl = gaussian_kl(true_mean, like(x, true_variance).log(), mean, log_variance)  # infinite where ``to`` is clean
    if not isinstance(to.sigma, Tensor):
        return _bits(kl)
    return _bits(torch.where(to.sigma == 0, -reconstruction(x0, mean, log_variance), kl))


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    grid: Grid,
    noise: Noise,
    *,
    variance: Variance = "posterior",
    reconstruction: Reconstruction = gaussian,
) -> Bound:
    """The bound for DDPM's sampler on ``grid``, on -log p of ``x0`` (B, C, H, W) (arXiv:2006.11239, eq. 5).

    Unbiased: each of the T steps is evaluated once, with a fresh draw of ``noise``. Give ``discretised`` for 8-bit
    pixels, and the bound is on a code length; with ``gaussian`` it is on a density. Sampling starts from
    N(0, alpha_T^2 + sigma_T^2), which is N(0, 1) where the variance is preserved.
    """
    terms, errors = [], []
    for now, to in pairwise(grid):
        x = noised(x0, noise(), now)
        said = denoise(x, now)
        terms.append(vlb_term(said, x0, x, now, to, variance=variance, reconstruction=reconstruction))
        errors.append(_mse(said.x0, x0))
    steps = torch.stack(terms, dim=1)  # (B, T)
    return Bound(_prior(x0, grid[0]), steps[:, :-1], steps[:, -1], torch.stack(errors, dim=1))


@torch.no_grad()
def continuous_bound(
    denoise: Denoise,
    x0: Tensor,
    grid: Grid,
    noise: Noise,
    generator: torch.Generator,
    *,
    evaluations: int = 100,
    variance: Variance = "beta",
    reconstruction: Reconstruction = gaussian,
) -> Bound:
    """The bound for infinitely many steps between the levels of ``grid`` (VDM, Kingma et al. 2021, arXiv:2107.00630).

    Half the integral of the noise's squared error over log snr, from the first level to the last noisy one. As the
    schedule in between does not matter (Sec. 5.1), log snr itself is drawn, evenly spread, at ``evaluations`` places K
    that all samples share; ``steps`` is (B, K), noisiest first. For ``prior`` and ``reconstruction`` (whose
    variance is ``variance``) see ``variational_bound``.

    Raises:
        ValueError: there is no evaluation, or no signal at the last noisy level, so that nothing lies in between.
    """
    if evaluations < 1:
        raise ValueError(f"evaluations {evaluations} is not at least 1; try evaluations=100")
    if grid[-2].nsr >= BLANK:
        raise ValueError(
            f"the last noisy level of the grid is at t = {grid[-2].t:g}, where no signal is left; "
            "give a grid whose last step begins with some"
        )
    low, high = log(grid[-2].nsr), log(min(grid[0].nsr, BLANK))
    terms, errors = [], []
    for place in sorted(evenly_spread(evaluations, generator).tolist(), reverse=True):
        now = grid.at(exp(low + place * (high - low)))
        errors.append(_mse(denoise(noised(x0, noise(), now), now).x0, x0))
        terms.append((high - low) / evaluations * errors[-1] / (now.nsr**2 * log(2)))  # log snr = -2 log nsr
    now, to = grid[-2:]
    x = noised(x0, noise(), now)
    said = denoise(x, now)
    last = vlb_term(said, x0, x, now, to, variance=variance, reconstruction=reconstruction)
    errors.append(_mse(said.x0, x0))
    return Bound(_prior(x0, grid[0]), torch.stack(terms, dim=1), last, torch.stack(errors, dim=1))


def _prior(x0: Tensor, start: Level) -> Tensor:
    """KL(q(x_T | x0) || N(0, alpha_T^2 + sigma_T^2)) (B,), in bits per dimension."""
    log_variances = (2 * like(x0, part).log() for part in (start.sigma, start.norm))
    return _bits(gaussian_kl(start.alpha * x0, next(log_variances), torch.zeros_like(x0), next(log_variances)))


def _bits(nats: Tensor) -> Tensor:
    """(B, C, H, W) nats of each element -> (B,) bits per dimension."""
    return nats.flatten(1).mean(dim=1) / log(2)


def _mse(said: Tensor, x0: Tensor) -> Tensor:
    return (said - x0).square().flatten(1).mean(dim=1)  # (B,)
