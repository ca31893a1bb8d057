"""UniPC: DPM-Solver++ as a predictor, and a corrector that uses the next step's prediction twice.

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import expm1

from torch import Tensor

from ldm.samplers.dpm_solver import check_order
from ldm.samplers.interpolation import Known, mean_prediction, place
from ldm.samplers.step import move
from ldm.types import Denoise, Grid, Level, Noise

VARIANTS = ("bh1", "bh2")


@dataclass
class UniPCConfig:
    """Zhao et al. 2023, arXiv:2302.04867, of x0."""

    order: int = 2  # of the predictor; the corrector's is one more
    variant: str = "bh2"  # B(h) = h (bh1) or exp(h) - 1 (bh2)
    lower_order_final: bool = True  # order no higher than the steps that are left

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.variant not in VARIANTS:
            raise ValueError(f"variant '{self.variant}' is not one of {', '.join(VARIANTS)}")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return unipc(denoise, x, grid, order=self.order, variant=self.variant, lower_order_final=self.lower_order_final)


def unipc(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    *,
    order: int = 2,
    variant: str = "bh2",
    lower_order_final: bool = True,
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]`` (Zhao et al. 2023, arXiv:2302.04867, alg. 1 and 2).

    A step is predicted from the last ``order`` values of x0, then made again with the value at its end as one more:
    that value also begins the next step, so that there is one call a step.
    """
    known: list[Known] = []
    x0 = denoise(x, grid[0]).x0
    for i, (now, to) in enumerate(pairwise(grid)):
        if now.blank or to.sigma == 0:  # too long or infinitely long in log(alpha / sigma): nothing to predict from
            x = move(x, x0, now, to)
            x0 = denoise(x, to).x0 if to.sigma > 0 else x0
            continue
        known = [(place(now), x0), *known][:order]
        usable = known[: len(grid) - 1 - i] if lower_order_final else known
        ahead = solve(x, usable, now, to, variant)
        x0 = denoise(ahead, to).x0
        x = solve(x, [*usable, (place(to), x0)], now, to, variant)
    return x


def solve(x: Tensor, known: list[Known], now: Level, to: Level, variant: str) -> Tensor:
    """``x`` at ``to`` by the polynomial through the ``known`` x0.

    The paper sets the one coefficient of two values to 1/2 (UniP-2, UniC-1): only there does B(h) make a difference.
    """
    h = place(to) - place(now)
    middle = 0.5 if variant == "bh2" else 0.5 * h / -expm1(-h)
    return move(x, mean_prediction(known, place(to), h, middle), now, to)
