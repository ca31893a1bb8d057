"""A small set of real photographs, for benchmarks/first_stages.py: those that come with scikit-image, cut into tiles.

    pip install scikit-image
    python benchmarks/photographs.py --out data/photographs

It is a folder in the format of data/README.md, with a sub-folder of tiles for each photograph, whose name is their
caption. The tiles do not overlap, and what is left over at the right and below is left out.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.cli import one_line_errors
from ldm.files import whole_folder

NAMES = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "rocket", "stereo_motorcycle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new, or written by this script before")
    parser.add_argument("--size", type=int, default=64, metavar="S", help="pixels, side of a tile; 64 if left out")
    args = parser.parse_args()
    if args.size < 8:
        raise ValueError(f"--size {args.size} is below 8 pixels; try --size 64")
    count = 0
    with whole_folder(args.out) as staged:
        for name in NAMES:
            (staged / name).mkdir()
            for number, tile in enumerate(tiles(photograph(name), args.size)):
                Image.fromarray(tile).save(staged / name / f"{number:04d}.png")
                count += 1
    print(f"{count} tiles in {args.out}")


def photograph(name: str) -> np.ndarray:
    """(H, W, 3) uint8, one of scikit-image's."""
    try:
        from skimage import data

        found = getattr(data, name)()
    except (ImportError, OSError) as error:
        raise ValueError(f"scikit-image's {name} is not there ({error}); pip install scikit-image") from error
    return found[0] if isinstance(found, tuple) else found  # of a stereo pair the left one


def tiles(picture: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The (size, size, 3) squares of a picture (H, W, 3), row by row; raises ValueError where none fits."""
    height, width = picture.shape[:2]
    if size > min(height, width):
        raise ValueError(f"tiles of {size} pixels do not fit into a picture of {width} x {height}; take smaller ones")
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            yield picture[top : top + size, left : left + size]


if __name__ == "__main__":
    with one_line_errors():
        main()
