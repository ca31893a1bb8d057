"""Which of the eight shapes covers the pixels that an object covers, and where and how large it is.

Area and centre of gravity of an object settle the radius and centre that it would have as each of the shapes; the shape
drawn there that overlaps best is the one. What a shape covers of each pixel is read from a table of sums.

Legend: K objects, P side of the patch around one, M side of a table.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.data.draw import inside
from ldm.data.scene import SHAPES

CELLS = 1_024  # M, of a table
LEAST = 1e-3  # area that an object counts as at least, in pixels, so that what covers nothing has a size
REACH = 1.125  # a table covers -REACH to REACH of the unit circle's plane

Floats = NDArray[np.float64]


class Outline(NamedTuple):
    """A shape of radius 1 around (0, 0)."""

    sums: NDArray[np.float32]  # (M + 1, M + 1) area above and to the left
    area: float
    centre: tuple[float, float]  # of gravity


class Fit(NamedTuple):
    """What objects (K,) are: positions and radii in pixels of their patches."""

    shape: NDArray[np.int64]  # index into SHAPES
    x: Floats
    y: Floats
    r: Floats
    overlap: Floats  # intersection over union with that shape, 0 to 1


def fit(patches: NDArray[np.float32]) -> Fit:
    """The best shape for each patch (K, P, P), the share of every pixel that it covers; an empty one fits none."""
    side = patches.shape[1]
    middle = np.arange(side) + 0.5
    area = patches.sum(axis=(1, 2)).clip(min=LEAST)  # (K,)
    x = (patches.sum(axis=1) @ middle) / area
    y = (patches.sum(axis=2) @ middle) / area
    fits = []
    for shape in SHAPES:
        sums, unit, (dx, dy) = _outline(shape)
        r = np.sqrt(area / unit)
        x0, y0 = x - dx * r, y - dy * r
        drawn = _drawn(sums, x0, y0, r, side)  # (K, P, P)
        common = np.minimum(drawn, patches).sum(axis=(1, 2))
        fits.append((x0, y0, r, common / (drawn.sum(axis=(1, 2)) + area - common)))
    each = np.array(fits)  # (8, 4, K)
    best = each[:, 3].argmax(axis=0)  # (K,)
    return Fit(best, *each[best, :, np.arange(len(best))].T)


@cache
def _outline(shape: str) -> Outline:
    scale = CELLS / (2 * REACH)  # cells to 1
    cells = inside(shape, scale, (CELLS / 2, CELLS / 2), (CELLS, CELLS))
    sums = np.zeros((CELLS + 1, CELLS + 1))
    sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1) / scale**2
    at = (np.arange(CELLS) + 0.5) / scale - REACH
    x, y = (float(cells.sum(axis=axis) @ at) / cells.sum() for axis in (0, 1))
    return Outline(sums.astype(np.float32), float(sums[-1, -1]), (x, y))


def _drawn(sums: NDArray[np.float32], x: Floats, y: Floats, r: Floats, side: int) -> NDArray[np.float32]:
    """(K, P, P): the share of every pixel that the shape covers, with centre (x, y) and radius r."""
    scale = CELLS / (2 * REACH)
    edges = np.arange(side + 1)
    i, j = (np.rint(((edges - at[:, None]) / r[:, None] + REACH) * scale) for at in (y, x))  # (K, P + 1)
    rows, columns = (np.clip(at, 0, CELLS).astype(np.int32) for at in (i, j))
    corners = sums[rows[:, :, None], columns[:, None, :]]  # (K, P + 1, P + 1)
    bands = corners[:, 1:] - corners[:, :-1]  # (K, P, P + 1)
    return (bands[:, :, 1:] - bands[:, :, :-1]) * np.square(r)[:, None, None].astype(np.float32)
