"""How much an error counts at each noise level: the weights of the field, each as a factor of x0's squared error.

A network regresses some F, and the loss is a weighted mean of squared errors of F. Errors of F and of x0 are the same
but for a factor that the level settles (``ldm.diffusion.targets.gain``): so one formula for each weight serves every
target, and the target of the paper that it comes from has no part in it.

Legend: B batch; snr = (alpha / sigma)^2; rate = -d log(snr) / dt, how fast the schedule passes by.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm.diffusion.targets import gain
from ldm.types import Level, Schedule, Target

H = 1e-2  # half of the stretch of time over which the rate is measured, as a share of the way to the nearer end
LAST = 1 - 1e-3  # the rate's last time: where a schedule ends without signal, log(snr) falls without bound
LEAST = -1_400.0  # log(snr) of next to no signal, in place of that of none


def rate(schedule: Schedule, t: Tensor) -> Tensor:
    """-d log(snr) / dt at times ``t`` (B,) in (0, 1], or ``LAST`` if that is before: (B, 1, 1, 1), by differences."""
    slopes = [_slope(schedule, min(time, LAST)) for time in t.tolist()]  # of levels of floats, which are exact
    return t.new_tensor(slopes, dtype=torch.float32).view(-1, 1, 1, 1)


def _slope(schedule: Schedule, t: float) -> float:
    half = H * min(t, 1 - t)
    soon, late = (max(LEAST, float(schedule.level(t + step).log_snr)) for step in (-half, half))
    return (soon - late) / (2 * half)


class Weight(ABC):
    """A configuration that is its own weight."""

    by_rate: ClassVar[bool] = False  # whether it looks at the rate, which takes a while to find and else is NaN

    def on_f(self, target: Target, level: Level, rate: Tensor) -> Tensor | float:
        """The factor of F's squared error, (B, 1, 1, 1) for a level of such tensors."""
        snr = (torch.as_tensor(level.alpha) / level.sigma) ** 2
        return self.on_x0(snr, rate) / gain(target, level) ** 2

    @abstractmethod
    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        """The factor of x0's squared error, like ``snr``."""


@dataclass
class PlainConfig(Weight):
    """None: errors of F count alike, whatever F is."""

    def on_f(self, target: Target, level: Level, rate: Tensor) -> Tensor | float:
        return 1.0

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        raise TypeError("what plain weights make of errors of x0 depends on the target: ask on_f")


@dataclass
class SimpleConfig(Weight):
    """DDPM's simple loss whatever the target: errors of the noise count alike (arXiv:2006.11239, eq. 14)."""

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return snr


@dataclass
class MinSNRConfig(Weight):
    """min(snr, gamma) on x0: nearly clean images count no more than gamma (Hang et al. 2023, arXiv:2303.09556)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"gamma {self.gamma} is not a positive number; the usual gamma is 5")

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


@dataclass
class P2Config(Weight):
    """1 / (k + snr)^gamma on the noise: what is hardly seen counts most (Choi et al. 2022, arXiv:2204.00227, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf") or not 0 < self.k < float("inf"):
            raise ValueError(f"gamma {self.gamma} and k {self.k} must be at least 0 and above 0; try gamma=1 k=1")

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma


@dataclass
class SigmoidConfig(Weight):
    """sigmoid(bias - log snr) on the noise, per unit of log-SNR (Kingma & Gao 2023, arXiv:2303.00848, Sec. 4).

    A weight per unit of log-SNR does not depend on the schedule: the rate makes it one per unit of time.
    """

    by_rate: ClassVar[bool] = True

    bias: float = 2.0

    def __post_init__(self) -> None:
        if not abs(self.bias) < float("inf"):
            raise ValueError(f"bias {self.bias} is not a finite number; try bias=2")

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return 0.5 * rate * snr * torch.sigmoid(self.bias - snr.log())


@dataclass
class VLBConfig(Weight):
    """The variational bound's own: half of -d snr / dt on x0 (Kingma et al. 2021, arXiv:2107.00630, eq. 17)."""

    by_rate: ClassVar[bool] = True

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return 0.5 * rate * snr


@dataclass
class EDMConfig(Weight):
    """1 + snr on x0, for data of unit variance (Karras et al. 2022, arXiv:2206.00364, Table 1); plain on target edm."""

    def on_x0(self, snr: Tensor, rate: Tensor) -> Tensor:
        return 1 + snr


WEIGHTS = {
    "plain": PlainConfig,
    "simple": SimpleConfig,
    "min_snr": MinSNRConfig,
    "p2": P2Config,
    "sigmoid": SigmoidConfig,
    "vlb": VLBConfig,
    "edm": EDMConfig,
}
