"""U-Net of latent diffusion: residual blocks that know the time, and spatial transformers that read the text.

Rombach et al. 2022 (arXiv:2112.10752, Sec. 3.3 and App. E.2.1), after ADM (Dhariwal & Nichol 2021, arXiv:2105.05233).
With width 320, multipliers [1, 2, 4, 4], attention levels [0, 1, 2], 8 heads, no pooled text and text of width 768 it
is that of Stable Diffusion 1.x.

Legend: B batch, C channels, O output channels, H W size at that level, N = H W image tokens, D width at that level,
E width of the time embedding, L text tokens, h heads, d = D / h.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, silu
from torch.utils.checkpoint import checkpoint

from ldm.blocks import Upsample, zero
from ldm.denoisers.attention import BACKENDS, CrossAttention, SelfAttention
from ldm.denoisers.embeddings import Prepared, TextEmbedding, TimeEmbedding, position_embedding
from ldm.types import Condition


@dataclass
class UNetConfig:
    """A U-Net with text; the class's own defaults suit latents of 8 x 8."""

    width: int = 128  # channels of the first level
    multipliers: list[int] = field(default_factory=lambda: [1, 2])  # width of each level / width; each halves the size
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention_levels: list[int] = field(
        default_factory=lambda: [0, 1]
    )  # levels with transformers; the middle has one too
    transformer_depth: int = 1  # transformer blocks after each residual block
    pooled: bool = True  # the pooled text joins the time; else the tokens alone tell, as in Stable Diffusion 1
    text_depth: int = 0  # transformer blocks over the text, trained with the network, before the image attends to it
    heads: int = 4  # attention heads at every level, where head_width is 0
    head_width: int = 0  # channels of each head, so that wider levels have more of them (ADM; Stable Diffusion 2: 64)
    qk_norm: bool = False  # RMSNorm of queries and keys: bounds the logits, which Muon at a high lr would let grow
    scale_shift: bool = False  # the time scales and shifts the second norm (ADM) instead of being added (LDM)
    groups: int = 0  # of each GroupNorm; 0: 32, or a quarter of the channels where that is less
    position: bool = False  # sines and cosines of each place are added to the input; else padding alone tells places
    dropout: float = 0.0  # probability, in the residual blocks
    attention: str = "auto"  # auto | sdpa | xformers | math
    checkpointing: bool = False  # recompute each block in the backward pass: less memory for a third more time

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "transformer_depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive; use at least 1")
        if self.text_depth < 0:
            raise ValueError(f"text_depth {self.text_depth} is negative; use 0 for none")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers {self.multipliers} must hold a positive number per level; try [1, 2]")
        levels = len(self.multipliers)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels holds {level}, but the levels are 0 to {levels - 1}; leave it out")
        if self.head_width < 0:
            raise ValueError(f"head_width {self.head_width} is negative; use 0 for as many heads at every level")
        if self.head_width and self.width % self.head_width:
            raise ValueError(
                f"width {self.width} is not divisible by head_width {self.head_width}; try head_width={self.width}"
            )
        if not self.head_width and self.width % self.heads:
            fitting = max(self.heads, self.width // self.heads * self.heads)
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; try width={fitting}")
        if self.groups < 0:
            raise ValueError(f"groups {self.groups} is negative; use 0 for 32, or fewer of narrow layers")
        if self.groups and self.width % self.groups:
            raise ValueError(f"width {self.width} is not divisible by groups {self.groups}; try groups=0")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd (time embedding); try width={self.width + 1}")
        if self.position and self.width % 4:
            fitting = -(-self.width // 4) * 4
            raise ValueError(f"width {self.width} is not divisible by 4 (position embedding); try width={fitting}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is not a probability below 1; use 0 for none")
        if self.attention not in BACKENDS:
            raise ValueError(f"attention '{self.attention}' is unknown; use one of {', '.join(BACKENDS)}")

    def heads_of(self, width: int) -> int:
        """The attention heads of a level of ``width`` channels."""
        return width // self.head_width if self.head_width else self.heads

    def build(self, *, channels: int, text_width: int, pooled_width: int, out_channels: int = 0) -> "UNet":
        """The network for latents of ``channels``; ``pooled_width`` 0, or no ``pooled``, means no pooled text.

        It says ``out_channels`` of numbers, 0 for as many as it sees; twice as many where it learns a variance too.
        """
        sizes = {"text_width": text_width, "pooled_width": pooled_width if self.pooled else 0}
        return UNet(self, channels=channels, out_channels=out_channels or channels, **sizes)


def group_norm(width: int, groups: int = 0, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm with so many groups, or 0 for 32, or as many of four channels or more as divide a narrow width.

    A group of a single channel would subtract the time embedding that was added to it.
    """
    groups = groups or next(g for g in range(max(1, min(32, width // 4)), 0, -1) if width % g == 0)
    return nn.GroupNorm(groups, width, eps=eps)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding between them, added to a skip."""

    def __init__(self, config: UNetConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1, self.conv1 = group_norm(in_width, config.groups), nn.Conv2d(in_width, out_width, 3, padding=1)
        self.time = nn.Linear(4 * config.width, (2 if config.scale_shift else 1) * out_width)
        self.norm2, self.conv2 = (
            group_norm(out_width, config.groups),
            zero(nn.Conv2d(out_width, out_width, 3, padding=1)),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Conv2d(in_width, out_width, 1) if in_width != out_width else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))  # (B, D, H, W)
        time = self.time(c)[:, :, None, None]  # (B, D or 2 D, 1, 1)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)  # 2 (B, D, 1, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        return self.skip(x) + self.conv2(self.dropout(silu(h)))  # (B, D, H, W)


class GEGLU(nn.Module):
    """Feed-forward layer with a gated GELU (Shazeer 2020, arXiv:2002.05202): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, 8 * width)
        self.fall = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.rise(x).chunk(2, dim=-1)  # 2 (B, N, 4 D)
        return self.fall(value * gelu(gate))  # (B, N, D)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and feed-forward, each on a norm and added."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        kind: dict[str, Any] = {"bias": False, "qk_norm": config.qk_norm, "backend": config.attention}
        heads = config.heads_of(width)
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, **kind)
        self.norm2, self.cross = nn.LayerNorm(width), CrossAttention(width, heads, **kind)
        self.norm3, self.feed = nn.LayerNorm(width), GEGLU(width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (B, N, D)
        x = x + self.cross(self.norm2(x), keys, values, mask)  # (B, N, D)
        return x + self.feed(self.norm3(x))  # (B, N, D)


class Stage(nn.Module):
    """A residual block, then a spatial transformer where the level has one."""

    def __init__(self, config: UNetConfig, in_width: int, width: int, *, transformer: bool) -> None:
        super().__init__()
        self.checkpointing = config.checkpointing
        self.residual = ResBlock(config, in_width, width)
        depth = config.transformer_depth if transformer else 0
        self.transformers = nn.ModuleList(TransformerBlock(config, width) for _ in range(depth))
        if transformer:
            self.norm = group_norm(width, config.groups, eps=1e-6)
            self.project_in = nn.Conv2d(width, width, 1)
            self.project_out = zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, c: Tensor, keys_values: Iterator[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
        """Takes one pair of ``keys_values`` per transformer block; ``c`` is the time embedding (B, E)."""
        x = self._call(self.residual, x, c)  # (B, D, H, W)
        if not len(self.transformers):
            return x
        tokens = rearrange(self.project_in(self.norm(x)), "b c h w -> b (h w) c")  # (B, N, D)
        tokens = tokens.contiguous()  # from transposed ones torch 2.14 compiles wrong gradients of the norms on a CPU
        for block in self.transformers:
            tokens = self._call(block, tokens, *next(keys_values), mask)  # (B, N, D)
        return x + self.project_out(rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))  # (B, D, H, W)

    def _call(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        recompute = self.checkpointing and torch.is_grad_enabled()
        return checkpoint(module, *inputs, use_reentrant=False) if recompute else module(*inputs)


class Downsample(nn.Module):
    """Half the size by a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # (B, D, H / 2, W / 2)


class UNet(nn.Module):
    """F (B, O, H, W) of a noised latent (B, C, H, W), times (B,) in [0, 1] and a ``Condition`` or its ``prepare``."""

    def __init__(
        self, config: UNetConfig, *, channels: int, out_channels: int, text_width: int, pooled_width: int
    ) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.multiple = 2 ** (len(widths) - 1)  # the sides of a latent must be multiples of it
        self.position = config.position
        self.time = TimeEmbedding(config.width, 4 * config.width)
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1)

        down: list[nn.Module] = []
        skips = [width := config.width]  # widths of what the way up will take from the way down
        for level, out_width in enumerate(widths):
            for _ in range(config.blocks):
                down.append(Stage(config, width, out_width, transformer=level in config.attention_levels))
                skips.append(width := out_width)
            if level < len(widths) - 1:
                down.append(Downsample(width))
                skips.append(width)
        self.down = nn.ModuleList(down)
        self.skip_widths = tuple(skips)
        self.middle = Stage(config, width, width, transformer=True)
        self.middle_end = ResBlock(config, width, width)

        up: list[nn.Module] = []
        for level, out_width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                transformer = level in config.attention_levels
                up.append(Stage(config, width + skips.pop(), out_width, transformer=transformer))
                width = out_width
            if level > 0:
                up.append(Upsample(width))
        self.up = nn.ModuleList(up)
        self.norm = group_norm(width, config.groups)
        self.conv_out = zero(nn.Conv2d(width, out_channels, 3, padding=1))
        self.prepare = TextEmbedding(  # Condition -> Prepared, which forward takes in its place
            [module for module in self.modules() if isinstance(module, CrossAttention)],
            4 * config.width,
            text_width=text_width,
            pooled_width=pooled_width,
            depth=config.text_depth,
            norm=False,
            bias=False,
            qk_norm=config.qk_norm,
            backend=config.attention,
        )

    def forward(self, x: Tensor, t: Tensor, cond: Condition | Prepared) -> Tensor:
        """F (B, O, H, W) in x's dtype. Raises ValueError where H or W is not divisible by the total downsampling."""
        return self.decode(self.encode(x, t, cond)).to(x.dtype)

    def encode(self, x: Tensor, t: Tensor, cond: Condition | Prepared, hint: Tensor | None = None) -> "Encoded":
        """The way down and the middle; ``hint`` (B, D, H, W) is added to the first features of ``x``."""
        height, width = x.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"latent size {height}x{width} is not divisible by {self.multiple}; change the image size")
        text = self.prepare(cond) if isinstance(cond, Condition) else cond
        pairs = iter(text.keys_values)
        c = self.time(t) if text.pooled is None else self.time(t) + text.pooled  # (B, E)
        c = silu(c)
        h = self.conv_in(x)  # (B, D, H, W)
        if hint is not None:
            h = h + hint  # (B, D, H, W)
        if self.position:
            place = position_embedding(height, width, h.shape[1], x.device)  # (N, D)
            h = h + rearrange(place, "(h w) d -> d h w", h=height).to(h.dtype)  # (B, D, H, W)
        skips = [h]
        for part in self.down:
            h = part(h, c, pairs, text.mask) if isinstance(part, Stage) else part(h)  # (B, D, H / 2^i, W / 2^i)
            skips.append(h)
        h = self.middle_end(self.middle(h, c, pairs, text.mask), c)  # (B, D, H / multiple, W / multiple)
        return Encoded(skips, h, c, list(pairs), text.mask)

    def decode(self, encoded: "Encoded") -> Tensor:
        """The way up from there: F (B, O, H, W)."""
        skips, pairs, h = list(encoded.skips), iter(encoded.keys_values), encoded.middle
        for part in self.up:
            if isinstance(part, Stage):
                h = part(torch.cat([h, skips.pop()], dim=1), encoded.c, pairs, encoded.mask)  # (B, D, H / 2^i, W / 2^i)
            else:
                h = part(h)  # (B, D, H / 2^(i - 1), W / 2^(i - 1))
        return self.conv_out(silu(self.norm(h)))  # (B, O, H, W)


class Encoded(NamedTuple):
    """What the way up of a U-Net takes from the way down."""

    skips: list[Tensor]  # (B, D, H / 2^i, W / 2^i) each, the largest first
    middle: Tensor  # (B, D, H / multiple, W / multiple)
    c: Tensor  # (B, E), the time and the pooled text
    keys_values: list[tuple[Tensor, Tensor]]  # of the transformers on the way up
    mask: Tensor  # (B, 1, 1, L)
