"""Finite scalar quantisation: each channel by itself to a few fixed levels, without a codebook and without a loss.

    z = 2 round((tanh(h) + 1) (L - 1) / 2) / (L - 1) - 1, with the gradient of tanh(h)

(Mentzer et al. 2023, arXiv:2309.15505, Sec. 3.1): L even steps from -1 to 1 in each channel, and the product of the
channels' L codes. For an even L the paper puts the levels half a step to one side, so that 0 is one of them; here they
lie evenly about 0.

Legend: B batch, C latent channels, h w latent size, L levels.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ldm.autoencoders.bottlenecks.base import BottleneckConfig, Code, Quantizer, straight_through, usage
from ldm.ranks import rows_of_ranks

MAX_CODES = 2**63 - 1  # that an int64 can number


@dataclass
class FSQConfig(BottleneckConfig):
    """Finite scalar quantisation: every channel is rounded to one of a few levels; no codebook."""

    levels: list[int] = field(default_factory=lambda: [5])  # of each latent channel; a single one is that of all

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels {self.levels} must be whole numbers of at least 2; try levels=[8,5,5,5]")

    def build(self, channels: int) -> "FiniteScalar":
        levels = self.levels * channels if len(self.levels) == 1 else self.levels
        if len(levels) != channels:
            raise ValueError(
                f"levels {self.levels} are of {len(levels)} channels, and the latent has {channels}; "
                f"give one for each, or try autoencoder.channels={len(levels)}"
            )
        if prod(levels) > MAX_CODES:
            raise ValueError(
                f"levels {self.levels} of {channels} channels make more codes than 2^63; take fewer of them"
            )
        return FiniteScalar(levels)


class FiniteScalar(Quantizer):
    """Code number k is sum_c digit_c prod_{b < c} L_b: the first channel's level is the last digit."""

    last: Tensor  # (C, 1, 1) number of each channel's highest level, L - 1
    places: Tensor  # (C, 1, 1) worth of each channel's digit

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.features, self.num_codes = len(levels), prod(levels)
        self.register_buffer("last", torch.tensor(levels).view(-1, 1, 1) - 1, persistent=False)
        places = torch.tensor([prod(levels[:c]) for c in range(len(levels))])
        self.register_buffer("places", places.view(-1, 1, 1), persistent=False)

    def forward(self, h: Tensor, pixels: int) -> Code:
        """The nearest levels with the gradient of tanh(h); nothing to add to the loss."""
        z = self.quantize(self.mode(h))
        return Code(z, z.new_zeros(()), usage(rows_of_ranks(self.codes(h)), self.num_codes))

    def mode(self, h: Tensor) -> Tensor:
        """tanh(h) (B, C, h, w), in (-1, 1)."""
        return torch.tanh(h.float())

    def quantize(self, z: Tensor) -> Tensor:
        return straight_through(z, self._value(self._digits(z)))

    def codes(self, h: Tensor) -> Tensor:
        return (self._digits(self.mode(h)) * self.places).sum(dim=1)

    def from_codes(self, indices: Tensor) -> Tensor:
        return self._value(indices[:, None] // self.places % (self.last + 1))

    def _digits(self, z: Tensor) -> Tensor:
        return ((z.clamp(-1, 1) + 1) * self.last / 2).round().long()  # (B, C, h, w)

    def _value(self, digits: Tensor) -> Tensor:
        return 2 * digits / self.last - 1
