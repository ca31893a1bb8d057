"""The steps that samplers are made of. All are straight lines in y = x / alpha over nsr = sigma / alpha.

In these variables the probability-flow ODE of every schedule is dy / d nsr = noise, where x0 = y - nsr noise.
"""

from math import inf, sqrt

from torch import Tensor

from ldm.types import Denoise, Level


def move(x: Tensor, x0: Tensor, now: Level, to: Level) -> Tensor:
    """``x`` at level ``now`` taken to level ``to`` along the noise that ``x0`` implies.

    to.alpha x0 + to.sigma noise with noise = (x - now.alpha x0) / now.sigma: DDIM with eta 0, and Euler's step of the
    probability-flow ODE in the variables of Karras et al. 2022 (arXiv:2206.00364).
    """
    return to.alpha * x0 + (to.sigma / now.sigma) * (x - now.alpha * x0)


def along(x: Tensor, noise: Tensor, now: Level, to: Level) -> Tensor:
    """``x`` at level ``now`` taken to level ``to`` along ``noise``, which ``x0`` need not imply; now.alpha is not 0."""
    return (to.alpha / now.alpha) * x + (to.sigma - to.alpha * now.sigma / now.alpha) * noise


def implied_noise(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise of ``x`` at ``level``, from its clean ``x0``; level.sigma is not 0."""
    return (x - level.alpha * x0) / level.sigma


def heun_step(denoise: Denoise, x: Tensor, x0: Tensor, now: Level, to: Level) -> Tensor:
    """``x`` taken to ``to`` along the mean of the noise at both ends (Karras et al. 2022, arXiv:2206.00364, alg. 1).

    One more call of ``denoise``, but for a step from noise alone or to no noise, where one end has no slope that
    counts: that is ``move``.
    """
    ahead = move(x, x0, now, to)
    if now.blank or to.sigma == 0:
        return ahead
    there = implied_noise(ahead, denoise(ahead, to).x0, to)
    return along(x, (implied_noise(x, x0, now) + there) / 2, now, to)


def renewed(now: Level, to: Level, eta: float) -> tuple[Level, float]:
    """(kept, fresh): where to ``move`` and how much new noise to add there, to arrive at ``to`` with its sigma.

    Up to eta 1 fresh^2 is eta^2 times the variance of DDPM's posterior (DDIM, Song et al. 2021, arXiv:2010.02502,
    eq. 16): in Karras' variables sigma_down and sigma_up of k-diffusion. From there on it is that of the SDE with eta
    times the noise of the reverse one (tau of SA-Solver, Xue et al. 2023, arXiv:2309.05019). At 1 both are the same,
    and kept.sigma^2 + fresh^2 = to.sigma^2.
    """
    square = eta * eta
    left = (to.nsr / now.nsr) ** (2 * max(1.0, square))  # up to eta 1 the share of ``now``'s variance that ``to`` has
    share = min(1.0, square)
    kept = to.sigma * sqrt(1 - share + share * left)  # not to.sigma^2 - fresh^2, which cancels
    return Level(to.t, to.alpha, kept), float(to.sigma) * sqrt(share * (1 - left))


def check_eta(eta: float) -> None:
    """A ValueError unless ``eta``, how much noise ``renewed`` draws, is a finite number of at least 0."""
    if not 0 <= eta < inf:
        raise ValueError(f"eta {eta} is not a finite number of at least 0; 0 is the ODE and 1 the SDE")


def renoised(x: Tensor, now: Level, to: Level, noise: Tensor) -> Tensor:
    """``x`` at level ``now`` taken by the forward process to the noisier level ``to`` with ``noise`` like x.

    In one jump what a walk over the betas between makes (DDPM, arXiv:2006.11239, eq. 2).
    """
    kept = to.alpha / now.alpha
    return kept * x + sqrt(max(0.0, to.sigma**2 - (kept * now.sigma) ** 2)) * noise
