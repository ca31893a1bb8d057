"""unCLIP: p(x | y) = p(x | c, y) p(c | y), where c is CLIP's embedding of the picture x, and y the caption.

Ramesh et al. 2022 (arXiv:2204.06125). A prior, which is a denoiser of embeddings, draws c from the caption; the
denoiser of latents is told c where it else is told the caption's pooled state.

Legend: B batch, P channels of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
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

ANOTHER = 6_364_136_223_846_793_005  # by which a seed is multiplied for draws that are independent of its own


@cache
def embedding_process() -> Process:
    """That of embeddings: the network says c itself rather than the noise (Sec. 2.2, eq. 2)."""
    return Process(CosineConfig().build(), TARGETS["x0"])


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
    words_dropout: float = 0.1  # share of captions whose words the denoiser is not told, but c

    def __post_init__(self) -> None:
        for name, least in (("pictures", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is not at least {least}")
        if not abs(self.scale) < inf:
            raise ValueError(f"scale {self.scale} is not a finite number; 1 is no guidance")
        if not 0 <= self.words_dropout <= 1:
            raise ValueError(f"words_dropout {self.words_dropout} is not in [0, 1]; try words_dropout=0.1")
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
        self.std.copy_(embeddings.std(dim=0, correction=0).clamp(min=1e-4))  # which half precision still tells

    def scaled(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, P) of CLIP as they are drawn and told."""
        return (embeddings - self.mean) / self.std

    @torch.no_grad()
    def draw(self, cond: Condition, null: Condition, seeds: list[int], *, steps: int, scale: float) -> Tensor:
        """Embeddings (B, P), as ``scaled``, for the text ``cond``, row i from ``seeds[i]``.

        ``null`` is the empty prompt, a row for each.
        """
        own = [(seed + 1) * ANOTHER % 2**63 for seed in seeds]  # the picture's noise is drawn from the seeds themselves
        noise, process = ImageNoise(own, (len(self.mean), 1, 1), self.mean.device), embedding_process()
        grid = uniform(process.schedule, steps)
        denoise = classifier_free(self, process, cond, null, scale)
        return ddim(denoise, noise() * grid[0].norm, grid, noise, eta=1.0).flatten(1)


class Unclip(NamedTuple):
    """Both towers' way to c: from a picture by CLIP, from a caption by the prior."""

    picture: ClipPicture
    prior: EmbeddingPrior
    steps: int
    scale: float
    given: Tensor | None = None  # c (1, P) that drawn images have, whatever their prompt

    def of_pictures(self, images: Tensor) -> Tensor:
        """c (B, P) of images (B, 3, H, W) in [-1, 1]."""
        return self.prior.scaled(self.picture(images))

    def of_text(self, cond: Condition, null: Condition, seeds: list[int]) -> Tensor:
        """c (B, P) drawn for the text ``cond``, row i from ``seeds[i]``; ``null`` is the empty prompt, of one row."""
        return self.prior.draw(cond, null.repeat(len(cond)), seeds, steps=self.steps, scale=self.scale)

    def told(self, prompts: Sequence[str], cond: Condition, null: Condition, seeds: list[int] | None) -> Condition:
        """``cond``, the text of ``prompts``, with c in the pooled state's place: zero where a prompt is empty.

        Without ``seeds`` every row has the seed 0, and nothing is ``given``.
        """
        if self.given is not None and seeds is not None:
            return replace(cond, pooled=self.given.expand(len(cond), -1))
        embeddings = torch.zeros(len(cond), len(self.prior.mean), device=cond.pooled.device)
        rows = [row for row, prompt in enumerate(prompts) if prompt.strip()]
        if rows:
            own = [0 if seeds is None else seeds[row] for row in rows]
            embeddings[rows] = self.of_text(cond[rows], null, own).to(embeddings.dtype)
        return replace(cond, pooled=embeddings)
