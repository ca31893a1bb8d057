"""The critic of reconstructions: a convolutional network that tells real patches from decoded ones.

Legend: B batch, H W image size, h w patches that have a logit each.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from ldm.autoencoders.blocks import group_norm

GROUPS = 32  # of a norm
SLOPE = 0.2  # of a LeakyReLU's negative side
WIDEST = 8  # times the first level's width


@dataclass
class AdversarialConfig:
    """A discriminator in training, and what its opinion weighs; weight 0 builds none."""

    weight: float = 0.0  # of its loss, which at 1 pulls at the decoder's last layer as hard as the reconstruction's
    start: int = 0  # optimizer step from which on it is listened to; pictures should be told by then
    lead: int = 0  # optimizer steps before ``start`` that it learns already, so that what is listened to is no guess
    width: int = 64  # channels of the first level
    layers: int = 3  # strided convolutions; a logit's kernels see 70 pixels with three, 34 with two, 16 with one
    lr: float = 1e-4  # peak of its AdamW, with a warm-up as the autoencoder's from where it begins to learn, and decay
    r1: float = 0.0  # weight of half the squared gradient at real images; 0 for none
    r1_every: int = 16  # optimizer steps from one such penalty, which counts for them all, to the next

    def __post_init__(self) -> None:
        for name in ("width", "layers", "r1_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1; try {name}=1")
        for name in ("weight", "start", "lead", "r1"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is not a finite number of at least 0; try {name}=0")
        if self.lead > self.start:
            raise ValueError(
                f"lead {self.lead} is more than the {self.start} steps before start; try lead={self.start}"
            )
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr {self.lr} is not a positive number; try lr=1e-4")

    def check(self, size: int) -> None:
        """Raise ValueError where images of ``size`` pixels are too small for so many layers."""
        if self.weight and size // 2**self.layers < 3:
            fitting = max(1, (size // 3).bit_length() - 1)
            raise ValueError(f"layers {self.layers} leave nothing of images of {size} pixels; try layers={fitting}")

    def build(self) -> "Discriminator":
        return Discriminator(self.width, self.layers)


class Discriminator(nn.Sequential):
    """Images (B, 3, H, W) in [-1, 1] to logits (B, 1, h, w), one a patch: pix2pix's PatchGAN (arXiv:1611.07004).

    Its norms are of groups of channels and not of the batch: an image is judged alike alone, in a batch of two and on
    any number of processes, and real and decoded ones may be judged at once.
    """

    def __init__(self, width: int, layers: int) -> None:
        widths = [width * min(2**level, WIDEST) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for level, (channels, out) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < layers else 1
            parts.append(nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False))  # the norm has one
            parts += [group_norm(out, GROUPS), nn.LeakyReLU(SLOPE)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = super().forward(image)
        return logits
