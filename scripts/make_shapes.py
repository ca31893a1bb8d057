"""Write pictures of the shapes world to disk, as an example of the data formats and to try them with.

    python scripts/make_shapes.py --out data/sample --format folder --count 48
    python scripts/make_shapes.py --out data/shapes --format shards --count 100000 --shard-size 10000

"folder" writes 000000.png with its caption 000000.txt, and so on. "shards" writes the same into tar archives as
img2dataset does, each with a _stats.json that says how many samples it holds. data/README.md explains both.
"""

import argparse
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import webdataset as wds
from tqdm import tqdm

from ldm.cli import one_line_errors
from ldm.data.shapes import ShapesConfig
from ldm.data.transforms import to_images
from ldm.files import make_writable
from ldm.types import Key

Picture = tuple[bytes, str]  # a PNG file's bytes, and its caption


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write; must be empty or new")
    parser.add_argument("--format", choices=("folder", "shards"), default="folder", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1000, help="number of pictures; default: %(default)s")
    parser.add_argument("--size", type=int, default=64, help="pixels, a multiple of 16; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures; default: %(default)s")
    parser.add_argument("--shard-size", type=int, default=1000, help="pictures an archive; default: %(default)s")
    args = parser.parse_args(argv)
    if args.count < 1:
        raise ValueError(f"--count {args.count} leaves nothing to write; try --count 1000")
    if args.shard_size < 1:
        raise ValueError(f"--shard-size {args.shard_size} leaves nothing to write; try --shard-size 1000")
    config = ShapesConfig(size=args.size, seed=args.seed, length=args.count)
    make_writable(args.out)
    if any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty; choose another --out or empty it first")
    pictures = tqdm(draw_all(config), total=args.count, unit=" pictures")
    try:
        if args.format == "folder":
            write_folder(pictures, args.out)
        else:
            write_shards(pictures, args.out, args.shard_size)
    except BaseException:
        for path in args.out.iterdir():  # it was empty
            path.unlink()
        raise
    print(f"{args.count} pictures in {args.out}; train on them with data.name={args.format} data.path={args.out}")


def draw_all(config: ShapesConfig) -> Iterator[Picture]:
    """The ``config.length`` pictures of the training split, in order."""
    shapes = config.build("train")
    for index in range(len(shapes)):
        sample = shapes[Key(0, index)]
        png = io.BytesIO()
        to_images(sample.image[None])[0].save(png, "PNG")
        yield png.getvalue(), sample.caption


def write_folder(pictures: Iterable[Picture], out: Path) -> None:
    for number, (png, caption) in enumerate(pictures):
        (out / f"{number:06d}.png").write_bytes(png)
        (out / f"{number:06d}.txt").write_text(f"{caption}\n", "utf-8")


def write_shards(pictures: Iterable[Picture], out: Path, shard_size: int) -> None:
    pictures = iter(pictures)
    shard = 0
    while held := list(islice(pictures, shard_size)):
        # a fixed time makes the archive the same, byte for byte, whenever it is written
        with (out / f"{shard:05d}.tar").open("wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
            for number, (png, caption) in enumerate(held):
                key = f"{shard:05d}{number:04d}"
                tar.write({"__key__": key, "png": png, "txt": caption.encode(), "json": json_of(key, caption)})
        (out / f"{shard:05d}_stats.json").write_text(
            json.dumps({"count": len(held), "successes": len(held)}), encoding="utf-8"
        )
        shard += 1


def json_of(key: str, caption: str) -> bytes:
    """What img2dataset notes of a sample, as far as it applies to a drawn one."""
    return json.dumps({"key": key, "caption": caption, "status": "success"}).encode()


if __name__ == "__main__":
    with one_line_errors():
        main()
