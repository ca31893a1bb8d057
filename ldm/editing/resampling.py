"""Going back and forth in time, so that a part that was forced on x0 and the rest come to agree."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ldm.samplers.ddim import ddim
from ldm.samplers.step import check_eta, renoised
from ldm.types import Denoise, Grid, Noise


@dataclass
class ResamplingConfig:
    """Jumps of RePaint (Lugmayr et al. 2022, arXiv:2201.09865): ``times`` as many evaluations as without."""

    jump: int = 10  # steps of the grid that are done again
    times: int = 10  # how often each is done
    eta: float = 1.0  # 1 is DDPM, the paper's sampler

    def __post_init__(self) -> None:
        if self.jump < 1 or self.times < 1:
            raise ValueError(f"jump {self.jump} and times {self.times} must be at least 1; try jump=10, times=10")
        check_eta(self.eta)

    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        return resampled(denoise, x, grid, noise, jump=self.jump, times=self.times, eta=self.eta)


def resampled(
    denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, *, jump: int = 10, times: int = 10, eta: float = 1.0
) -> Tensor:
    """Clean x from ``x`` at ``grid[0]``, each ``jump`` steps done ``times`` times (arXiv:2201.09865, Sec. 4.2).

    Between two passes x is noised back to where they begin. Jumps are counted from the clean end: the first may be
    shorter. The same serves ``ddnm``, whose paper calls it time travel (arXiv:2212.00490).
    """
    steps = len(grid) - 1
    ends = [*range(steps, 0, -jump), 0][::-1]
    for first, last in pairwise(ends):
        stretch = Grid(grid[first : last + 1], grid.schedule)
        for again in range(times):
            if again:
                x = renoised(x, stretch[-1], stretch[0], noise())
            x = ddim(denoise, x, stretch, noise, eta=eta)
    return x
