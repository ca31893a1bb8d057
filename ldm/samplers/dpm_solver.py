"""DPM-Solver and DPM-Solver++: exponential integrators over log(alpha / sigma).

Both expand a prediction along the step: DPM-Solver the noise, DPM-Solver++ the clean x0. Both come with one call of the
network a step, looking back (multistep), or with as many calls as their order, looking between (singlestep).

Legend: B batch, C channels, H W height and width of a latent.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ldm.samplers.interpolation import Known, mean_prediction, place
from ldm.samplers.step import along, check_eta, implied_noise, move, renewed
from ldm.types import Denoise, Grid, Level, Noise


@dataclass
class DPMSolverConfig:
    """Lu et al. 2022, arXiv:2206.00927: an expansion of the noise."""

    order: int = 2  # 1 is DDIM
    multistep: bool = False
    lower_order_final: bool = True  # multistep: order no higher than the steps that are left

    def __post_init__(self) -> None:
        check_order(self.order)
        check_lower_order_final(self.lower_order_final, self.multistep)

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        if not self.multistep:
            return singlestep(denoise, x, grid, order=self.order, of_noise=True)
        return multistep(
            denoise, x, grid, noise, order=self.order, of_noise=True, lower_order_final=self.lower_order_final
        )


@dataclass
class DPMSolverPPConfig:
    """DPM-Solver++, Lu et al. 2022, arXiv:2211.01095: an expansion of x0. 2M is alg. 2, 2S (singlestep) alg. 1."""

    order: int = 2  # 1 is DDIM
    multistep: bool = True
    eta: float = 0.0  # multistep: 0 is the ODE, 1 the SDE, more has more noise than that
    lower_order_final: bool = True  # multistep: order no higher than the steps that are left

    def __post_init__(self) -> None:
        check_order(self.order)
        check_eta(self.eta)
        check_lower_order_final(self.lower_order_final, self.multistep)
        if self.eta and not self.multistep:
            raise ValueError(f"eta {self.eta} is for multistep solvers only; try multistep=true")
        if self.eta > 1 and self.order == 3:
            raise ValueError(f"eta {self.eta} is more noise than order 3 can look past; try eta=1, or order=2")

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        if not self.multistep:
            return singlestep(denoise, x, grid, order=self.order)
        return multistep(
            denoise, x, grid, noise, order=self.order, eta=self.eta, lower_order_final=self.lower_order_final
        )


def check_order(order: int) -> None:
    """A ValueError for an order that there is no solver of."""
    if order not in (1, 2, 3):
        raise ValueError(f"order {order} is not 1, 2 or 3; try order=2")


def check_lower_order_final(lower: bool, multistep: bool) -> None:
    """A ValueError where it is asked of a singlestep solver, which has no steps that are left."""
    if not lower and not multistep:
        raise ValueError("lower_order_final=false is for multistep solvers only; try multistep=true, or leave it out")


def multistep(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    noise: Noise,
    *,
    order: int = 2,
    of_noise: bool = False,
    eta: float = 0.0,
    lower_order_final: bool = True,
) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]``: the polynomial through the last ``order`` predictions.

    DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, alg. 2) and its like of order 3, and with ``of_noise`` the same
    for the noise. With ``eta`` (of x0 only) a share of the noise is drawn anew (``renewed``); 1 is SDE-DPM-Solver++.
    """
    known: list[Known] = []
    for i, (now, to) in enumerate(pairwise(grid)):
        x0 = denoise(x, now).x0
        kept, fresh = renewed(now, to, eta)
        if now.blank:  # far off or infinitely far in log(alpha / sigma): of no use to later steps
            x = move(x, x0, now, kept)
        else:
            known = [made(x, x0, now, of_noise), *known][:order]
            usable = known[: len(grid) - 1 - i] if lower_order_final else known
            x = advance(x, usable, now, kept, to, of_noise, middle=0.5)
        if fresh > 0:
            x = x + fresh * noise()
    return x


def singlestep(denoise: Denoise, x: Tensor, grid: Grid, *, order: int = 2, of_noise: bool = False) -> Tensor:
    """Clean x (B, C, H, W) from ``x`` at ``grid[0]``, with ``order`` calls a step at levels even in log(alpha / sigma).

    DPM-Solver-2 and -3 (Lu et al. 2022, arXiv:2206.00927, alg. 1 and 2; r1 = 1/2, and r1 = 1/3 with r2 = 2/3), of x0
    DPM-Solver++ 2S (arXiv:2211.01095, alg. 1). The polynomial is the line through the first and the latest prediction.
    """
    middle = 0.5 if order == 2 else None
    for now, to in pairwise(grid):
        x0 = denoise(x, now).x0
        if now.blank or to.sigma == 0:  # too long or infinitely long in log(alpha / sigma): nothing lies halfway
            x = move(x, x0, now, to)
            continue
        known = [made(x, x0, now, of_noise)]
        for k in range(1, order):
            between = grid.at(float(now.nsr * (to.nsr / now.nsr) ** (k / order)))
            ahead = advance(x, known, now, between, between, of_noise, middle)
            known = [known[0], made(ahead, denoise(ahead, between).x0, between, of_noise)]
        x = advance(x, known, now, to, to, of_noise, middle)
    return x


def made(x: Tensor, x0: Tensor, level: Level, of_noise: bool) -> Known:
    """What is expanded, x0 or the noise that it implies, and where it was predicted."""
    return place(level), implied_noise(x, x0, level) if of_noise else x0


def advance(
    x: Tensor, known: list[Known], now: Level, kept: Level, to: Level, of_noise: bool, middle: float | None
) -> Tensor:
    """``x`` taken from ``now`` to ``kept`` with the mean of what is ``known`` over the step to ``to``.

    The two levels differ where noise is to be added: x is then moved further than the prediction changes.
    """
    length = place(kept) - place(now)
    mean = mean_prediction(known, place(to), -length if of_noise else length, middle)
    return along(x, mean, now, kept) if of_noise else move(x, mean, now, kept)
