"""Large pictures in bounded memory: one after another, each in overlapping tiles that are blended.

A tile's result is that of the whole picture where the network looks no farther than the tile's margin. Group norms look
at all of a tile: there tiles differ in their tones, and blending only makes the change gradual.

Legend: B batch, C channels, H W size, n tiles along an axis.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

OVERLAP = 1 / 4  # of a tile's side, which it shares with the next
MARGIN = 1 / 4  # of that at either end, which counts nothing: there a tile differs most from the whole
LEAST_PLACES = 8  # of a tile's side, so that its overlap has a middle


class Span(NamedTuple):
    """A tile's place along an axis, and how much each place of its result counts; over all tiles that is 1."""

    start: int
    stop: int
    weights: Tensor


def spans(length: int, tile: int, grow: int = 1) -> list[Span]:
    """Tiles of ``tile`` places, spread evenly over ``length``, each place ``grow`` of the result.

    Where two tiles overlap, the weight of one falls on a line as that of the other rises, over the middle half of what
    they share. What is no longer than a tile is one.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length * grow))]
    overlap = int(tile * OVERLAP)
    n = -(-(length - overlap) // (tile - overlap))
    starts = [i * (length - tile) // (n - 1) for i in range(n)]
    places = torch.arange(length * grow) + 0.5
    heights = torch.full((n, length * grow), torch.inf)
    for i in range(n):  # the distance from the tile's edges, but for those of the whole
        if i > 0:
            heights[i] = places - grow * starts[i]
        if i < n - 1:
            heights[i] = heights[i].minimum(grow * (starts[i] + tile) - places)
    heights = (heights - grow * overlap * MARGIN).clamp(min=0)  # (n, length grow)
    weights = heights / heights.sum(dim=0)
    return [
        Span(start, start + tile, row[grow * start : grow * (start + tile)])
        for start, row in zip(starts, weights, strict=True)
    ]


def tiled(
    call: Callable[[Tensor], Tensor], x: Tensor, tile: int, *, channels: int, shrink: int = 1, grow: int = 1
) -> Tensor:
    """What ``call`` makes of ``x`` (B, C, H, W), of ``channels``, from calls of one tile of one row each; float32.

    ``call`` makes one place of ``shrink`` x ``shrink``, or ``grow`` x ``grow`` places of one, and ``tile`` counts the
    coarser ones. The result is that of the whole where ``call`` looks no farther than the margin.
    """
    height, width = (side // shrink for side in x.shape[2:])
    made = torch.zeros(len(x), channels, grow * height, grow * width, device=x.device)
    for row, column in product(spans(height, tile, grow), spans(width, tile, grow)):
        part = x[:, :, shrink * row.start : shrink * row.stop, shrink * column.start : shrink * column.stop]
        weights = (row.weights[:, None] * column.weights).to(x.device)
        down, right = slice(grow * row.start, grow * row.stop), slice(grow * column.start, grow * column.stop)
        for i, one in enumerate(part.split(1)):
            made[i : i + 1, :, down, right] += weights * call(one).float()
    return made
