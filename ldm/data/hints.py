"""Hints, what a ControlNet is shown of a picture, by their names in a configuration: ``HINTS``.

Legend: B batch, H W size of the picture, h w size of the hint, k pixels of the picture for one of the hint's, a side.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

LUMA = (0.299, 0.587, 0.114)  # of Rec. 601


class Hint(NamedTuple):
    """Something of a picture of the same size; or else, where ``factor`` is above 1, a smaller picture of the same."""

    of: Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, 3, h, w), both in [-1, 1]
    factor: int = 1  # k; h and w are H / k and W / k, rounded up


def edges(image: Tensor) -> Tensor:
    """The length of the colours' central differences, the largest of the three: -1 on flat ground, 1 for the most.

    Of the colours, for two that differ may be equally bright.
    """
    wide = pad(image, (1, 1, 1, 1), mode="replicate")  # (B, 3, H + 2, W + 2)
    across = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]  # (B, 3, H, W)
    down = wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]  # (B, 3, H, W)
    steep = torch.hypot(across, down).amax(dim=1, keepdim=True)  # (B, 1, H, W), 2 for black beside white
    return (steep.clamp(max=2) - 1).expand_as(image)


def gray(image: Tensor) -> Tensor:
    """The brightness, in all three channels."""
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    return (weights * image).sum(dim=1, keepdim=True).expand_as(image)


def means(image: Tensor, factor: int) -> Tensor:
    """Those of squares of ``factor`` x ``factor`` pixels; what is left at the far edges has smaller squares."""
    height, width = image.shape[2:]
    wide = pad(image, (0, -width % factor, 0, -height % factor))
    inside = pad(image.new_ones(1, 1, height, width), (0, -width % factor, 0, -height % factor))
    return avg_pool2d(wide, factor) / avg_pool2d(inside, factor)  # (B, 3, h, w)


def enlarged(hint: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """``hint`` (B, C, h, w) at its places in a picture of ``size``: (B, C, H, W), its pixels squares of ``factor``."""
    return interpolate(hint, scale_factor=factor, mode="nearest")[:, :, : size[0], : size[1]]


def with_noise(hint: Tensor, noise_level: Tensor, noise: Tensor) -> Tensor:
    """``hint`` with noise on it as ``noise_level`` s (B,) in [0, 1] says, and s as a fourth channel: (B, 4, h, w).

    sqrt(1 - s^2) hint + s noise: noise-conditioning augmentation (Ho et al. 2021, arXiv:2106.15282, Sec. 4), of whose
    level the network is told as that of Imagen (Saharia et al. 2022, arXiv:2205.11487). What has learned to follow
    such a hint does not lean on details that a model before it may have wrong. ``noise`` is (B, 3, h, w) of N(0, I).
    """
    s = noise_level.view(-1, 1, 1, 1).to(hint.dtype)
    noised = (1 - s.square()).sqrt() * hint + s * noise
    return torch.cat([noised, s.expand(-1, 1, *hint.shape[2:])], dim=1)


HINTS = {
    "edges": Hint(edges),
    "gray": Hint(gray),
    "half": Hint(partial(means, factor=2), 2),
    "quarter": Hint(partial(means, factor=4), 4),
    "coarse": Hint(partial(means, factor=8), 8),
}
