"""Sparse latents: a penalty on the mean activation, or none but the largest activations.

Legend: B batch, C latent channels, h w latent size.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code
from ldm.ranks import mean_over_ranks

LEAST = 1e-30  # of a mean activation, and of 1 less that: at 0 the divergence has no bound


@dataclass
class SparseConfig(BottleneckConfig):
    """Sigmoid units that are seldom on (Ng 2011, Stanford CS294A lecture notes, Sparse autoencoder).

    penalty = weight sum_c KL(rho || mean of unit c), of two Bernoulli distributions
    """

    TRAINED_BY: ClassVar = ("weight", "rho")

    weight: float = 1e-2  # of the divergences' sum, in nats
    rho: float = 0.05  # the mean activation that is asked of every unit, over batch, positions and processes

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight {self.weight} is not a finite number of at least 0; try weight=0.01")
        if not 0 < self.rho < 1:
            raise ValueError(f"rho {self.rho} is not between 0 and 1; try rho=0.05")

    def build(self, channels: int) -> "Sparse":
        return Sparse(channels, self)


class Sparse(Bottleneck):
    """Sigmoid units whose means over a batch are driven to a small share, by a KL."""

    def __init__(self, channels: int, config: SparseConfig) -> None:
        super().__init__()
        self.features, self.config = channels, config

    def forward(self, h: Tensor, pixels: int) -> Code:
        """sigmoid(h) and what its channels' means cost; ``pixels`` does not matter."""
        z = self.mode(h)  # (B, C, h, w)
        on, off = (mean_over_ranks(share.mean(dim=(0, 2, 3))) for share in (z, self.mode(-h)))  # (C,)
        kl = bernoulli_kl(self.config.rho, on, off).sum()
        return Code(z, self.config.weight * kl, {"sparsity_kl": kl, "activation": z.mean()})

    def mode(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h.float())


def bernoulli_kl(rho: float, on: Tensor, off: Tensor) -> Tensor:
    """KL(Bernoulli(rho) || Bernoulli(on)) in nats, of the shape of ``on``; ``off`` is 1 - ``on``, 0 < ``rho`` < 1.

    Both are given since the smaller of them rounds to nothing beside the other: a unit at either end has its gradient.
    """
    cost = rho * (log(rho) - on.clamp(min=LEAST).log())
    return cost + (1 - rho) * (log(1 - rho) - off.clamp(min=LEAST).log())


@dataclass
class TopKConfig(BottleneckConfig):
    """The k largest activations of each position, the others set to 0 (Makhzani & Frey 2013, arXiv:1312.5663)."""

    k: int = 2  # channels that each position keeps

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k {self.k} is not at least 1; try k=2")

    def build(self, channels: int) -> "TopK":
        if self.k > channels:
            raise ValueError(f"k {self.k} is more than the latent's {channels} channels; try k={max(1, channels // 4)}")
        return TopK(channels, self.k)


class TopK(Bottleneck):
    """The gradient goes through what is kept, and nowhere else."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.features, self.k = channels, k

    def forward(self, h: Tensor, pixels: int) -> Code:
        return Code(self.quantize(h), h.new_zeros(()), {})

    def mode(self, h: Tensor) -> Tensor:
        """All activations: ``quantize`` drops the small ones."""
        return h

    def quantize(self, z: Tensor) -> Tensor:
        kept = z.topk(self.k, dim=1)
        return torch.zeros_like(z).scatter(1, kept.indices, kept.values)
