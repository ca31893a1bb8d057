"""The log-likelihood by the probability-flow ODE.

In y = x / alpha and log nsr the ODE of every schedule is the same, dy = (y - x0(y)) d log nsr, and the levels between
which it runs are all that is left of the schedule. A density of y is its own: the Jacobians of x = alpha y at both
ends are in that x0 is y where there is no noise, and in that noise of variance sigma^2 is nsr^2 in y.

Legend: B batch, C channels, H W height and width, D = C H W, K probes.
"""

from math import exp, log, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from ldm.gradients import differentiable
from ldm.types import BLANK, Denoise, Level, Schedule


class LogLikelihood(NamedTuple):
    """Log-densities of a batch, and what they cost."""

    nats: Tensor  # (B,) log p(x0), float64
    bits_per_dim: Tensor  # (B,) -log2 p(x0) / D: of a density, so that it may be negative
    evaluations: int  # of ``denoise``


def rademacher(x0: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` probes of random signs (K, B, C, H, W): the least noisy for a trace (Hutchinson 1990)."""
    signs = torch.randint(2, (_at_least_one(count), *x0.shape), generator=generator) * 2 - 1
    return signs.to(x0) / sqrt(count)


def normal(x0: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` probes of normal numbers (K, B, C, H, W) (FFJORD, Grathwohl et al. 2019, arXiv:1810.01367, Sec. 3.1).

    Their lengths vary too, which with J near the identity, at little noise, makes them far noisier than signs.
    """
    return torch.randn((_at_least_one(count), *x0.shape), generator=generator).to(x0) / sqrt(count)


def basis(x0: Tensor) -> Tensor:
    """A probe for every dimension (D, B, C, H, W): the exact trace, for small D."""
    size = x0[0].numel()
    return torch.eye(size).to(x0).view(size, 1, *x0.shape[1:]).expand(size, *x0.shape)


def log_likelihood(
    denoise: Denoise,
    x0: Tensor,
    schedule: Schedule,
    probes: Tensor,
    *,
    nsr_min: float = 1e-3,
    data_variance: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> LogLikelihood:
    """log p of ``x0`` (B, C, H, W) under the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, App. D.2).

    Eq. 39, where the trace of the Jacobian J is the sum of p J p over ``probes`` (K, B, C, H, W), the same for the
    whole way: ``rademacher`` or ``normal`` for Hutchinson's unbiased estimate (eq. 40), or ``basis`` for the exact
    trace. An evaluation takes K backward passes.

    The density is that of data with noise of ``nsr_min``, or of the schedule's least where that is more. At the
    schedule's end x is taken to be from where sampling starts, N(0, sigma^2 + ``data_variance`` alpha^2), which
    matters to schedules that end with some signal left. The mean of the data is taken to be 0 there.

    ``rtol`` and ``atol`` are those of the adaptive Runge-Kutta solver, which steps the whole batch alike: of y and,
    counting as much as all of it, of the density in nats per dimension. For 8-bit pixels scaled to [-1, 1] and
    dequantised, bits per dimension of a code are these + log2(127.5).
    """
    start, end = max(nsr_min, schedule.level(0.0).nsr), min(schedule.level(1.0).nsr, BLANK)
    if not 0 < start < end:
        raise ValueError(f"nsr_min {nsr_min} is not between 0 and {end:.4g}, the schedule's end; try nsr_min=1e-3")
    rows, size = len(x0), x0[0].numel()

    def slope(log_nsr: float, state: NDArray[np.float64]) -> Any:
        y = torch.from_numpy(state[:-rows]).to(x0).view_as(x0)
        drift, divergence = _flow(denoise, y, schedule.level(schedule.t_at(exp(log_nsr))), probes)
        rate = torch.cat([drift.double().flatten(), divergence.double() / size]).cpu().numpy()
        if not np.isfinite(rate).all():  # of which the solver would never come back
            raise ValueError(f"the denoiser says no finite x0 at nsr {exp(log_nsr):.4g}; try another nsr_min")
        return rate

    state = np.concatenate([x0.detach().double().cpu().numpy().ravel(), np.zeros(rows)])
    # the solver takes the root mean square of all errors, in which a row's one density would be lost among its D places
    share = np.concatenate([np.ones(x0.numel()), np.full(rows, (size + 1) ** -0.5)])
    span = log(start), log(end)
    solved = solve_ivp(slope, span, state, "RK45", span[1:], rtol=rtol * share, atol=atol * share)
    if not solved.success:
        raise ValueError(f"rtol {rtol} and atol {atol} are too fine for this denoiser: {solved.message}; try 1e-3")
    y, divergence = np.split(solved.y[:, -1], [-rows])
    variance = end**2 + data_variance
    squares = (y.reshape(rows, size) ** 2).sum(axis=1)
    nats = torch.from_numpy(divergence * size - 0.5 * (squares / variance + size * log(2 * pi * variance)))
    return LogLikelihood(nats, -nats / (size * log(2)), solved.nfev)


def _flow(denoise: Denoise, y: Tensor, level: Level, probes: Tensor) -> tuple[Tensor, Tensor]:
    """dy / d log nsr (B, C, H, W) at ``y``, and its divergence (B,)."""
    with differentiable():
        y = y.detach().requires_grad_()
        x0 = denoise(level.alpha * y, level).x0
        trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for probe in probes:
            (pulled,) = torch.autograd.grad(x0, y, probe.to(x0), retain_graph=True)
            trace = trace + (pulled * probe).flatten(1).sum(dim=1)
    return (y - x0).detach(), y[0].numel() - trace


def _at_least_one(count: int) -> int:
    if count < 1:
        raise ValueError(f"count {count} of the probes is not at least 1; try count=1")
    return count
