"""At which times a batch is trained: each a map from even spreads of (0, 1) to times, some with weights of their own.

Legend: B batch, K bands of time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.ranks import rows_of_ranks
from ldm.types import Schedule

MIN_TIME = 1e-4  # where a distribution reaches to 0, at which there is nothing to learn


class Times(NamedTuple):
    """Times (B,) in (0, 1], and what each sample's loss is multiplied by (B,)."""

    t: Tensor
    weight: Tensor


def evenly_spread(count: int, generator: torch.Generator) -> Tensor:
    """Numbers (count,), each uniform on (0, 1] and together evenly spread (Kingma et al. 2021, arXiv:2107.00630, I.1).

    The loss so varies less from batch to batch than with independent times.
    """
    return 1 - (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1


class TimeSampler(nn.Module):
    """Draws times; what it learns while training, if anything, are buffers, which a checkpoint holds."""

    def __init__(self, quantile: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantile = quantile

    def forward(self, count: int, generator: torch.Generator) -> Times:
        """``count`` times, each of this distribution, together evenly spread over it."""
        t = self.quantile(evenly_spread(count, generator)).clamp(MIN_TIME, 1.0)
        return Times(t, torch.ones_like(t))

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Be told the losses (B,), before any weight of this class, at times (B,)."""


@dataclass
class UniformConfig:
    """Every time alike."""

    def build(self, schedule: Schedule) -> TimeSampler:
        return TimeSampler(lambda u: u)


@dataclass
class LogitNormalConfig:
    """More of the middle: the sigmoid of a normal (Esser et al. 2024, arXiv:2403.03206, eq. 19), not weighted back."""

    mean: float = 0.0  # below 0 favours clean images
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf") or not abs(self.mean) < float("inf"):
            raise ValueError(f"mean {self.mean} is not a number or std {self.std} not a positive one; try 0 and 1")

    def build(self, schedule: Schedule) -> TimeSampler:
        return TimeSampler(lambda u: torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(max=1 - 1e-6))))


@dataclass
class LogNormalConfig:
    """Noise-to-signal ratios whose logarithm is normal (Karras et al. 2022, arXiv:2206.00364, Table 1).

    The paper's mean of -1.2 is for data of standard deviation 0.5: log(2) less than it is for the same of 1.
    """

    mean: float = -0.5  # of log(sigma / alpha)
    std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf") or not abs(self.mean) < float("inf"):
            raise ValueError(
                f"mean {self.mean} and std {self.std} are not a number and a positive number; try -0.5, 1.2"
            )

    def build(self, schedule: Schedule) -> TimeSampler:
        def quantile(u: Tensor) -> Tensor:
            ratios = (self.mean + self.std * torch.special.ndtri(u.clamp(max=1 - 1e-6))).exp()
            return torch.tensor([schedule.t_at(ratio) for ratio in ratios.tolist()])

        return TimeSampler(quantile)


@dataclass
class ImportanceConfig:
    """Times by the size of their losses, which are weighted back (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18)."""

    bands: int = 100  # K, of equal length
    history: int = 10  # last losses of each that count; until all have as many, every time alike
    uniform: float = 0.001  # share drawn from every time alike

    def __post_init__(self) -> None:
        if self.bands < 1 or self.history < 1:
            raise ValueError(f"bands {self.bands} and history {self.history} must be at least 1; try 100 and 10")
        if not 0 < self.uniform <= 1:
            raise ValueError(f"uniform {self.uniform} is not in (0, 1]; try uniform=0.001")

    def build(self, schedule: Schedule) -> TimeSampler:
        return Importance(self)


class Importance(TimeSampler):
    """p(t) is proportional to the root mean square of the band's last losses; 1 / p keeps the loss's mean the same."""

    losses: Tensor
    seen: Tensor

    def __init__(self, config: ImportanceConfig) -> None:
        super().__init__(self._quantile)
        self.config = config
        self.register_buffer("losses", torch.zeros(config.bands, config.history))
        self.register_buffer("seen", torch.zeros(config.bands, dtype=torch.long))

    def shares(self) -> Tensor:
        """The probability of each band (K,)."""
        bands = self.config.bands
        if int(self.seen.min()) < self.config.history:
            return torch.full((bands,), 1 / bands)
        size = self.losses.square().mean(dim=1).sqrt()  # (K,)
        return (1 - self.config.uniform) * size / size.sum().clamp(min=1e-12) + self.config.uniform / bands

    def forward(self, count: int, generator: torch.Generator) -> Times:
        t = super().forward(count, generator).t
        return Times(t, 1 / (self.config.bands * self.shares()[self._band(t)]))

    def observe(self, t: Tensor, loss: Tensor) -> None:
        told = rows_of_ranks(torch.stack([t.float(), loss.float()], dim=1)).cpu()  # (B of all processes, 2)
        told = told[told.isfinite().all(dim=1)]  # of a step that is skipped nothing is learned
        for band, value in zip(self._band(told[:, 0]).tolist(), told[:, 1].tolist(), strict=True):
            self.losses[band, self.seen[band] % self.config.history] = value
            self.seen[band] += 1

    def _quantile(self, u: Tensor) -> Tensor:
        shares = self.shares()
        ends = shares.cumsum(0)  # (K,)
        band = torch.searchsorted(ends, u).clamp(max=self.config.bands - 1)
        within = (u - (ends - shares)[band]) / shares[band]  # in (0, 1]
        return (band + within.clamp(0, 1)) / self.config.bands

    def _band(self, t: Tensor) -> Tensor:
        return ((t * self.config.bands).ceil().long() - 1).clamp(0, self.config.bands - 1)


TIMES = {
    "uniform": UniformConfig,
    "logit_normal": LogitNormalConfig,
    "log_normal": LogNormalConfig,
    "importance": ImportanceConfig,
}
