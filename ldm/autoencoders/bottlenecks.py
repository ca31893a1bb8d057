"""What stands between encoder and decoder: how features become a latent, and what that costs in the loss.

Legend: B batch, C latent channels, H W latent size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

START_LOG_VARIANCE = -6.0


class Code(NamedTuple):
    """A latent (B, C, H, W), the penalty to add to the loss, and figures for the log."""

    z: Tensor
    penalty: Tensor
    logs: dict[str, Tensor]


class Bottleneck(nn.Module, ABC):
    """Features of the encoder in, a latent out."""

    features: int  # channels that the encoder must give

    @abstractmethod
    def forward(self, h: Tensor, pixels: int) -> Code:
        """The code of ``h`` (B, features, H, W); ``pixels`` is the number of values in one image, 3 H W."""

    @abstractmethod
    def mode(self, h: Tensor) -> Tensor:
        """The latent (B, C, H, W) without any draw."""

    def spread(self, h: Tensor) -> Tensor:
        """The variance (B, C, H, W) of what ``forward`` draws around ``mode``: none where it draws nothing."""
        return torch.zeros_like(self.mode(h))

    def start(self, last: nn.Conv2d) -> None:
        """Set the start of the encoder's ``last`` convolution, or leave it as it was initialised."""


@dataclass
class IdentityConfig:
    """No bottleneck but the latent's size: a plain autoencoder."""

    def build(self, channels: int) -> Bottleneck:
        return Identity(channels)


class Identity(Bottleneck):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = channels

    def forward(self, h: Tensor, pixels: int) -> Code:
        return Code(h, h.new_zeros(()), {})

    def mode(self, h: Tensor) -> Tensor:
        return h


@dataclass
class KLConfig:
    """A Gaussian posterior a position, drawn towards N(0, I) (Kingma & Welling 2014, arXiv:1312.6114)."""

    weight: float = 1e-6  # of the KL, in nats per image value (LDM's convention)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight {self.weight} of the KL is not a finite number of at least 0; try weight=1e-6")

    def build(self, channels: int) -> Bottleneck:
        return Gaussian(channels, self.weight)


class Gaussian(Bottleneck):
    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.features = 2 * channels  # mean and log-variance
        self.weight = weight

    def forward(self, h: Tensor, pixels: int) -> Code:
        """A posterior sample z = mean + std noise, and ``weight`` KL(N(mean, std^2) || N(0, I)) per image value.

        ``h`` (B, 2 C, H, W); ``pixels`` is the number of values in one image, 3 H W.
        """
        mean, log_variance = self.moments(h)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # (B, C, H, W)
        kl = gaussian_kl(mean, log_variance)  # (B,)
        return Code(z, self.weight * kl.mean() / pixels, {"kl": kl.mean()})

    def mode(self, h: Tensor) -> Tensor:
        """The posterior's mean (B, C, H, W)."""
        return self.moments(h)[0]

    def spread(self, h: Tensor) -> Tensor:
        """The posterior's variance (B, C, H, W)."""
        return self.moments(h)[1].exp()

    @torch.no_grad()
    def start(self, last: nn.Conv2d) -> None:
        """Start the encoder's ``last`` convolution at a small posterior variance.

        From N(mean, 1) the decoder sees little but noise for its first thousand steps.
        """
        assert last.bias is not None
        last.bias[self.features // 2 :] = START_LOG_VARIANCE

    @staticmethod
    def moments(h: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = h.float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, summed over all but the first dimension: (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)
