"""What stands between encoder and decoder: how features become a latent, and what that costs in the loss.

Legend: B batch, C latent channels, h w latent size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Code(NamedTuple):
    """A latent (B, C, h, w), the penalty to add to the loss, and figures for the log."""

    z: Tensor
    penalty: Tensor
    logs: dict[str, Tensor]


class Bottleneck(nn.Module, ABC):
    """Features of the encoder in, a latent out."""

    features: int  # channels that the encoder must give
    warmup: int = 0  # optimizer steps over which whoever trains it lets the penalty rise from 0

    @abstractmethod
    def forward(self, h: Tensor, pixels: int) -> Code:
        """The code of ``h`` (B, features, h, w); ``pixels`` is the number of values in one image, 3 H W."""

    @abstractmethod
    def mode(self, h: Tensor) -> Tensor:
        """The latent (B, C, h, w) without any draw, and as it is before ``quantize``."""

    def variance(self, h: Tensor) -> Tensor:
        """The variance (B, C, h, w) of what ``forward`` draws around ``mode``: none where it draws nothing."""
        return torch.zeros_like(self.mode(h))

    def quantize(self, z: Tensor) -> Tensor:
        """The latent (B, C, h, w) that the decoder is given for ``z``: the quantised one where there are codes.

        A denoiser so learns the latents of ``mode``, which are continuous, and the decoder quantises what it draws
        (Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1). The gradient goes straight through.
        """
        return z

    def start(self, last: nn.Conv2d) -> None:
        """Set the start of the encoder's ``last`` convolution, or leave it as it was initialised."""


class Quantizer(Bottleneck):
    """A bottleneck of finitely many codes: each position's latent is one of ``num_codes``."""

    num_codes: int

    @abstractmethod
    def codes(self, h: Tensor) -> Tensor:
        """The numbers (B, h, w), whole and below ``num_codes``, of the codes of ``h`` (B, features, h, w)."""

    @abstractmethod
    def from_codes(self, indices: Tensor) -> Tensor:
        """The latent (B, C, h, w) of codes (B, h, w), as ``quantize`` gives it."""


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` in value, to the last bit, with the gradient of ``z`` (Bengio et al. 2013, arXiv:1308.3432)."""
    return quantized.detach() + (z - z.detach())


def usage(indices: Tensor, num_codes: int) -> dict[str, Tensor]:
    """Of a batch's codes: the share of all that occur, and the perplexity exp(-sum p log p) of their frequencies p."""
    return usage_of(indices.unique(return_counts=True)[1], num_codes)


def usage_of(counts: Tensor, num_codes: int) -> dict[str, Tensor]:
    """``usage`` by how often each code that occurs does (U,)."""
    p = counts / counts.sum()
    share = torch.tensor(len(counts) / num_codes, device=counts.device)
    return {"usage": share, "perplexity": torch.exp(-(p * p.log()).sum())}


@dataclass
class BottleneckConfig(ABC):
    """The settings of a bottleneck."""

    TRAINED_BY: ClassVar[tuple[str, ...]] = ()  # fields that say how it is trained, not what a trained one computes

    @abstractmethod
    def build(self, channels: int) -> Bottleneck:
        """The bottleneck of latents of ``channels`` channels."""

    @property
    def network(self) -> tuple[type, dict[str, Any]]:
        """What must be the same for trained weights to mean the same."""
        names = [f.name for f in fields(self) if f.name not in self.TRAINED_BY]
        return type(self), {name: getattr(self, name) for name in names}
