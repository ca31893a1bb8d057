"""What a picture of the shapes world shows, read from its pixels: no network, no training, no look at the prompt.

The background from the border; the objects as connected components away from it; of each the palette's colour nearest
to its pixels and the shape whose outline covers them. Whatever is no clean object is UNKNOWN, never guessed.

Legend: N pictures, S side, n pixels of all objects, K objects of all pictures, P side of the patch around one.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ldm.data.scene import BACKGROUNDS, COLORS, SHAPES, SIDE, SIZES, Object, Scene
from ldm.evaluation.outlines import fit

UNKNOWN = "unknown"
TINT = 30.0  # how far (RGB, each 0 to 255) a pixel may lie from its palette colour
GROUND_TINT = 25.0  # the same for a background; black and navy lie 51 apart
APART = 30.0  # how far from the background a pixel lies at least where an object is
PURE = 0.9  # least share of pixels with the right colour: of the border, and of an object
SPECK = 3.0  # area, in pixels of a picture of 64, below which a component is no object
OVERLAP = 0.8  # least intersection over union of an object with its shape
RADII = (6.0, 18.5)  # of an object, pixels of a picture of 64: the world's sizes with some play
PATCH = 40  # P, pixels of a picture of 64; what reaches beyond it, or to the edge of the picture, is no object
AT_ONCE = 128 * 64**2  # most pixels of pictures that a thread reads together, which bounds the memory
MAX_THREADS = 8

GROUNDS, PAINTS = (np.array([*table.values()], dtype=np.float32) for table in (BACKGROUNDS, COLORS))  # (4, 3), (8, 3)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass
class Pixels:
    """The pixels (n,) of all objects: of which object, where, and how far they are from the background."""

    of: Ints
    picture: Ints
    row: Ints
    column: Ints
    away: Floats  # (n, 3) RGB less the background's


def read(images: NDArray[np.uint8]) -> list[Scene]:
    """The scenes that pictures (N, S, S, 3) show; positions and radii are in pixels of a 64 x 64 picture.

    A background, shape, colour or size that cannot be told is UNKNOWN. Where the background is, no object is found.

    Raises:
        ValueError: the pictures are not square and RGB.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"pictures of {images.dtype} {images.shape} cannot be read; uint8 (N, S, S, 3) can")
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    count = max(1, min(AT_ONCE // images.shape[1] ** 2, -(-len(images) // threads)))
    parts = [images[first : first + count] for first in range(0, len(images), count)]
    with ThreadPoolExecutor(threads) as pool:  # most of it is NumPy, which lets other threads work
        return list(chain.from_iterable(pool.map(_read, parts)))


def _read(images: NDArray[np.uint8]) -> list[Scene]:
    scale = images.shape[1] / SIDE
    grounds = _grounds(images)  # (N,)
    pixels, count = _pixels(images, grounds, SPECK * scale**2)
    paint, cover, pure = _paints(pixels, grounds, count)
    patches, left, top = _patches(pixels, cover, count, round(PATCH * scale))
    seen = fit(patches)
    whole = ~_cut(pixels, count, images.shape[1]) & (
        patches.sum(axis=(1, 2)) >= np.bincount(pixels.of, cover, count) - SPECK * scale**2
    )
    picture = np.zeros(count, dtype=np.int64)
    picture[pixels.of] = pixels.picture
    objects: list[list[Object]] = [[] for _ in images]
    for k in range(count):
        r = seen.r[k] / scale
        clean = whole[k] and seen.overlap[k] >= OVERLAP and RADII[0] <= r <= RADII[1]
        objects[picture[k]].append(
            Object(
                shape=SHAPES[seen.shape[k]] if clean else UNKNOWN,
                color=list(COLORS)[paint[k]] if pure[k] else UNKNOWN,
                size=min(SIZES, key=lambda name: abs(sum(SIZES[name]) / 2 - r)) if clean else UNKNOWN,
                x=float(left[k] + seen.x[k]) / scale,
                y=float(top[k] + seen.y[k]) / scale,
                r=float(r),
            )
        )
    names = [*BACKGROUNDS, UNKNOWN]
    return [Scene(names[ground], tuple(things)) for ground, things in zip(grounds, objects, strict=True)]


def _grounds(images: NDArray[np.uint8]) -> Ints:
    """(N,) index of the background that nearly all of the outermost pixels show, -1 for none."""
    edge = np.ones(images.shape[1:3], dtype=bool)
    edge[1:-1, 1:-1] = False  # no object comes nearer to the edge than 2 pixels
    distance = np.linalg.norm(images[:, edge][:, :, None].astype(np.float32) - GROUNDS, axis=-1)  # (N, pixels, 4)
    share = (distance < GROUND_TINT).mean(axis=1)  # (N, 4)
    return np.where(share.max(axis=1) >= PURE, share.argmax(axis=1), -1)


def _pixels(images: NDArray[np.uint8], grounds: Ints, speck: float) -> tuple[Pixels, int]:
    """The pixels of all objects, and how many objects there are: connected components away from the background."""
    away = images.astype(np.float32) - GROUNDS[grounds][:, None, None]  # (N, S, S, 3)
    apart = (_dot(away, away) > APART**2) & (grounds >= 0)[:, None, None]  # (N, S, S)
    touching = np.zeros((3, 3, 3))
    touching[1] = 1  # the eight neighbours in the same picture, none in another
    labels, count = ndimage.label(apart, touching)  # (N, S, S), 0 where there is no object
    large = np.bincount(labels.ravel(), minlength=count + 1) >= speck
    large[0] = False
    number = np.cumsum(large) - 1  # of what is left
    picture, row, column = place = np.nonzero(large[labels])
    return Pixels(number[labels[place]], picture, row, column, away[place]), int(large.sum())


def _cut(pixels: Pixels, count: int, side: int) -> NDArray[np.bool_]:
    """Which objects (K,) reach the outermost pixels, and so may go on outside of the picture."""
    last = side - 1
    outermost = (pixels.row == 0) | (pixels.row == last) | (pixels.column == 0) | (pixels.column == last)
    return np.bincount(pixels.of, outermost, count) > 0


def _paints(pixels: Pixels, grounds: Ints, count: int) -> tuple[Ints, Floats, NDArray[np.bool_]]:
    """For each object its nearest colour (K,), how much of each pixel it covers (n,), and whether it is pure (K,).

    A pixel on an outline is a mixture of the object's colour and the background's, so a colour's distance to it is
    that of the nearest mixture.
    """
    ground = GROUNDS[grounds[pixels.picture]]  # (n, 3)
    covers, distances = [], []
    for color in PAINTS:
        full = color - ground  # (n, 3)
        cover = np.clip(_dot(pixels.away, full) / _dot(full, full), 0, 1)  # (n,)
        rest = pixels.away - cover[:, None] * full  # (n, 3)
        covers.append(cover)
        distances.append(np.sqrt(_dot(rest, rest)))
    error = np.array([np.bincount(pixels.of, distance, count) for distance in distances])  # (8, K)
    paint = error.argmin(axis=0)  # (K,)
    row, every = paint[pixels.of], np.arange(len(pixels.of))
    near = np.array(distances)[row, every] < TINT  # (n,)
    pure = np.bincount(pixels.of, near, count) >= PURE * np.bincount(pixels.of, minlength=count)
    return paint, np.array(covers)[row, every], pure


def _patches(pixels: Pixels, cover: Floats, count: int, side: int) -> tuple[Floats, Ints, Ints]:
    """Each object's cover on a patch around its middle (K, P, P); columns and rows (K,) where the patches begin."""
    size = np.bincount(pixels.of, minlength=count)
    left, top = (
        np.rint(np.bincount(pixels.of, at, count) / size - (side - 1) / 2).astype(np.int64)
        for at in (pixels.column, pixels.row)
    )
    row, column = pixels.row - top[pixels.of], pixels.column - left[pixels.of]
    on = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    patches = np.zeros((count, side, side), dtype=np.float32)
    patches[pixels.of[on], row[on], column[on]] = cover[on]
    return patches, left, top


def _dot(a: Floats, b: Floats) -> Floats:
    """The products of the colours (..., 3), summed over red, green and blue."""
    return np.einsum("...c,...c->...", a, b)
