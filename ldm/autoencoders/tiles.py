"""Large pictures in bounded memory: in overlapping tiles that are blended.

A tile's result is that of the whole picture where the network looks no farther than the tile's margin. Group norms look
at all of it: ``ldm.autoencoders.whole_norms``.

Legend: B batch, C channels, H W size, n tiles along an axis.
"""

from collections.abc import Callable, Iterator
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


class Tile(NamedTuple):
    """Which places of the input a tile takes, which of the output are its, and how much each of these counts."""

    source: tuple[slice, slice]  # rows and columns
    target: tuple[slice, slice]
    weights: Tensor  # (h, w) of the target; over all tiles that is 1


def tiles(height: int, width: int, tile: int, *, shrink: int = 1, grow: int = 1) -> Iterator[Tile]:
    """The tiles of an input of ``height`` x ``width`` places.

    ``shrink`` x ``shrink`` of its places become one, and each of these ``grow`` x ``grow``; a tile has ``tile`` of the
    places in between along a side.
    """
    rows, columns = (spans(side // shrink, tile, grow) for side in (height, width))
    for row, column in product(rows, columns):
        yield Tile(
            (slice(shrink * row.start, shrink * row.stop), slice(shrink * column.start, shrink * column.stop)),
            (slice(grow * row.start, grow * row.stop), slice(grow * column.start, grow * column.stop)),
            row.weights[:, None] * column.weights,
        )


def tiled(call: Callable[[Tensor], Tensor], x: Tensor, tile: int, *, shrink: int = 1, grow: int = 1) -> Tensor:
    """What ``call`` makes of ``x`` (B, C, H, W), from calls of one tile each; float32.

    Sizes are as in ``tiles``. The result is that of the whole where ``call`` looks no farther than the margin.
    """
    height, width = (side // shrink * grow for side in x.shape[2:])
    made: Tensor | None = None
    for part in tiles(x.shape[2], x.shape[3], tile, shrink=shrink, grow=grow):
        result = call(x[:, :, *part.source]).float()  # (B, C', h, w)
        if made is None:
            made = torch.zeros(*result.shape[:2], height, width, device=x.device)
        made[:, :, *part.target] += part.weights.to(x.device) * result
    assert made is not None
    return made
