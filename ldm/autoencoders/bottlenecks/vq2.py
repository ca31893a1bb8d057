"""Vector quantisation at two levels: a small map for what is global, and the full one for the rest.

    top = quantise(E_top(h)), half the size; bottom = quantise(E_bottom(h, top)); z = (top enlarged, bottom)

(Razavi et al. 2019, arXiv:1906.00446, Alg. 1). The latent holds half of its channels at half the size, each value of
them four times, so that a denoiser has one map to draw; the decoder's first convolution reads both levels.

Legend: B batch, C latent channels, T of them of the top level, D width, h w latent size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoders.bottlenecks.base import Bottleneck, Code
from ldm.autoencoders.bottlenecks.vq import VectorQuantizer, VQConfig


@dataclass
class VQ2Config(VQConfig):
    """Two codebooks, each with the settings of ``vq``."""

    width: int = 64  # D, channels that the encoder gives and the convolutions of the two levels have

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width {self.width} is not at least 1; try width=64")

    def build(self, channels: int) -> Bottleneck:
        if channels < 2:
            raise ValueError(f"channels {channels} of the latent cannot be two levels'; try autoencoder.channels=4")
        return TwoLevels(channels, self)


class TwoLevels(Bottleneck):
    """The lower level is coded with the upper one's codes known, and so need not say it again."""

    def __init__(self, channels: int, config: VQ2Config) -> None:
        super().__init__()
        width, above = config.width, channels // 2
        self.features, self.above = width, above
        self.shrink = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(width, above, 3, padding=1)
        )
        self.mix = nn.Sequential(
            nn.Conv2d(width + above, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels - above, 1)
        )
        self.top, self.bottom = VectorQuantizer(above, config), VectorQuantizer(channels - above, config)

    def forward(self, h: Tensor, pixels: int) -> Code:
        """Both levels' codes with their gradients, and the sum of their losses; ``pixels`` does not matter."""
        top: Code = self.top(self.shrink(h), pixels)  # (B, T, h / 2, w / 2), rounded up
        known = enlarged(top.z, h)  # (B, T, h, w)
        bottom: Code = self.bottom(self.mix(torch.cat([h, known], dim=1)), pixels)  # (B, C - T, h, w)
        levels = {"top": top, "bottom": bottom}
        logs = {f"{name}_{level}": value for level, code in levels.items() for name, value in code.logs.items()}
        return Code(torch.cat([known, bottom.z], dim=1), top.penalty + bottom.penalty, logs)

    def mode(self, h: Tensor) -> Tensor:
        top, bottom = self._levels(h)
        return torch.cat([enlarged(top, h), bottom], dim=1)

    def quantize(self, z: Tensor) -> Tensor:
        """Both levels quantised; the top's is the nearest to the mean over each four values."""
        top, bottom = z[:, : self.above], z[:, self.above :]
        top = F.avg_pool2d(top, 2, ceil_mode=True, count_include_pad=False)  # (B, T, h / 2, w / 2)
        return torch.cat([enlarged(self.top.quantize(top), z), self.bottom.quantize(bottom)], dim=1)

    def codes(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The codes' numbers of the top (B, h / 2, w / 2), rounded up, and of the bottom (B, h, w)."""
        top, bottom = self._levels(h)
        return self.top.codes(top), self.bottom.codes(bottom)

    def from_codes(self, top: Tensor, bottom: Tensor) -> Tensor:
        """The latent (B, C, h, w) of the codes of both levels, as ``quantize`` gives it."""
        below = self.bottom.from_codes(bottom)
        return torch.cat([enlarged(self.top.from_codes(top), below), below], dim=1)

    def _levels(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Both levels before they are quantised, the bottom next to the quantised top."""
        top = self.top.mode(self.shrink(h))
        known = enlarged(self.top.quantize(top), h)
        return top, self.bottom.mode(self.mix(torch.cat([h, known], dim=1)))


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with each value four times, (B, T, h, w) of the size of ``like``."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., : like.shape[2], : like.shape[3]]
