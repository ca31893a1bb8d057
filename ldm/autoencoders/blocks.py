"""Convolutional encoder and decoder of the first stage (Rombach et al. 2022, arXiv:2112.10752, after VQGAN).

Legend: B batch, C channels, H W size at that level.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.blocks import Upsample

EPS = 1e-6
Norm = Callable[[int], nn.Module]  # channels -> what normalises (B, channels, H, W)


class ChannelNorm(nn.Module):
    """x / rms(x) over the channels of each position, scaled and shifted by channel: (B, C, H, W) -> (B, C, H, W).

    Pixel norm (Karras et al. 2018, arXiv:1710.10196, Sec. 4.2) with a learned scale and shift. Its statistics are
    local: how one thing in a picture is coded does not depend on what else is in it, as it does with GroupNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # squares and their sum want more bits than autocast leaves
        wide = wide * wide.square().mean(dim=1, keepdim=True).add(EPS).rsqrt()  # (B, C, H, W)
        return (wide * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def group_norm(channels: int, groups: int) -> nn.Module:
    """GroupNorm with that many groups, or as many as divide a narrow width."""
    groups = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=EPS)


def channel_norm(channels: int, groups: int) -> nn.Module:
    """ChannelNorm, which has no groups."""
    return ChannelNorm(channels)


NORMS = {"group": group_norm, "channel": channel_norm}


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution on the skip where the width changes."""

    def __init__(self, channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Single-head self-attention over all positions, added to its input."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        qkv = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        q, k, v = qkv.contiguous()  # else no kernel takes them but the one that holds all (H W)^2 products
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        return x + self.out(rearrange(h, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded right and below as in LDM."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)


class Bound(nn.Module):
    """tanh in single precision, whose steps near -1 and 1 are fine enough for a probability there."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().tanh()


class Stack(NamedTuple):
    """What encoder and decoder are built from."""

    widths: list[int]  # channels of each level
    blocks: int  # residual blocks a level
    patch: int  # pixels folded into channels before the first convolution: a cheap start for small machines
    attention: bool  # in the middle
    norm: Norm


def middle(stack: Stack) -> nn.Sequential:
    """Residual block, optional attention, residual block at the lowest resolution."""
    width, norm = stack.widths[-1], stack.norm
    mixing = [Attention(width, norm)] if stack.attention else []
    return nn.Sequential(ResBlock(width, width, norm), *mixing, ResBlock(width, width, norm))


def residual_blocks(channels: int, width: int, blocks: int, norm: Norm) -> list[nn.Module]:
    """The residual blocks of one size, the first of which changes the width."""
    return [ResBlock(channels if i == 0 else width, width, norm) for i in range(blocks)]


AT_LATENT_SIZE = {"encoder": 4, "decoder": 2}  # parts that work there: an encoder's last, a decoder's first


def encoder(in_channels: int, out_channels: int, stack: Stack) -> nn.Sequential:
    """(B, in, H, W) -> (B, out, H / f, W / f) with f = patch * 2^(len(widths) - 1)."""
    widths, _, patch, _, norm = stack
    parts: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)]
    for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
        if i > 0:
            parts.append(Downsample(before))
        parts += residual_blocks(before, width, stack.blocks, norm)
    parts += [middle(stack), norm(widths[-1]), nn.SiLU()]
    return nn.Sequential(*parts, nn.Conv2d(widths[-1], out_channels, 3, padding=1))


def decoder(in_channels: int, out_channels: int, stack: Stack) -> nn.Sequential:
    """(B, in, H, W) -> (B, out, f H, f W): the encoder's mirror, with one more residual block a level as in LDM."""
    widths, _, patch, _, norm = stack
    parts: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1), middle(stack)]
    for i, (before, width) in enumerate(pairwise([widths[-1], *reversed(widths)])):
        if i > 0:
            parts.append(Upsample(before))
        parts += residual_blocks(before, width, stack.blocks + 1, norm)
    parts += [norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1)]
    return nn.Sequential(*parts, nn.PixelShuffle(patch))
