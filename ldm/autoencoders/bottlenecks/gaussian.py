"""A Gaussian posterior at each position: the variational autoencoder.

With p(z) = N(0, I) and q(z | x) = N(mean, std^2) of what the encoder says of x, the loss is

    E_q[reconstruction] + weight KL(q || p)
    KL = 1/2 sum(mean^2 + std^2 - 1 - log std^2)

(Kingma & Welling 2014, arXiv:1312.6114, eq. 3 and App. B). A weight other than that of the likelihood is beta-VAE's
beta (Higgins et al. 2017, ICLR). Weight 0 is a plain autoencoder whose decoder sees latents with noise.

With a ``std`` given, the same at every position, the KL is 1/2 mean^2 but for a constant: a price on the signal's power
beside noise of known power. Where std is learned, the encoder buys precision where a picture has detail, at a price
that grows but with its logarithm, and the decoder then takes an error there, such as a denoiser makes, at its word.

Legend: B batch, C latent channels, h w latent size.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code
from ldm.ranks import mean_over_ranks

START_LOG_VARIANCE = -6.0


@dataclass
class KLConfig(BottleneckConfig):
    """A Gaussian posterior a position, drawn towards N(0, I) (Kingma & Welling 2014, arXiv:1312.6114)."""

    TRAINED_BY: ClassVar = ("weight", "std", "free_bits", "warmup")

    weight: float = 1e-6  # of the KL, in nats per image value (LDM's convention)
    std: float = 0.0  # of every posterior alike; 0 learns one for each position
    free_bits: float = 0.0  # nats a position, of each channel's mean over batch and positions, that cost nothing
    warmup: int = 0  # optimizer steps over which the weight rises from 0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight {self.weight} of the KL is not a finite number of at least 0; try weight=1e-6")
        if not 0 <= self.std < float("inf"):
            raise ValueError(f"std {self.std} is not a finite number of at least 0; try std=0.5, or 0 to learn it")
        if not 0 <= self.free_bits < float("inf"):
            raise ValueError(f"free_bits {self.free_bits} are not a finite number of at least 0; try free_bits=0.1")
        if self.warmup < 0:
            raise ValueError(f"warmup {self.warmup} is not at least 0; try warmup=0 for none")

    def build(self, channels: int) -> Bottleneck:
        return Gaussian(channels, self.weight, std=self.std, free_bits=self.free_bits, warmup=self.warmup)


class Gaussian(Bottleneck):
    """Mean and log-variance in, a draw of N(mean, variance) out, with its price in KL to N(0, I)."""

    def __init__(
        self, channels: int, weight: float, *, std: float = 0.0, free_bits: float = 0.0, warmup: int = 0
    ) -> None:
        super().__init__()
        self.features = 2 * channels  # mean and log-variance
        self.weight, self.free_bits, self.warmup = weight, free_bits, warmup
        self.log_variance = 2 * log(std) if std else None

    def forward(self, h: Tensor, pixels: int) -> Code:
        """A posterior sample z = mean + std noise, and ``weight`` KL(N(mean, std^2) || N(0, I)) per image value.

        ``h`` (B, 2 C, h, w); ``pixels`` is the number of values in one image, 3 H W.
        """
        mean, log_variance = self.moments(h)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # (B, C, h, w)
        kl = gaussian_kl(mean, log_variance).mean()
        cost = free_kl(mean, log_variance, self.free_bits) if self.free_bits else kl
        return Code(z, self.weight * cost / pixels, {"kl": kl})

    def mode(self, h: Tensor) -> Tensor:
        """The posterior's mean (B, C, h, w)."""
        return self.moments(h)[0]

    def variance(self, h: Tensor) -> Tensor:
        """The posterior's variance (B, C, h, w)."""
        return self.moments(h)[1].exp()

    @torch.no_grad()
    def start(self, last: nn.Conv2d) -> None:
        """Start the encoder's ``last`` convolution at a small posterior variance.

        From N(mean, 1) the decoder sees little but noise for its first thousand steps.
        """
        assert last.bias is not None
        last.bias[self.features // 2 :] = START_LOG_VARIANCE

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, both (B, C, h, w)."""
        mean, log_variance = h.float().chunk(2, dim=1)
        if self.log_variance is not None:
            return mean, torch.full_like(mean, self.log_variance)
        return mean, log_variance.clamp(-30.0, 20.0)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, summed over all but the first dimension: (B,)."""
    return _kl(mean, log_variance).flatten(1).sum(dim=1)


def free_kl(mean: Tensor, log_variance: Tensor, free: float) -> Tensor:
    """The KL in nats of one image's latents (), each channel's part counted as ``free`` a position or more.

    sum_c h w max(free, KL_c), KL_c the mean over batch, positions and processes: a channel below ``free`` has no
    gradient and so is not driven out of use (Kingma et al. 2016, arXiv:1606.04934, free bits, with the channels as its
    groups).
    """
    channels = mean_over_ranks(_kl(mean, log_variance).mean(dim=(0, 2, 3)))  # (C,)
    return mean[0, 0].numel() * channels.clamp(min=free).sum()


def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
