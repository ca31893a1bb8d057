"""Hints, what a ControlNet is shown of a picture: functions from (B, 3, H, W) to the same, both in [-1, 1].

``HINTS`` maps a configuration's name to it.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

BLOCK = 8  # pixels a side
LUMA = (0.299, 0.587, 0.114)  # of Rec. 601


def edges(image: Tensor) -> Tensor:
    """The length of the colours' central differences, the largest of the three: -1 on flat ground, 1 for the most.

    Of the colours, for two that differ may be equally bright.
    """
    wide = pad(image, (1, 1, 1, 1), mode="replicate")  # (B, 3, H + 2, W + 2)
    across = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]  # (B, 3, H, W)
    down = wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]  # (B, 3, H, W)
    steep = torch.hypot(across, down).amax(dim=1, keepdim=True)  # (B, 1, H, W), 2 for black beside white
    return (steep.clamp(max=2) - 1).expand_as(image)


def coarse(image: Tensor) -> Tensor:
    """The means of squares of ``BLOCK`` x ``BLOCK`` pixels, at their places; smaller squares in a smaller picture."""
    size = min(BLOCK, *image.shape[2:])
    means = avg_pool2d(image, size, ceil_mode=True, count_include_pad=False)
    return interpolate(means, scale_factor=size, mode="nearest")[:, :, : image.shape[2], : image.shape[3]]


def gray(image: Tensor) -> Tensor:
    """The brightness, in all three channels."""
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    return (weights * image).sum(dim=1, keepdim=True).expand_as(image)


HINTS = {"edges": edges, "coarse": coarse, "gray": gray}
