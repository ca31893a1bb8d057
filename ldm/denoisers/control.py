"""ControlNet: a copy of a U-Net's way down that learns of a picture, and adds to what the frozen one says.

Zhang et al. 2023 (arXiv:2302.05543): y = F(x) + Z2(F_copy(x + Z1(c))), where Z1 and Z2 are convolutions whose weights
begin with zeros, so that the first step of a training starts from the frozen network, bit for bit.

Legend: B batch, C latent channels, H W latent size, f the autoencoder's factor, D width at a level.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ldm.blocks import zero
from ldm.data.hints import HINTS
from ldm.denoisers.attention import CrossAttention
from ldm.denoisers.embeddings import Prepared
from ldm.denoisers.unet import UNet
from ldm.types import Condition


@dataclass
class ControlConfig:
    """A hint: what a ControlNet is shown of a picture."""

    hint: str = "edges"  # edges | coarse | gray

    def __post_init__(self) -> None:
        if self.hint not in HINTS:
            raise ValueError(f"hint '{self.hint}' is not one of {', '.join(HINTS)}")


class ControlInput(NamedTuple):
    """What a controlled network is told: its text, the copy's (each may be prepared), and a hint for each row."""

    network: Condition | Prepared
    control: Condition | Prepared
    hint: Tensor  # (B, 3, f H, f W) in [-1, 1]


class ControlNet(nn.Module):
    """What is added to each skip of ``network`` and to its middle, by a copy of its way down that learns."""

    def __init__(self, network: UNet, factor: int) -> None:
        super().__init__()
        width, *_ = network.skip_widths
        self.encoder = _trainable_encoder(network)
        self.hint_encoder = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(3 * factor**2, width, 3, padding=1),
            nn.SiLU(),
            zero(nn.Conv2d(width, width, 3, padding=1)),
        )
        widths = [*network.skip_widths, network.skip_widths[-1]]  # the middle is as wide as the last skip
        self.zero_convs = nn.ModuleList(zero(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | Prepared, hint: Tensor) -> list[Tensor]:
        """The additions, from ``x`` (B, C, H, W) and a ``hint`` (B, 3, f H, f W): to the skips, then to the middle."""
        encoded = self.encoder.encode(x, t, cond, self.hint_encoder(hint))
        features = [*encoded.skips, encoded.middle]
        return [conv(part) for conv, part in zip(self.zero_convs, features, strict=True)]  # (B, D, H / 2^i, W / 2^i)


class Controlled(nn.Module):
    """``network`` as ``control`` changes it, in the place of a U-Net.

    It is told a ``ControlInput``, or a ``Condition`` alone where it has a ``hint`` (1, 3, f H, f W) of its own for all
    rows. What is added counts ``scale`` times.
    """

    def __init__(self, network: UNet, control: nn.Module, hint: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.control, self.hint, self.scale = network, control, hint, scale
        self.multiple = network.multiple

    def prepare(self, cond: Condition) -> ControlInput:
        """ValueError where it has no hint of its own."""
        if self.hint is None:
            raise ValueError("there is no picture to follow; give a hint")
        assert isinstance(self.control, ControlNet)  # it is wrapped in training alone
        hint = self.hint.expand(len(cond), -1, -1, -1)
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
