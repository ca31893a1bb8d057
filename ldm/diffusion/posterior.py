"""One step back, from a level ``now`` to a cleaner level ``to``: its distribution given x0, and a model's own.

DDPM's formulas in terms of alpha and sigma, so that any two levels of any schedule can be one step.

Legend: B batch, C channels, H W height and width; beta is the variance of the step forward from ``to`` to ``now``.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ldm.types import Level, Prediction, Scalar, Schedule

Variance = Literal["posterior", "beta", "learned"]  # which variance a model's step back has

FLOOR = 0.01  # share of beta that counts as the posterior's variance in the step to clean data, where that is 0


def posterior(x: Tensor, x0: Tensor, now: Level, to: Level) -> tuple[Tensor, Scalar]:
    """Mean (B, C, H, W) and variance of q(x at ``to`` | ``x`` at ``now``, ``x0``) (DDPM, arXiv:2006.11239, eq. 6, 7).

    The variance is a float for levels of floats, (B, 1, 1, 1) for tensors, and 0 where ``to`` is clean. It is what
    DDIM draws anew with eta 1 (arXiv:2010.02502, eq. 16); the mean is where it moves to with that left out.
    """
    ratio = to.nsr / now.nsr  # in [0, 1)
    mean = to.alpha * x0 + (to.sigma * ratio / now.sigma) * (x - now.alpha * x0)
    return mean, to.sigma**2 * (1 - ratio**2)


def beta(now: Level, to: Level) -> Scalar:
    """The variance of the step forward, q(x at ``now`` | x at ``to``) (DDPM, arXiv:2006.11239, eq. 2)."""
    return now.sigma**2 * (1 - (to.nsr / now.nsr) ** 2)


def step_back(schedule: Schedule, t: Tensor, steps: int) -> Level:
    """The levels (B, 1, 1, 1) one of ``steps`` even steps before times ``t`` (B,); exactly clean for the last step.

    Less than a tenth of a step is none of its own: to such a level nearly all of the noise would go at once, which is
    a step that no table has.
    """
    before = t - 1 / steps
    clean = before < 0.1 / steps
    level = schedule.level(torch.where(clean, 0.0, before))
    clean = clean.view(-1, 1, 1, 1)
    return Level(level.t, torch.where(clean, 1.0, level.alpha), torch.where(clean, 0.0, level.sigma))


def interpolated_log_variance(v: Tensor, now: Level, to: Level) -> Tensor:
    """v log beta + (1 - v) log of the posterior's variance, like ``v`` (iDDPM, arXiv:2102.09672, eq. 15).

    ``v`` (B, C, H, W) is 1 for beta and 0 for the posterior's variance, and may be anything. In the step to clean data
    that is 0, whose log is no number, and counts as FLOOR times beta.
    """
    return like(v, beta(now, to)).log() + (1 - v) * _log_share(v, now, to, FLOOR)


def reverse_step(said: Prediction, x: Tensor, now: Level, to: Level, variance: Variance) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and log-variance of the model's p(x at ``to`` | ``x`` at ``now``), from what it ``said``.

    The mean is the posterior's at the predicted x0. ``variance`` is the posterior's or beta's, DDPM's two choices
    (arXiv:2006.11239, Sec. 3.2), or the learned one. The posterior's is 0 in the step to clean data: beta then. Where
    the variance explodes beta is too large in the noisy steps; elsewhere its bound is the closer one.
    A learned ``said.variance`` goes from -1 for the posterior's to 1 for beta.
    """
    mean, _ = posterior(x, said.x0, now, to)
    if variance == "learned":
        if said.variance is None:
            raise ValueError("variance 'learned' is not one that this denoiser predicts; try variance=posterior")
        return mean, interpolated_log_variance((said.variance + 1) / 2, now, to)
    if variance not in get_args(Variance):
        raise ValueError(f"variance '{variance}' is not one of {', '.join(get_args(Variance))}")
    log_beta = like(x, beta(now, to)).log()
    return mean, log_beta if variance == "beta" else log_beta + _log_share(x, now, to, 1.0)


def _log_share(x: Tensor, now: Level, to: Level, at_last: float) -> Tensor:
    """The log of the posterior's variance over beta, like ``x``; of ``at_last`` in the step to clean data."""
    share = like(x, (to.sigma / now.sigma) ** 2)
    return torch.where(share > 0, share, at_last).log()


def like(x: Tensor, value: Scalar) -> Tensor:
    """``value`` as a tensor, of ``x``'s dtype and device if it is a float."""
    return value if isinstance(value, Tensor) else x.new_full((), value)
