"""The types that the packages share, so that none of them needs to import another.

Legend: B batch, C channels, H W height and width, L text tokens, D token width, P pooled width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import hypot, inf, log
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

Scalar = float | Tensor

BLANK = 1_000.0  # nsr from which on x tells less than a millionth of an x0 of unit variance


@dataclass(frozen=True, slots=True)
class Key:
    """What a data loader asks a map-style data set for; augmentation is a function of (seed, epoch, index)."""

    epoch: int
    index: int


class Sample(NamedTuple):
    """One image (3, H, W), float32 in [-1, 1], and its caption."""

    image: Tensor
    caption: str


class Batch(NamedTuple):
    """Images (B, 3, H, W), float32 in [-1, 1], and their B captions."""

    image: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told: text token states, their pooled summary, and which tokens are real."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor  # (B, P)
    mask: Tensor  # (B, L) bool, True for a token and False for padding

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Condition":
        return Condition(self.tokens.to(device, dtype), self.pooled.to(device, dtype), self.mask.to(device))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "Condition":
        return Condition(self.tokens[rows], self.pooled[rows], self.mask[rows])

    def repeat(self, count: int) -> "Condition":
        """Each row ``count`` times, neighbours together: (B, ...) -> (B * count, ...)."""
        return Condition(*(part.repeat_interleave(count, dim=0) for part in (self.tokens, self.pooled, self.mask)))

    def pad(self, length: int) -> "Condition":
        """The same condition with masked zero tokens appended up to ``length``."""
        extra = length - self.tokens.shape[1]
        tokens = nn.functional.pad(self.tokens, (0, 0, 0, extra))  # (B, length, D)
        return Condition(tokens, self.pooled, nn.functional.pad(self.mask, (0, extra)))

    @staticmethod
    def cat(parts: "list[Condition]") -> "Condition":
        """The parts' rows one after another, padded to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        padded = [part.pad(length) for part in parts]
        return Condition(
            torch.cat([part.tokens for part in padded]),
            torch.cat([part.pooled for part in padded]),
            torch.cat([part.mask for part in padded]),
        )


class Level(NamedTuple):
    """A noise level of ``x = alpha x0 + sigma noise``: floats while sampling, (B, 1, 1, 1) tensors while training."""

    t: Scalar  # 0 is data, 1 is noise
    alpha: Scalar
    sigma: Scalar

    @property
    def nsr(self) -> Scalar:
        """Noise-to-signal ratio sigma / alpha; infinite for pure noise."""
        if isinstance(self.alpha, Tensor):
            return self.sigma / self.alpha
        return self.sigma / self.alpha if self.alpha > 0 else inf

    @property
    def blank(self) -> bool:
        """Whether x is noise alone, but for a thousandth of it; of a level of floats.

        A step from there to where something is seen is so long that only the predicted x0 can be relied on over it:
        solvers of higher order blend predictions by weights of the size of now.nsr / to.nsr.
        """
        return bool(self.nsr >= BLANK)

    @property
    def norm(self) -> Scalar:
        """sqrt(alpha^2 + sigma^2): x's standard deviation where x0's is 1."""
        if isinstance(self.alpha, Tensor) or isinstance(self.sigma, Tensor):
            return torch.hypot(torch.as_tensor(self.alpha), torch.as_tensor(self.sigma))
        return hypot(self.alpha, self.sigma)

    @property
    def log_snr(self) -> Scalar:
        """2 log(alpha / sigma)."""
        nsr = self.nsr
        if isinstance(nsr, Tensor):
            return -2 * nsr.log()
        if nsr == 0:
            return inf
        return -2 * log(nsr) if nsr < inf else -inf


class Prediction(NamedTuple):
    """What a denoiser says of x: the clean x0, and the variance of the reverse step where it is learned."""

    x0: Tensor
    variance: Tensor | None = None  # about in [-1, 1]: where the step's log-variance lies between its bounds


class Schedule(Protocol):
    def level(self, t: Scalar) -> Level:
        """The level at ``t`` in [0, 1]; a (B,) tensor gives (B, 1, 1, 1) coefficients."""
        ...

    def t_at(self, nsr: float) -> float:
        """The time whose noise-to-signal ratio is ``nsr``."""
        ...


class Grid(list[Level]):
    """The levels that a sampler visits, from noise to exactly (0, 1, 0), and the schedule with all between them."""

    def __init__(self, levels: Iterable[Level], schedule: Schedule) -> None:
        super().__init__(levels)
        self.schedule = schedule

    def at(self, nsr: float) -> Level:
        """The schedule's level whose noise-to-signal ratio is ``nsr``: for samplers that look between two levels."""
        return self.schedule.level(self.schedule.t_at(nsr))


Target = Callable[[Level], tuple[Scalar, Scalar]]  # (a, b) of the regressed F = a x0 + b noise
Denoise = Callable[[Tensor, Level], Prediction]
Noise = Callable[[], Tensor]  # a fresh standard normal draw of x's shape


class Sampler(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        """Clean x from noised ``x`` at ``grid[0]``; ``grid`` ends at exactly (0, 1, 0)."""
        ...


class Dataset(Protocol):
    """A map-style data set of images and captions. ``len`` is its size; it may be indexed in any order."""

    fixed: bool  # whether a sample is the same in every epoch, and so may be encoded once

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Sample: ...

    def captions(self, count: int) -> Iterable[str]:
        """The captions of the first ``count`` samples, without their pictures where that is possible."""
        ...

    def fingerprint(self) -> str:
        """A string that changes when the samples would: what a latent cache is checked against."""
        ...


class TextEncoder(Protocol):
    width: int  # D
    pooled_width: int  # P
    context_length: int  # tokens that a caption may have
    truncated: int  # captions cut to it so far

    def tokenize(self, captions: list[str]) -> Tensor:
        """Rows of its table of tokens (B, L); those that were cut are counted in ``truncated``, as in a call."""
        ...

    def __call__(self, captions: list[str]) -> Condition: ...


class DenoiserConfig(Protocol):
    def build(self, *, channels: int, text_width: int, pooled_width: int, out_channels: int = 0) -> nn.Module: ...
