"""Drawing a scene of the shapes world: exact coverage at four times the size, box-filtered down.

Legend: S picture side, F = 4 supersampling, E edges of an outline, h w a patch around one object.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ldm.data.scene import BACKGROUNDS, COLORS, SIDE, Object, Scene

SUPERSAMPLING = 4
RING_HOLE = 0.55  # inner radius of the ring, as a share of the outer


@cache
def outline(shape: str) -> NDArray[np.float64]:
    """The corners (E, 2) of ``shape`` in the unit circle, y downward; the ring's is its outer circle."""
    if shape in ("circle", "ring"):
        turn = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        return _polar(np.ones_like(turn) / np.cos(np.pi / 128) ** 0.5, turn)
    if shape == "square":
        return _polar(np.ones(4), np.deg2rad([45, 135, 225, 315]))
    if shape == "triangle":
        return _polar(np.ones(3), np.deg2rad([-90, 30, 150]))
    if shape == "diamond":
        return np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)])
    if shape == "star":
        turn = np.deg2rad(-90 + 36 * np.arange(10))
        return _polar(np.where(np.arange(10) % 2 == 0, 1.0, 0.42), turn)
    if shape == "cross":
        w, end = 0.34, (1 - 0.34**2) ** 0.5  # the arms' outer corners lie on the unit circle
        quarter = np.array([(w, -end), (w, -w), (end, -w)])
        turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.pi / 2 * np.arange(4)]
        return np.concatenate([quarter @ turn.T for turn in turns])
    if shape == "heart":
        u = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        y = 13 * np.cos(u) - 5 * np.cos(2 * u) - 2 * np.cos(3 * u) - np.cos(4 * u)
        return np.stack([16 * np.sin(u) ** 3, -y], axis=1) / 17
    raise ValueError(f"no shape '{shape}'")


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The picture (S, S, 3) of ``scene``, uint8; the scene's lengths scale with ``size`` / 64."""
    image = np.empty((size, size, 3))
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        top, left, cover = _coverage(thing, size)
        patch = image[top : top + len(cover), left : left + cover.shape[1]]  # a view: drawing into it draws the picture
        patch += cover[..., None] * (np.array(COLORS[thing.color]) - patch)
    return np.rint(image).astype(np.uint8)


def _coverage(thing: Object, size: int) -> tuple[int, int, NDArray[np.float64]]:
    """(top, left, share of each pixel that the object covers (h, w))."""
    scale = size / SIDE
    x, y, r = thing.x * scale, thing.y * scale, thing.r * scale
    top, left = (max(int(np.floor(c - r)), 0) for c in (y, x))
    bottom, right = (min(int(np.ceil(c + r)), size) for c in (y, x))
    n = SUPERSAMPLING
    cells = inside(thing.shape, r * n, ((x - left) * n, (y - top) * n), ((bottom - top) * n, (right - left) * n))
    blocks = cells.reshape(bottom - top, n, right - left, n)
    return top, left, blocks.mean(axis=(1, 3))  # (h, w)


def inside(shape: str, r: float, centre: tuple[float, float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels (h, w) of a picture of ``size`` have their middle in a shape of radius ``r`` around (x, y)."""
    cells = _fill(outline(shape) * r + centre, size)
    if shape == "ring":
        cells &= ~_fill(outline(shape) * RING_HOLE * r + centre, size)
    return cells


def _fill(corners: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixel centres lie inside the polygon (even-odd rule): a crossing toggles what is right of it."""
    height, width = shape
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T  # each (E,)
    rows = np.arange(height)[:, None] + 0.5  # (h, 1)
    crosses = (y0 <= rows) != (y1 <= rows)  # (h, E)
    row, edge = np.nonzero(crosses)
    share = (rows[row, 0] - y0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + share * (x1[edge] - x0[edge])
    toggles = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(toggles, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.cumsum(toggles, axis=1)[:, :width] % 2 == 1


def _polar(radius: NDArray[np.float64], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
