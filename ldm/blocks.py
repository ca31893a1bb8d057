"""What the first stage and the denoisers are both made of.

Legend: B batch, C channels, H W size at that level.
"""

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.functional import interpolate

M = TypeVar("M", nn.Linear, nn.Conv2d)


class Upsample(nn.Module):
    """Twice the size by nearest neighbour and a convolution: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2 H, 2 W)


def zero(module: M) -> M:
    """``module`` with weight and bias zeroed: what ends a branch starts by adding nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
