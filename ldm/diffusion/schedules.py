"""Noise schedules: t in [0, 1] -> alpha, sigma. Integer steps and betas exist only inside the tables.

A table of N betas is the VP process whose beta is constant between the times n / N (Song et al. 2021,
arXiv:2011.13456, eq. 11): log alpha_bar is linear there, and at t = n / N equals DDPM's product of 1 - beta.
"""

from dataclasses import dataclass
from math import exp, expm1, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.types import Level, Scalar, Schedule


class VPTable:
    """alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), from a table of betas (N,)."""

    def __init__(self, betas: NDArray[np.float64]) -> None:
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("a table of betas must be one row of numbers between 0 and 1")
        self.steps = len(betas)
        self.log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])  # (N + 1,), at t = n / N
        self._table = torch.from_numpy(self.log_alpha_bar)

    def level(self, t: Scalar) -> Level:
        """The level at ``t``: floats for a float, (B, 1, 1, 1) float32 tensors for times (B,)."""
        if isinstance(t, Tensor):
            place = t.double() * self.steps
            below = place.floor().clamp(0, self.steps - 1).long()
            table = self._table.to(t.device)
            log = table[below] + (place - below) * (table[below + 1] - table[below])
            log = log.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
            return Level(t.view(-1, 1, 1, 1), (0.5 * log).exp().float(), (-log.expm1()).sqrt().float())
        one = float(np.interp(t * self.steps, np.arange(self.steps + 1), self.log_alpha_bar))
        return Level(t, exp(0.5 * one), sqrt(-expm1(one)))

    def t_at(self, nsr: float) -> float:
        """The time with sigma / alpha = ``nsr``; 1 for any that is noisier than the table's end."""
        log = -np.log1p(nsr**2)  # alpha_bar = 1 / (1 + nsr^2)
        return float(np.interp(-log, -self.log_alpha_bar, np.arange(self.steps + 1))) / self.steps


@dataclass
class LinearConfig:
    """Betas rising linearly (DDPM, Ho et al. 2020, arXiv:2006.11239, Sec. 4)."""

    steps: int = 1_000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _check_betas(self.steps, self.beta_start, self.beta_end)

    def build(self) -> Schedule:
        return VPTable(np.linspace(self.beta_start, self.beta_end, self.steps))


@dataclass
class ScaledLinearConfig:
    """Square roots of the betas rising linearly, as LDM and Stable Diffusion were trained (arXiv:2112.10752)."""

    steps: int = 1_000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        _check_betas(self.steps, self.beta_start, self.beta_end)

    def build(self) -> Schedule:
        return VPTable(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2)


@dataclass
class CosineConfig:
    """alpha_bar as a squared cosine (iDDPM, Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).

    ``shift`` multiplies sigma / alpha at every time but the last few, where ``max_beta`` rules (simple diffusion,
    Hoogeboom et al. 2023, arXiv:2301.11093, whose d / 64 it is): the more positions say the same, the more noise it
    takes to hide what they say.
    """

    steps: int = 1_000
    offset: float = 0.008  # s of eq. 17
    max_beta: float = 0.999  # every beta is at most this
    shift: float = 1.0  # factor of sigma / alpha

    def __post_init__(self) -> None:
        _check_betas(self.steps, 0.5, self.max_beta)
        if not 0.01 <= self.shift <= 100:
            raise ValueError(f"shift {self.shift} is not a number from 0.01 to 100; try shift=1")
        if not self.offset > 0:
            raise ValueError(f"offset {self.offset} is not positive; try offset=0.008")

    def build(self) -> Schedule:
        t = np.arange(self.steps + 1) / self.steps
        bar = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        bar = bar / bar[0]
        bar = bar / (bar + self.shift**2 * (1 - bar))
        return VPTable(np.minimum(1 - bar[1:] / bar[:-1], self.max_beta))


SCHEDULES = {"linear": LinearConfig, "scaled_linear": ScaledLinearConfig, "cosine": CosineConfig}


def _check_betas(steps: int, low: float, high: float) -> None:
    if steps < 1:
        raise ValueError(f"steps {steps} of the table is not at least 1; try steps=1000")
    for beta in (low, high):
        if not 0 < beta < 1:
            raise ValueError(f"beta {beta} is not between 0 and 1")
