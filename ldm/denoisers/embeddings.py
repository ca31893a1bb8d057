"""What a denoiser is told besides the latent: the time, the text, and where each token stands.

Legend: B batch, N = H W image tokens, D width, L text tokens, T text width, P pooled width,
h heads, d head width.
"""

from functools import lru_cache
from math import log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.denoisers.attention import CrossAttention, KeysValues
from ldm.denoisers.refiner import TextRefiner
from ldm.types import Condition


class Prepared(NamedTuple):
    """All that a network derives from the text alone: made once per prompt, used at every step of a sampler."""

    keys_values: list[tuple[Tensor, Tensor]]  # (B, h, L, d) each, one pair per cross-attention, in order of use
    mask: Tensor  # (B, 1, 1, L) bool, True for a token and False for padding
    pooled: Tensor | None  # (B, D), added to the time embedding; None where the network has no pooled text


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids (B, width), float32, of times ``t`` (B,) in [0, 1], scaled by 1000 (DDPM, arXiv:2006.11239, App. B).

    Cosines first, then sines, with periods from 2 pi up to 10,000 * 2 pi (Vaswani et al., arXiv:1706.03762, Sec. 3.5).
    """
    half = torch.arange(width // 2, device=t.device)  # (width / 2,)
    angles = 1000 * t.float()[:, None] * torch.exp(-log(10_000) * half / (width // 2))  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, width)


class TimeEmbedding(nn.Module):
    """An MLP on the sinusoids of the time: (B,) -> (B, D)."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.linear1 = nn.Linear(frequencies, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        embedded = timestep_embedding(t, self.frequencies).to(self.linear1.weight.dtype)  # (B, frequencies)
        return self.linear2(nn.functional.silu(self.linear1(embedded)))  # (B, D)


class TextEmbedding(nn.Module):
    """Derives from a ``Condition`` all that a network needs of it: the keys and values of every cross-attention.

    ``crosses`` are the network's cross-attentions in order of use. The pooled text is normalised and projected to
    ``width``; ``pooled_width`` 0 leaves it out. ``norm`` normalises the tokens too, so that any scale of them serves.
    ``depth`` blocks of a ``TextRefiner`` come before all but the pooled text.
    """

    def __init__(
        self,
        crosses: list[CrossAttention],
        width: int,
        *,
        text_width: int,
        pooled_width: int,
        depth: int,
        norm: bool,
        bias: bool,
        qk_norm: bool,
        backend: str,
    ) -> None:
        super().__init__()
        self.refiner = TextRefiner(text_width, depth, qk_norm=qk_norm, backend=backend)
        self.norm = nn.LayerNorm(text_width) if norm else nn.Identity()
        self.keys_values = nn.ModuleList(
            KeysValues(text_width, cross.width, cross.heads, bias=bias, qk_norm=qk_norm) for cross in crosses
        )
        self.pooled = (
            nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, width)) if pooled_width else None
        )

    def forward(self, cond: Condition) -> Prepared:
        mask = cond.mask[:, None, None, :]  # (B, 1, 1, L)
        tokens = self.norm(self.refiner(cond.tokens, mask))  # (B, L, T)
        keys_values = [layer(tokens) for layer in self.keys_values]  # 2 (B, h, L, d) each
        pooled = self.pooled(cond.pooled) if self.pooled is not None else None  # (B, D)
        return Prepared(keys_values, mask, pooled)


def position_embedding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids (height * width, dim), float32, of the tokens' places: half the channels for rows, half for columns.

    Places are centred and scaled to a square of area 16 x 16, so that grids of other sizes and shapes interpolate; a
    16 x 16 grid has the unit spacing of Peebles & Xie 2022 (arXiv:2212.09748).
    """
    if torch.compiler.is_compiling():  # dynamo looks through a cache, and warns that it does
        return _places(height, width, dim, device)
    return _kept_places(height, width, dim, device)


def _places(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    spacing = 16 / sqrt(height * width)
    rows = spacing * (torch.arange(height, device=device) - (height - 1) / 2)  # (H,)
    columns = spacing * (torch.arange(width, device=device) - (width - 1) / 2)  # (W,)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (H, W, 2)
    omega = torch.exp(-log(10_000) * torch.arange(dim // 4, device=device) / (dim // 4))  # (dim / 4,)
    angles = places[..., None] * omega  # (H, W, 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(height * width, dim)  # (N, dim)


_kept_places = lru_cache(maxsize=64)(_places)
