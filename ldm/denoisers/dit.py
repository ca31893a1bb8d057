"""DiT: a transformer on patches of the latent, modulated by time and pooled text, with cross-attention to text tokens.

Blocks with adaLN-Zero are those of Peebles & Xie 2022 (arXiv:2212.09748, Sec. 3.2); the cross-attention between
self-attention and MLP, with a zero-initialised output, is that of PixArt-alpha (arXiv:2310.00426, Sec. 2.3).

Legend: B batch, C channels, O output channels, H W latent size, p patch, N = (H / p)(W / p) image tokens, D width,
h heads, d = D / h; L text tokens, T text width.
"""

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.blocks import zero
from ldm.denoisers.attention import BACKENDS, CrossAttention, SelfAttention
from ldm.denoisers.embeddings import Prepared, TextEmbedding, TimeEmbedding, position_embedding
from ldm.types import Condition


@dataclass
class DiTConfig:
    """A diffusion transformer; the class's own defaults have 12 M parameters and suit latents of 8 x 8."""

    patch: int = 1  # side of the square of latent pixels that makes one token
    width: int = 256  # channels of a token
    depth: int = 8  # blocks
    pooled: bool = True  # the pooled text joins the time; else the tokens alone tell
    text_depth: int = 0  # transformer blocks over the text, trained with the network, before the image attends to it
    heads: int = 4  # attention heads per block
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    qk_norm: bool = True  # RMSNorm of queries and keys: bounds the logits, so that bfloat16 training stays stable
    attention: str = "auto"  # auto | sdpa | xformers | math
    checkpointing: bool = False  # recompute each block in the backward pass: less memory for a third more time

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive; use at least 1")
        if self.text_depth < 0:
            raise ValueError(f"text_depth {self.text_depth} is negative; use 0 for none")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} is not positive; the usual ratio is 4")
        if self.width % self.heads:
            fitting = max(self.heads, self.width // self.heads * self.heads)
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; try width={fitting}")
        if self.width % 4:
            fitting = -(-self.width // 4) * 4
            raise ValueError(f"width {self.width} is not divisible by 4 (position embedding); try width={fitting}")
        if self.attention not in BACKENDS:
            raise ValueError(f"attention '{self.attention}' is unknown; use one of {', '.join(BACKENDS)}")

    def build(self, *, channels: int, text_width: int, pooled_width: int, out_channels: int = 0) -> "DiT":
        """The network for latents of ``channels``; ``pooled_width`` 0, or no ``pooled``, means no pooled text.

        It says ``out_channels`` of numbers, 0 for as many as it sees; twice as many where it learns a variance too.
        """
        sizes = {"text_width": text_width, "pooled_width": pooled_width if self.pooled else 0}
        return DiT(self, channels=channels, out_channels=out_channels or channels, **sizes)


def xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x`` (B, N, D) scaled by 1 + ``scale`` and shifted, both (B, 1, D)."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; the first and last modulated and gated by the time embedding."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, config.heads, bias=True, qk_norm=config.qk_norm, backend=config.attention)
        self.cross = CrossAttention(width, config.heads, bias=True, qk_norm=config.qk_norm, backend=config.attention)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.apply(xavier)
        nn.init.zeros_(self.modulation.weight)  # gates and cross-attention begin at zero, the block as the identity
        nn.init.zeros_(self.cross.out.weight)

    def forward(self, x: Tensor, c: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)  # 6 (B, 1, D)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))  # (B, N, D)
        x = x + self.cross(x, keys, values, mask)  # (B, N, D)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # (B, N, D)


class Head(nn.Module):
    """Modulated norm and a linear map to the pixels of each patch: (B, N, D) -> (B, N, p p O)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.out = zero(nn.Linear(width, out_width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # 2 (B, 1, D)
        return self.out(modulate(self.norm(x), shift, scale))  # (B, N, p p O)


class DiT(nn.Module):
    """F (B, O, H, W) of a noised latent (B, C, H, W), times (B,) in [0, 1] and a ``Condition`` or its ``prepare``."""

    def __init__(
        self, config: DiTConfig, *, channels: int, out_channels: int, text_width: int, pooled_width: int
    ) -> None:
        super().__init__()
        self.patch = self.multiple = config.patch  # the sides of a latent must be multiples of it
        self.checkpointing = config.checkpointing
        self.embed = nn.Linear(channels * config.patch**2, config.width)
        self.time = TimeEmbedding(256, config.width)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(config.width, out_channels * config.patch**2)
        self.prepare = TextEmbedding(  # Condition -> Prepared, which forward takes in its place
            [block.cross for block in blocks],
            config.width,
            text_width=text_width,
            pooled_width=pooled_width,
            depth=config.text_depth,
            norm=True,
            bias=True,
            qk_norm=config.qk_norm,
            backend=config.attention,
        )
        self.embed.apply(xavier)
        for part in self.prepare.children():
            if part is not self.prepare.refiner:  # which begins as the identity
                part.apply(xavier)
        for linear in (self.time.linear1, self.time.linear2):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | Prepared) -> Tensor:
        """F (B, O, H, W) in x's dtype. Raises ValueError where H or W is not divisible by the patch."""
        p, (height, width) = self.patch, x.shape[2:]
        if height % p or width % p:
            raise ValueError(f"latent size {height}x{width} is not divisible by patch {p}; change the image size")
        text = self.prepare(cond) if isinstance(cond, Condition) else cond
        tokens = self.embed(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p))  # (B, N, D)
        place = position_embedding(height // p, width // p, tokens.shape[-1], x.device)  # (N, D)
        tokens = tokens + place.to(x.dtype)  # (B, N, D)
        c = self.time(t) if text.pooled is None else self.time(t) + text.pooled  # (B, D)
        c = nn.functional.silu(c)
        for block, (keys, values) in zip(self.blocks, text.keys_values, strict=True):
            recompute = self.checkpointing and torch.is_grad_enabled()
            call = partial(checkpoint, block, use_reentrant=False) if recompute else block
            tokens = call(tokens, c, keys, values, text.mask)  # (B, N, D)
        pixels = self.head(tokens, c).to(x.dtype)  # (B, N, p p O)
        return rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)  # (B, O, H, W)
