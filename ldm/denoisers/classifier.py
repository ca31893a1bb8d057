"""A classifier of noised latents: which words would stand in the caption of what is hidden in the noise?

ADM's classifier (Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 4.1), with words of the captions in place of ImageNet's
classes: so it learns from any captioned pictures, and what is asked of it is any choice of words.

Legend: B batch, C latent channels, H W latent size, K words, E width of the time embedding.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ldm.denoisers.embeddings import TimeEmbedding
from ldm.denoisers.unet import Downsample, ResBlock, UNetConfig, group_norm

SHAPES_WORLD = (
    *("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"),
    *("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    *("black", "gray", "white", "navy", "small", "large", "two", "three", "four"),
)


@dataclass
class ClassifierConfig:
    """By default it looks for the attributes of the shapes world."""

    words: list[str] = field(default_factory=lambda: [*SHAPES_WORLD])
    width: int = 64  # channels of the first level, twice as many at the second
    blocks: int = 2  # residual blocks a level

    def __post_init__(self) -> None:
        if not self.words or len(set(self.words)) < len(self.words):
            raise ValueError(f"words {self.words} must be one word or more, each once; write words=[red,blue]")
        for name in ("width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd (time embedding); try width={self.width + 1}")

    def build(self, channels: int) -> "Classifier":
        return Classifier(self, channels)


def present(captions: Sequence[str], words: Sequence[str]) -> Tensor:
    """1 where a word, or its plural, stands in a caption, else 0: (B, K), float32."""
    found = [re.compile(rf"\b{re.escape(word)}(e?s)?\b", re.IGNORECASE) for word in words]
    return torch.tensor([[float(bool(word.search(caption))) for word in found] for caption in captions])


class Classifier(nn.Module):
    """Logits (B, K) that each word is in the caption, of noised latents (B, C, H, W) and times (B,) in [0, 1].

    The latents are scaled to unit variance first, as ``ldm.diffusion.process.unit`` does.
    """

    def __init__(self, config: ClassifierConfig, channels: int) -> None:
        super().__init__()
        self.words = list(config.words)
        width = config.width
        shape = UNetConfig(width=width, heads=1, scale_shift=True)
        self.time = TimeEmbedding(width, 4 * width)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.fine = nn.ModuleList(ResBlock(shape, width, width) for _ in range(config.blocks))
        self.down = Downsample(width)
        widths = [width, *[2 * width] * config.blocks]
        self.coarse = nn.ModuleList(ResBlock(shape, a, b) for a, b in pairwise(widths))
        self.norm = group_norm(2 * width)
        self.out = nn.Linear(2 * width, len(config.words))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = silu(self.time(t))  # (B, E)
        h = self.conv_in(x)  # (B, D, H, W)
        for block in self.fine:
            h = block(h, c)  # (B, D, H, W)
        h = self.down(h)  # (B, D, H / 2, W / 2)
        for block in self.coarse:
            h = block(h, c)  # (B, 2 D, H / 2, W / 2)
        return self.out(silu(self.norm(h)).mean(dim=(2, 3)))  # (B, K)
