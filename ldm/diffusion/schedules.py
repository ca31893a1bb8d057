"""Noise schedules: t in [0, 1] -> alpha, sigma. Integer steps and betas exist only inside the tables.

A table of N betas is the VP process whose beta is constant between the times n / N (Song et al. 2021,
arXiv:2011.13456, eq. 11): log alpha_bar is linear there, and at t = n / N equals DDPM's product of 1 - beta.
The schedules in closed form are in ``ldm.diffusion.continuous``; ``SCHEDULES`` holds both kinds.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import expm1, inf
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.diffusion.continuous import (
    Curve,
    EDMConfig,
    FlowConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    check_shift,
    preserved,
    preserved_log,
)
from ldm.diffusion.learned import ListedConfig
from ldm.types import Schedule

Row = NDArray[np.float64]


class VPTable(Curve):
    """alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), from a table of betas (N,).

    The last beta may be 1: then alpha(1) = 0, to which alpha falls linearly in the last step, for its logarithm cannot.
    """

    def __init__(self, betas: Row) -> None:
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
            raise ValueError(
                "a table of betas must be one row of numbers between 0 and 1, of which the last may be 1; "
                "try 1,000 from 1e-4 to 0.02"
            )
        self.steps = len(betas)
        self.log_alpha_bar = log_alpha_bar(betas)  # (N + 1,), at t = n / N
        self._falls = np.diff(self.log_alpha_bar)  # (N,)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start, fall = (torch.from_numpy(row).to(t.device) for row in (self.log_alpha_bar[:-1], self._falls))
        place = t * self.steps
        below = place.floor().clamp(0, self.steps - 1).long()
        part = place - below
        return preserved(start[below] + torch.where(fall[below] > -inf, part * fall[below], 2 * (-part).log1p()))

    def inverse(self, nsr: float) -> float:
        log = preserved_log(nsr)
        below = min(int(np.searchsorted(-self.log_alpha_bar, -log, side="right")), self.steps) - 1
        past, fall = log - self.log_alpha_bar[below], self._falls[below]
        return float(below + (past / fall if fall > -inf else -expm1(past / 2))) / self.steps


def log_alpha_bar(betas: Row) -> Row:
    """log of DDPM's alpha_bar (N + 1,) at the times n / N, from ``betas`` (N,); -inf after a beta of 1."""
    with np.errstate(divide="ignore"):
        return np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])


def shifted(betas: Row, shift: float) -> Row:
    """The betas (N,) of the table that has ``shift`` times the sigma / alpha of the table of ``betas``."""
    bar = log_alpha_bar(betas)
    bar = bar - np.log1p((shift**2 - 1) * -np.expm1(bar))  # alpha_bar / (alpha_bar + shift^2 (1 - alpha_bar))
    return -np.expm1(np.diff(bar))


def zero_terminal(betas: Row) -> Row:
    """The betas (N,) of the table rescaled to alpha(1) = 0; the last is 1 (Lin et al. 2023, arXiv:2305.08891, alg. 1).

    alpha is moved and stretched so that at 1 / N it stays what ``betas`` make it.
    """
    alpha = np.exp(0.5 * log_alpha_bar(betas)[1:])
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = np.concatenate([[1.0], alpha**2])
    return 1 - bar[1:] / bar[:-1]


@dataclass
class TableConfig(ABC):
    """What every table may be asked, whatever its betas are.

    ``shift`` multiplies sigma / alpha at every time but those where ``max_beta`` rules (simple diffusion, Hoogeboom et
    al. 2023, arXiv:2301.11093, whose d / 64 it is): the more positions say the same, the more noise it takes to hide
    what they say.
    """

    steps: int = 1_000  # N
    shift: float = field(default=1.0, kw_only=True)  # factor of sigma / alpha
    max_beta: float = field(default=0.999, kw_only=True)  # every beta is at most this
    zero_snr: bool = field(default=False, kw_only=True)  # rescale to alpha(1) = 0, so that sampling starts from noise

    def __post_init__(self) -> None:
        least = 2 if self.zero_snr else 1
        if self.steps < least:
            raise ValueError(f"steps {self.steps} of the table is not at least {least}; try steps=1000")
        check_shift(self.shift)
        if not 0 < self.max_beta < 1:
            raise ValueError(f"max_beta {self.max_beta} is not between 0 and 1; try max_beta=0.999")

    @abstractmethod
    def betas(self) -> Row:
        """The table (N,) before the options."""

    def build(self) -> Schedule:
        betas = np.minimum(shifted(self.betas(), self.shift), self.max_beta)
        return VPTable(zero_terminal(betas) if self.zero_snr else betas)


@dataclass
class BetaRange(TableConfig):
    """Betas from a first to a last one; how they get there is a subclass's ``rise``.

    With ``scaled`` they are those of a table of a thousand, multiplied by 1000 / steps, so that one of any length ends
    with about as much noise (iDDPM, Nichol & Dhariwal 2021, arXiv:2102.09672, in its code).
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    scaled: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for beta in (self.beta_start, self.beta_end):
            if not 0 < beta < 1:
                raise ValueError(f"beta {beta} is not between 0 and 1; try beta_start=1e-4 beta_end=0.02")
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}; try to exchange the two")

    def betas(self) -> Row:
        betas = self.rise(np.linspace(0, 1, self.steps))
        return np.minimum(betas * 1_000 / self.steps, self.max_beta) if self.scaled else betas

    @abstractmethod
    def rise(self, s: Row) -> Row:
        """The betas (N,) at the shares ``s`` (N,) of the table, from 0 for the first step to 1 for the last."""

    def between(self, s: Row) -> Row:
        """The straight line from beta_start at 0 to beta_end at 1."""
        return self.beta_start + (self.beta_end - self.beta_start) * s


@dataclass
class LinearConfig(BetaRange):
    """Betas rising linearly (DDPM, Ho et al. 2020, arXiv:2006.11239, Sec. 4)."""

    def rise(self, s: Row) -> Row:
        return self.between(s)


@dataclass
class ScaledLinearConfig(BetaRange):
    """Square roots of the betas rising linearly, as LDM and Stable Diffusion were trained (arXiv:2112.10752)."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def rise(self, s: Row) -> Row:
        return ((1 - s) * self.beta_start**0.5 + s * self.beta_end**0.5) ** 2


@dataclass
class QuadraticConfig(BetaRange):
    """Betas rising with the square of the step: less noise early."""

    def rise(self, s: Row) -> Row:
        return self.between(s**2)


@dataclass
class LogarithmicConfig(BetaRange):
    """Logarithms of the betas rising linearly: beta_start^(1 - s) beta_end^s at the share s of the table.

    Of all tables it adds the least noise early, for data rich in detail, and needs the most steps to hide it all: with
    1,000 from 1e-4 to 0.02, alpha(1) is still 0.15. Betas that are a logarithm of the step would do the opposite.
    """

    def rise(self, s: Row) -> Row:
        return self.beta_start ** (1 - s) * self.beta_end**s


@dataclass
class SigmoidConfig(BetaRange):
    """Betas rising along an S, the sigmoid from -6 to 6 (GeoDiff, Xu et al. 2022, arXiv:2203.02923)."""

    def rise(self, s: Row) -> Row:
        return self.between(1 / (1 + np.exp(6 - 12 * s)))


@dataclass
class CosineConfig(TableConfig):
    """alpha_bar as a squared cosine (iDDPM, Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""

    offset: float = 0.008  # s of eq. 17

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.offset > 0:
            raise ValueError(f"offset {self.offset} is not positive; try offset=0.008")

    def betas(self) -> Row:
        t = np.arange(self.steps + 1) / self.steps
        bar = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        return 1 - bar[1:] / bar[:-1]


class ScheduleConfig(Protocol):
    def build(self) -> Schedule: ...


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "linear": LinearConfig,
    "scaled_linear": ScaledLinearConfig,
    "cosine": CosineConfig,
    "quadratic": QuadraticConfig,
    "logarithmic": LogarithmicConfig,
    "sigmoid": SigmoidConfig,
    "vp": VPConfig,
    "subvp": SubVPConfig,
    "ve": VEConfig,
    "edm": EDMConfig,
    "flow": FlowConfig,
    "listed": ListedConfig,
}
