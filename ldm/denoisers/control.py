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
from ldm.denoisers.unet import Downsample, Stage, UNet
from ldm.types import Condition


@dataclass
class ControlConfig:
    """What is learned of."""

    hint: str = "edges"  # of a picture: edges | coarse | gray

    def __post_init__(self) -> None:
        if self.hint not in HINTS:
            raise ValueError(f"hint '{self.hint}' is not one of {', '.join(HINTS)}")


class Told(NamedTuple):
    """What a controlled network is told: its text, the copy's (each may be prepared), and a picture for each row."""

    network: Condition | Prepared
    control: Condition | Prepared
    hint: Tensor  # (B, 3, f H, f W) in [-1, 1]


class ControlNet(nn.Module):
    """What is added to each skip of ``network`` and to its middle; the copy of its way down is trained."""

    def __init__(self, network: UNet, factor: int) -> None:
        super().__init__()
        self.copy = _way_down(network)
        width = network.conv_in.out_channels
        self.enter = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(3 * factor**2, width, 3, padding=1),
            nn.SiLU(),
            zero(nn.Conv2d(width, width, 3, padding=1)),
        )
        widths = [width, *map(_width, network.down), _width(network.middle)]
        self.leave = nn.ModuleList(zero(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | Prepared, hint: Tensor) -> list[Tensor]:
        """The additions, from ``x`` (B, C, H, W) and a ``hint`` (B, 3, f H, f W): to the skips, then to the middle."""
        fallen = self.copy.fall(x, t, cond, self.enter(hint))
        parts = zip(self.leave, [*fallen.skips, fallen.middle], strict=True)
        return [leave(part) for leave, part in parts]  # (B, D, H / 2^i, W / 2^i) each


class Controlled(nn.Module):
    """``network`` as ``control`` changes it, in the place of a U-Net.

    It is told a ``Told``, or a ``Condition`` alone where it has a ``hint`` (1, 3, f H, f W) of its own for all rows.
    What is added counts ``scale`` times.
    """

    def __init__(self, network: UNet, control: ControlNet, hint: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.control, self.hint, self.scale = network, control, hint, scale
        self.multiple = network.multiple

    def prepare(self, cond: Condition) -> Told:
        if self.hint is None:
            raise ValueError("there is no picture to follow; give a hint")
        hint = self.hint.expand(len(cond), -1, -1, -1)
        copy = self.control.copy
        return Told(self.network.prepare(cond), copy.prepare(cond), hint)

    def forward(self, x: Tensor, t: Tensor, told: Condition | Told) -> Tensor:
        """F (B, O, H, W) in x's dtype."""
        told = self.prepare(told) if isinstance(told, Condition) else told
        fallen = self.network.fall(x, t, told.network)
        added = self.control(x, t, told.control, told.hint)
        parts = zip([*fallen.skips, fallen.middle], added, strict=True)
        *skips, middle = (part + self.scale * more for part, more in parts)
        return self.network.rise(fallen._replace(skips=skips, middle=middle)).to(x.dtype)


def _way_down(network: UNet) -> UNet:
    """A copy without the way up, and without the keys and values that are for it; its weights learn."""
    copy = deepcopy(network).requires_grad_(True)
    copy.up, copy.norm, copy.conv_out = nn.ModuleList(), nn.Identity(), nn.Identity()  # type: ignore[assignment]
    crosses = sum(isinstance(module, CrossAttention) for module in copy.modules())
    copy.prepare.keys_values = copy.prepare.keys_values[:crosses]
    return copy


def _width(part: nn.Module) -> int:
    """The channels of what a part of the way down says."""
    last = part.residual.conv2 if isinstance(part, Stage) else part.conv
    assert isinstance(part, Stage | Downsample) and isinstance(last, nn.Conv2d)
    return last.out_channels
