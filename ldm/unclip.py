"""unCLIP: p(x | y) = p(x | c, y) p(c | y), where c is CLIP's embedding of the picture x, and y the caption.

Ramesh et al. 2022 (arXiv:2204.06125). A prior, which is a denoiser of embeddings, draws c from the caption; the
denoiser of latents is told c where it else is told the caption's pooled state.

Legend: B batch, P channels of an embedding.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.denoisers.dit import DiT, DiTConfig
from ldm.diffusion.grids import uniform
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.process import Process
from ldm.diffusion.schedules import CosineConfig
from ldm.diffusion.targets import TARGETS
from ldm.samplers import ImageNoise
from ldm.samplers.ddim import ddim
from ldm.text.picture import ClipPicture
from ldm.types import Condition, TextEncoder

# the network says c itself rather than the noise (Sec. 2.2, eq. 2)
PROCESS = Process(CosineConfig().build(), TARGETS["x0"])


@dataclass
class UnclipConfig:
    """CLIP's embedding of the picture between the caption and the denoiser."""

    decoder: bool = False  # the denoiser is told the embedding, which the prior of train_unclip.py draws from the text
    width: int = 256  # channels of the prior
    depth: int = 4  # its blocks
    heads: int = 4  # its attention heads
    pictures: int = 20_000  # whose embeddings the prior learns, taken once
    steps: int = 30  # of ddim with eta 1 in which it draws
    scale: float = 1.0  # of its guidance

    def __post_init__(self) -> None:
        for name in ("pictures", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        self.network()  # refuses sizes that do not fit

    def network(self) -> DiTConfig:
        """The prior's network: the DiT of a picture of a single place."""
        return DiTConfig(width=self.width, depth=self.depth, heads=self.heads)

    def build(self, channels: int, text: TextEncoder) -> "EmbeddingPrior":
        """A prior of embeddings of ``channels`` with random weights, told what ``text`` says."""
        return EmbeddingPrior(self.network(), channels, text)


class EmbeddingPrior(DiT):
    """p(c | y): a denoiser of embeddings as (B, P, 1, 1), each channel of mean 0 and deviation 1 over the pictures."""

    def __init__(self, config: DiTConfig, channels: int, text: TextEncoder) -> None:
        sizes = {"text_width": text.width, "pooled_width": text.pooled_width}
        super().__init__(config, channels=channels, out_channels=channels, **sizes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def measure(self, embeddings: Tensor) -> None:
        """Take mean and deviation of ``embeddings`` (N, P)."""
        self.mean.copy_(embeddings.mean(dim=0))
        self.std.copy_(embeddings.std(dim=0, correction=0).clamp(min=1e-6))

    def scaled(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, P) of CLIP as they are drawn and told."""
        return (embeddings - self.mean) / self.std

    @torch.no_grad()
    def draw(self, cond: Condition, null: Condition, seeds: list[int], *, steps: int, scale: float) -> Tensor:
        """Embeddings (B, P), as ``scaled``, for the text ``cond``, row i from ``seeds[i]``.

        ``null`` is the empty prompt, a row for each.
        """
        noise = ImageNoise(seeds, (len(self.mean), 1, 1), self.mean.device)
        grid = uniform(PROCESS.schedule, steps)
        denoise = classifier_free(self, PROCESS, cond, null, scale)
        return ddim(denoise, noise() * grid[0].norm, grid, noise, eta=1.0).flatten(1)


class Unclip(NamedTuple):
    """Both towers' way to c: from a picture by CLIP, from a caption by the prior."""

    picture: ClipPicture
    prior: EmbeddingPrior
    steps: int
    scale: float

    def of_pictures(self, images: Tensor) -> Tensor:
        """c (B, P) of images (B, 3, H, W) in [-1, 1]."""
        return self.prior.scaled(self.picture(images))

    def of_text(self, cond: Condition, null: Condition, seeds: list[int]) -> Tensor:
        """c (B, P) drawn for the text ``cond``, row i from ``seeds[i]``; ``null`` is the empty prompt, of one row."""
        return self.prior.draw(cond, null.repeat(len(cond)), seeds, steps=self.steps, scale=self.scale)
