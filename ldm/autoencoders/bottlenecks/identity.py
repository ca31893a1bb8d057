"""No bottleneck but the latent's size."""

from dataclasses import dataclass

from torch import Tensor

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code


@dataclass
class IdentityConfig(BottleneckConfig):
    """A plain autoencoder."""

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
