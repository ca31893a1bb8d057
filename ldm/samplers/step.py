"""The one step that every sampler is made of."""

from torch import Tensor

from ldm.types import Level


def move(x: Tensor, x0: Tensor, now: Level, to: Level) -> Tensor:
    """``x`` at level ``now`` taken to level ``to`` along the noise that ``x0`` implies.

    to.alpha x0 + to.sigma noise with noise = (x - now.alpha x0) / now.sigma: DDIM with eta 0, and Euler's step of the
    probability-flow ODE in the variables of Karras et al. 2022 (arXiv:2206.00364).
    """
    return to.alpha * x0 + (to.sigma / now.sigma) * (x - now.alpha * x0)
