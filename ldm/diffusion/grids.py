"""The noise levels that a sampler visits: from the noisiest to exactly (t, alpha, sigma) = (0, 1, 0). Plain floats.

``GRIDS`` maps a configuration's name to the dataclass that is called for ``steps`` + 1 levels of a schedule.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log

import numpy as np

from ldm.diffusion.schedules import VPTable
from ldm.types import Grid, Level, Schedule

CLEAN = Level(0.0, 1.0, 0.0)
SEEN = 160.0  # largest nsr by which levels are spaced: that of DDPM's linear table; more is next to noise alone
TABLE = 1_000  # steps of the table that a schedule without one is taken for where a grid counts in them


def uniform(schedule: Schedule, steps: int) -> Grid:
    """``steps`` + 1 levels evenly spaced in t: "trailing" steps (Lin et al. 2023, arXiv:2305.08891)."""
    return at_times(schedule, (_counted(steps) - np.arange(steps)) / steps)


def at_times(schedule: Schedule, times: Iterable[float]) -> Grid:
    """The levels at falling ``times`` in (0, 1], and the clean one."""
    return Grid([*(schedule.level(float(t)) for t in times), CLEAN], schedule)


def evenly_in(
    scale: Callable[[float], float],
    inverse: Callable[[float], float],
    schedule: Schedule,
    steps: int,
    t_min: float,
) -> Grid:
    """``steps`` levels from t = 1 to ``t_min`` whose scale(nsr) is evenly spaced, and the clean one.

    The first level is t = 1 itself. Where next to no signal is left there, the others are spaced as if its nsr were
    ``SEEN``, that most of them are where something is seen.
    """
    noisiest, cleanest = min(float(schedule.level(1.0).nsr), SEEN), float(schedule.level(t_min).nsr)
    if cleanest == 0:
        raise ValueError(f"t_min {t_min} of this schedule has no noise; try t_min=0.001")
    places = np.linspace(scale(noisiest), scale(cleanest), _counted(steps))[1:]
    return at_times(schedule, [1.0, *(schedule.t_at(inverse(float(place))) for place in places)])


@dataclass
class UniformConfig:
    """Evenly spaced in t, from 1 ("trailing"; Lin et al. 2023, arXiv:2305.08891, Table 2)."""

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        return uniform(schedule, steps)


@dataclass
class LeadingConfig:
    """Every (N // steps)-th step of a table of N, from its first ("leading"; arXiv:2305.08891, Table 2).

    As DDIM and most older programs do: the times i (N // steps) / N + 1 / N. The grid starts below t = 1, where an
    image is not all noise; it is here to draw as they do. N is the schedule's own, or 1,000. Stable Diffusion's
    settings in diffusers (steps_offset=1) take each time 1 / N later.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        table = _table_steps(schedule)
        if _counted(steps) > table:
            raise ValueError(f"steps {steps} are more than the {table} of the table; try steps={table}")
        return at_times(schedule, (np.arange(steps)[::-1] * (table // steps) + 1) / table)


@dataclass
class LinspaceConfig:
    """Evenly spaced in t from 1 to a table's first step, both included ("linspace"; arXiv:2305.08891, Table 2).

    The last noisy time is 1 / N, N being the schedule's own number of steps, or 1,000. One step alone is at t = 1.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        return at_times(schedule, np.linspace(1.0, 1 / _table_steps(schedule), _counted(steps)))


@dataclass
class QuadraticConfig:
    """The squares of evenly spaced numbers as times: more levels near the data (DDIM, arXiv:2010.02502, App. D.2)."""

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        return at_times(schedule, ((_counted(steps) - np.arange(steps)) / steps) ** 2)


@dataclass
class KarrasConfig:
    """Evenly spaced in the ``rho``-th root of sigma / alpha (EDM, Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    rho: float = 7.0  # the larger, the more levels near the data
    t_min: float = 1e-3  # the last noisy level's time; 0 is possible where the schedule has noise there

    def __post_init__(self) -> None:
        if not 1 <= self.rho <= 100:
            raise ValueError(f"rho {self.rho} is not a number from 1 to 100; try rho=7")
        _check_t_min(self.t_min)

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        rho = self.rho
        return evenly_in(lambda nsr: nsr ** (1 / rho), lambda root: root**rho, schedule, steps, self.t_min)


@dataclass
class LogSNRConfig:
    """Evenly spaced in log SNR (DPM-Solver, Lu et al. 2022, arXiv:2206.00927)."""

    t_min: float = 1e-3  # the last noisy level's time; 0 is possible where the schedule has noise there

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        return evenly_in(log, exp, schedule, steps, self.t_min)


@dataclass
class ListedConfig:
    """The ``times`` that are listed, such as a search found for a model; between them for another number of steps.

    They are those of Stable Diffusion 1.5, steps of its table over 1,000, if none are given (Align Your Steps, Sabour
    et al. 2024, arXiv:2404.14507).
    """

    times: list[float] = field(
        default_factory=lambda: [1.0, 0.851, 0.737, 0.646, 0.546, 0.456, 0.344, 0.234, 0.125, 0.025]
    )  # falling, in (0, 1]

    def __post_init__(self) -> None:
        if not self.times or not all(1 >= now > to > 0 for now, to in pairwise([*self.times, 1e-12])):
            raise ValueError(f"times {self.times} do not fall within 1 and 0; write e.g. times=[1.0, 0.5, 0.2]")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        places = np.linspace(0, len(self.times) - 1, _counted(steps))
        return at_times(schedule, np.interp(places, np.arange(len(self.times)), self.times))


GRIDS = {
    "uniform": UniformConfig,
    "leading": LeadingConfig,
    "linspace": LinspaceConfig,
    "quadratic": QuadraticConfig,
    "karras": KarrasConfig,
    "log_snr": LogSNRConfig,
    "listed": ListedConfig,
}


def _counted(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps {steps} is not at least 1; try steps=50")
    return steps


def _table_steps(schedule: Schedule) -> int:
    return schedule.steps if isinstance(schedule, VPTable) else TABLE


def _check_t_min(t_min: float) -> None:
    if not 0 <= t_min < 0.5:
        raise ValueError(f"t_min {t_min} is not in [0, 0.5); try t_min=0.001")
