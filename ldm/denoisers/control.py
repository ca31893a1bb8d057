"""ControlNet: a copy of a U-Net's way down that learns of a picture, and adds to what the frozen one says.

Zhang et al. 2023 (arXiv:2302.05543): y = F(x) + Z2(F_copy(x + Z1(c))), where Z1 and Z2 are convolutions whose weights
begin with zeros, so that the first step of a training starts from the frozen network, bit for bit.

Legend: B batch, C latent channels, H W latent size, f the autoencoder's factor, D width at a level, K channels of a
hint: 3, and one more where it has noise on it.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.blocks import zero
from ldm.data.hints import HINTS, enlarged, with_noise
from ldm.denoisers.attention import CrossAttention
from ldm.denoisers.embeddings import Prepared
from ldm.denoisers.unet import UNet
from ldm.types import Condition


@dataclass
class ControlConfig:
    """A hint: what a ControlNet is shown of a picture."""

    hint: str = "edges"  # edges | gray | half | quarter | coarse: smaller pictures, by 2, 4 and 8
    noise_level: float = 0.0  # s in [0, 1], the most noise on the hint in training; the network is told how much

    def __post_init__(self) -> None:
        if self.hint not in HINTS:
            raise ValueError(f"hint '{self.hint}' is not one of {', '.join(HINTS)}")
        if not 0 <= self.noise_level <= 1:
            raise ValueError(f"noise_level {self.noise_level} is not in [0, 1]; try noise_level=0.5, or 0 for none")

    @property
    def channels(self) -> int:
        """K."""
        return 4 if self.noise_level else 3

    def __str__(self) -> str:
        return self.hint + (f" with noise up to {self.noise_level}" if self.noise_level else "")

    def shown(
        self, hint: Tensor, size: tuple[int, int], noise_level: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """A ``hint`` (B, 3, h, w) of pictures of ``size`` as a ControlNet of this kind takes it: (B, K, f H, f W).

        Where such was learned, ``noise`` of N(0, I), like the hint, is put on it as far as ``noise_level`` (B,) says;
        none is where both are left out.
        """
        if self.noise_level:
            level = hint.new_zeros(len(hint)) if noise_level is None else noise_level
            hint = with_noise(hint, level, torch.zeros_like(hint) if noise is None else noise)
        return enlarged(hint, HINTS[self.hint].factor, size)


class ControlInput(NamedTuple):
    """What a controlled network is told: its text, the copy's (each may be prepared), and a hint for each row."""

    network: Condition | Prepared
    control: Condition | Prepared
    hint: Tensor  # (B, K, f H, f W)


class ControlNet(nn.Module):
    """What is added to each skip of ``network`` and to its middle, by a copy of its way down that learns.

    ``factor`` is the autoencoder's, ``channels`` a hint's.
    """

    def __init__(self, network: UNet, factor: int, channels: int = 3) -> None:
        super().__init__()
        width, *_ = network.skip_widths
        self.encoder = _trainable_encoder(network)
        self.hint_encoder = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(channels * factor**2, width, 3, padding=1),
            nn.SiLU(),
            zero(nn.Conv2d(width, width, 3, padding=1)),
        )
        widths = [*network.skip_widths, network.skip_widths[-1]]  # the middle is as wide as the last skip
        self.zero_convs = nn.ModuleList(zero(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | Prepared, hint: Tensor) -> list[Tensor]:
        """The additions, from ``x`` (B, C, H, W) and a ``hint`` (B, K, f H, f W): to the skips, then to the middle."""
        encoded = self.encoder.encode(x, t, cond, self.hint_encoder(hint))
        features = [*encoded.skips, encoded.middle]
        return [conv(part) for conv, part in zip(self.zero_convs, features, strict=True)]  # (B, D, H / 2^i, W / 2^i)


class Controlled(nn.Module):
    """``network`` as ``control`` changes it, in the place of a U-Net.

    It is told a ``ControlInput``, or a ``Condition`` alone where it has hints of its own: ``hint`` (R, K, f H, f W) is
    repeated for the rows, one for all of them or one for each of R pictures, whose rows may come several times over as
    in guidance. What is added counts ``scale`` times.
    """

    def __init__(self, network: UNet, control: nn.Module, hint: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.control, self.hint, self.scale = network, control, hint, scale
        self.multiple = network.multiple

    def prepare(self, cond: Condition) -> ControlInput:
        """ValueError where it has no hint of its own, or not one for each picture."""
        if self.hint is None or len(cond) % len(self.hint):
            has = 0 if self.hint is None else len(self.hint)
            raise ValueError(
                f"there are {has} hints for {len(cond)} pictures to draw; give one for each, or one for all"
            )
        assert isinstance(self.control, ControlNet)  # it is wrapped in training alone
        times = len(cond) // len(self.hint)
        hint = self.hint.expand(times, -1, -1, -1) if len(self.hint) == 1 else self.hint.repeat(times, 1, 1, 1)
        return ControlInput(self.network.prepare(cond), self.control.encoder.prepare(cond), hint)

    def forward(self, x: Tensor, t: Tensor, told: Condition | ControlInput) -> Tensor:
        """F (B, O, H, W) in x's dtype."""
        told = self.prepare(told) if isinstance(told, Condition) else told
        encoded = self.network.encode(x, t, told.network)
        added = self.control(x, t, told.control, told.hint)
        features = zip([*encoded.skips, encoded.middle], added, strict=True)
        *skips, middle = (part + self.scale * more for part, more in features)
        return self.network.decode(encoded._replace(skips=skips, middle=middle)).to(x.dtype)


def _trainable_encoder(network: UNet) -> UNet:
    """A copy without the way up, and without the keys and values that are for it."""
    copy = deepcopy(network).requires_grad_(True).train()
    del copy.up, copy.norm, copy.conv_out
    crosses = sum(isinstance(module, CrossAttention) for module in copy.modules())
    copy.prepare.keys_values = copy.prepare.keys_values[:crosses]
    return copy
