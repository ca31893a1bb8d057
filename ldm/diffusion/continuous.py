"""Noise schedules in closed form: alpha and sigma as functions of t in [0, 1]. What is written here once serves all.

Legend: B batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import asinh, inf, isnan, log, sqrt

import numpy as np
import torch
from torch import Tensor

from ldm.types import Level, Scalar, Schedule


class Curve(ABC):
    """A schedule by its curves alpha(t) and sigma(t), each written once, for floats and for tensors."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at float64 times ``t`` in [0, 1]: two float64 tensors of t's shape."""

    @abstractmethod
    def inverse(self, nsr: float) -> float:
        """The time at which sigma / alpha is ``nsr``, a positive number; any outside [0, 1] if there is none."""

    def level(self, t: Scalar) -> Level:
        """The level at ``t``: floats for a float, float32 tensors (B, 1, 1, 1) for times (B,), computed in float64."""
        if isinstance(t, Tensor):
            alpha, sigma = (part.float().view(-1, 1, 1, 1) for part in self.coefficients(t.double()))
            return Level(t.view(-1, 1, 1, 1), alpha, sigma)
        alpha, sigma = self.coefficients(torch.tensor(t, dtype=torch.float64))
        return Level(t, alpha.item(), sigma.item())

    def t_at(self, nsr: float) -> float:
        """The time with sigma / alpha = ``nsr``; 0 or 1 for any that is cleaner or noisier than all of the schedule."""
        assert not isnan(nsr), "no time has a nsr that is no number"
        if nsr <= 0:
            return 0.0
        return min(max(self.inverse(nsr), 0.0), 1.0) if nsr < inf else 1.0


class ClosedForm(Curve):
    """A configuration that is its own schedule, for a closed form is nothing but its parameters."""

    def build(self) -> Schedule:
        return self


def preserved(log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a variance-preserving process, alpha^2 + sigma^2 = 1, from log alpha^2."""
    return (0.5 * log_alpha_bar).exp(), (-log_alpha_bar.expm1()).sqrt()


def preserved_log(nsr: float) -> float:
    """log alpha^2 of a variance-preserving process where sigma / alpha is ``nsr``: -log(1 + nsr^2)."""
    return -float(np.logaddexp(0.0, 2 * log(nsr)))


def check_shift(shift: float) -> None:
    """A ValueError for a factor of sigma / alpha that no schedule takes."""
    if not 0.01 <= shift <= 100:
        raise ValueError(f"shift {shift} is not a number from 0.01 to 100; try shift=1")


def _check_rising(names: tuple[str, str], low: float, high: float, usual: str) -> None:
    if not 0 < low < high < inf:
        raise ValueError(f"{names[0]} {low} and {names[1]} {high} do not rise from above 0; try {usual}")


@dataclass
class VPConfig(ClosedForm):
    """Variance preserved, beta(t) rising linearly (Song et al. 2021, arXiv:2011.13456, eq. 11 and 32).

    The limit of DDPM's linear table for ever more steps: a thousand betas from 1e-4 to 0.02 are these over 1,000.
    """

    beta_min: float = 0.1  # beta(0)
    beta_max: float = 20.0  # beta(1)

    def __post_init__(self) -> None:
        _check_rising(("beta_min", "beta_max"), self.beta_min, self.beta_max, "beta_min=0.1 beta_max=20")

    def integral(self, t: Tensor) -> Tensor:
        """The integral of beta from 0 to ``t``."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def where(self, integral: float) -> float:
        """The time at which the integral of beta is ``integral``."""
        root = sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)  # the root of the quadratic that does not cancel

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserved(-self.integral(t))

    def inverse(self, nsr: float) -> float:
        return self.where(-preserved_log(nsr))


@dataclass
class SubVPConfig(VPConfig):
    """alpha as in ``vp`` and sigma = 1 - alpha^2, which is less (Song et al. 2021, arXiv:2011.13456, App. C)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self.integral(t)
        return (-0.5 * integral).exp(), -(-integral).expm1()

    def inverse(self, nsr: float) -> float:
        return self.where(2 * asinh(nsr / 2))  # nsr = 1 / alpha - alpha = 2 sinh(-log alpha)


@dataclass
class VEConfig(ClosedForm):
    """Variance exploding: alpha = 1, sigma geometric (Song et al. 2021, arXiv:2011.13456, App. C).

    x at t = 0 keeps noise of ``sigma_min``.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0  # about the largest distance between two data points (arXiv:2006.09011, technique 1)

    def __post_init__(self) -> None:
        _check_rising(("sigma_min", "sigma_max"), self.sigma_min, self.sigma_max, "sigma_min=0.01 sigma_max=50")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def inverse(self, nsr: float) -> float:
        return log(nsr / self.sigma_min) / log(self.sigma_max / self.sigma_min)


@dataclass
class EDMConfig(ClosedForm):
    """Variance exploding, sigma spaced evenly in its ``rho``-th root (Karras et al. 2022, arXiv:2206.00364, eq. 5).

    x at t = 0 keeps noise of ``sigma_min``. Evenly spaced times are so the paper's levels. Its 0.002 and 80 are for
    data of standard deviation 0.5, and these for the same of 1.
    """

    sigma_min: float = 0.004
    sigma_max: float = 160.0
    rho: float = 7.0  # the larger, the more of the time is spent at little noise

    def __post_init__(self) -> None:
        _check_rising(("sigma_min", "sigma_max"), self.sigma_min, self.sigma_max, "sigma_min=0.004 sigma_max=160")
        if not 1 <= self.rho <= 100:
            raise ValueError(f"rho {self.rho} is not a number from 1 to 100; try rho=7")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._roots()
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def inverse(self, nsr: float) -> float:
        low, high = self._roots()
        return (nsr ** (1 / self.rho) - low) / (high - low)

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


@dataclass
class FlowConfig(ClosedForm):
    """The straight line: alpha = 1 - t, sigma = t (rectified flow, Liu et al. 2022, arXiv:2209.03003).

    ``shift`` s bends the time to s t / (1 + (s - 1) t) (SD3, Esser et al. 2024, arXiv:2403.03206, eq. 23).
    """

    shift: float = 1.0  # factor of sigma / alpha; SD3 takes 3 for 1024 px

    def __post_init__(self) -> None:
        check_shift(self.shift)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        norm = 1 + (self.shift - 1) * t
        return (1 - t) / norm, self.shift * t / norm

    def inverse(self, nsr: float) -> float:
        return nsr / (self.shift + nsr)
