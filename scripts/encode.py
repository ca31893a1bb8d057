"""Write the codes of pictures, or the latents of a first stage that has none, and make pictures of them again.

    python scripts/encode.py runs/first_stages/vq --images ~/pictures --out outputs/codes
    python scripts/encode.py runs/first_stages/vq --decode outputs/codes --out outputs/pictures

Of each picture in the folder --images and below a square of its middle is taken, scaled to --size. What is written is a
folder of safetensors with up to 4,096 pictures a file, int32 "codes" (N, h, w) (of two levels "top" and "bottom") or
float16 "latent" (N, C, h, w), scaled as a denoiser sees it, and pictures.json with the pictures' names in their order.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.codes import decode_codes, encode_codes, quantizers
from ldm.cli import DEVICE_HELP, check_sides, device_of, one_line_errors
from ldm.data.folder import list_files
from ldm.data.transforms import IMAGE_SUFFIXES, Transform, read_picture, refuse_outside, to_images
from ldm.files import BrokenFile, check_folder, read_tensors, save_tensors, whole_folder
from ldm.folders import first_stage_in, latent_fingerprint, load_autoencoder, shipped_model

DESCRIPTION = "pictures.json"
A_FILE = 4_096  # pictures
READERS = 4  # threads


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model, run or autoencoder folder; the shipped model's")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, metavar="DIR", help="encode the pictures in this folder and below")
    what.add_argument("--decode", type=Path, metavar="DIR", help="decode what was encoded there")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--size", type=int, help="of the pictures, pixels a side; that of the run if left out")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once; %(default)s")
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse()
    for name in ("batch", "size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} is not at least 1")
    if args.decode and args.size is not None:
        raise ValueError(f"--size {args.size}: what was encoded has its size; leave it out")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out {args.out} is there already; name a folder that is new or empty")
    autoencoder, run = load_autoencoder(first_stage_in(args.model or shipped_model()), device_of(args.device))
    if args.decode:
        count = decode(autoencoder, args.decode, args.out, args.batch)
    else:
        count = encode(autoencoder, args.images, args.out, args.size or run.data.size, args.batch)
    print(f"{count} pictures: {args.out}")


def encode(autoencoder: Autoencoder, images: Path, out: Path, size: int, batch: int) -> int:
    """Write what ``autoencoder`` makes of the pictures in ``images`` to ``out``; returns how many there are.

    Raises:
        ValueError: there is none that can be read, or their size does not fit.
    """
    if not images.is_dir():
        raise ValueError(f"--images {images} is not a folder")
    check_sides(size, autoencoder.factor)
    names = [name for name in list_files(images) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise ValueError(f"--images {images} holds no picture; the endings looked for are {' '.join(IMAGE_SUFFIXES)}")
    files: list[list[str]] = []  # the names in each
    with whole_folder(out) as staged:
        for part in encoded(autoencoder, images, names, size, batch):
            save_tensors(part.values, staged / f"{len(files):05d}.safetensors")
            files.append(part.names)
        if not files:
            raise ValueError(f"--images {images} holds no picture that can be read")
        described = {"size": size, "autoencoder": latent_fingerprint(autoencoder), "files": files}
        (staged / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return sum(map(len, files))


@dataclass
class Part:
    """Some pictures, by name, and what became of them: maps (N, h, w) or latents (N, C, h, w)."""

    names: list[str]
    values: dict[str, Tensor]


def encoded(autoencoder: Autoencoder, images: Path, names: list[str], size: int, batch: int) -> Iterator[Part]:
    """The pictures ``names``, those left out that cannot be read, in parts of a file each."""
    transform, rng = Transform(size), np.random.default_rng(0)  # a cut of the middle draws nothing that counts

    def read(name: str) -> tuple[str, Tensor | None]:
        try:
            return name, transform(read_picture(images / name), rng)
        except (ValueError, OSError) as error:
            print(f"warning: {' '.join(str(error).split())}; it is left out", file=sys.stderr)
            return name, None

    with ThreadPoolExecutor(READERS) as readers, tqdm(total=len(names), unit=" pictures", leave=False) as bar:
        for first in range(0, len(names), A_FILE):
            kept: list[str] = []
            made: list[dict[str, Tensor]] = []
            for i in range(first, min(first + A_FILE, len(names)), batch):
                some = names[i : min(i + batch, first + A_FILE)]
                found = {name: image for name, image in readers.map(read, some) if image is not None}
                if found:
                    made.append(values_of(autoencoder, torch.stack([*found.values()]).to(autoencoder.mean.device)))
                    kept += found
                bar.update(len(some))
            if kept:
                yield Part(kept, {key: torch.cat([each[key] for each in made]) for key in made[0]})


def values_of(autoencoder: Autoencoder, image: Tensor) -> dict[str, Tensor]:
    """What is written of images (B, 3, S, S)."""
    if not quantizers(autoencoder.bottleneck):
        return {"latent": autoencoder.encode(image).half().cpu()}
    maps = encode_codes(autoencoder, image)
    return {name: codes.int().cpu() for name, codes in zip(levels(len(maps)), maps, strict=True)}


def levels(count: int) -> tuple[str, ...]:
    """The names of so many levels of codes, the coarsest first."""
    return ("codes",) if count == 1 else ("top", "bottom")


def decode(autoencoder: Autoencoder, source: Path, out: Path, batch: int) -> int:
    """Write the pictures of what ``encode`` wrote to ``source`` as PNG, by their names; returns how many there are.

    Raises:
        BrokenFile: it is not whole.
        ValueError: another autoencoder wrote it.
    """
    check_folder(source)
    try:
        described = json.loads((source / DESCRIPTION).read_text(encoding="utf-8"))
        files = [[str(name) for name in names] for names in described["files"]]
        by = described["autoencoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenFile(f"{source} holds no {DESCRIPTION} that encode.py wrote ({error})") from error
    if by != latent_fingerprint(autoencoder):
        raise ValueError(f"{source} was encoded by another first stage than this; give the one that it is of")
    for name in chain(*files):
        refuse_outside(name, str(source / DESCRIPTION))
    total = sum(map(len, files))
    with whole_folder(out) as staged, tqdm(total=total, unit=" pictures", leave=False) as bar:
        for number, names in enumerate(files):
            held = read_tensors(source / f"{number:05d}.safetensors")
            for first in range(0, len(names), batch):
                some = names[first : first + batch]
                part = {key: value[first : first + batch].to(autoencoder.mean.device) for key, value in held.items()}
                for name, picture in zip(some, to_images(pictures_of(autoencoder, part)), strict=True):
                    path = staged / (name if name.lower().endswith(".png") else f"{name}.png")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)
                bar.update(len(some))
    return total


def pictures_of(autoencoder: Autoencoder, values: dict[str, Tensor]) -> Tensor:
    """Images (B, 3, S, S) in [-1, 1] of what ``values_of`` gave.

    Raises:
        BrokenFile: it is not of this autoencoder.
    """
    counts = [quantizer.num_codes for quantizer in quantizers(autoencoder.bottleneck)]
    wanted = {"latent": 4} if not counts else dict.fromkeys(levels(len(counts)), 3)  # dimensions
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    if {name: len(shape) for name, shape in shapes.items()} != wanted:
        raise BrokenFile(f"tensors {shapes} are not those of this first stage: {', '.join(wanted)}")
    if not counts:
        return autoencoder.decode(values["latent"].float())
    maps = [values[name].long() for name in wanted]
    for codes, count in zip(maps, counts, strict=True):
        if codes.min() < 0 or codes.max() >= count:
            raise BrokenFile(f"codes from {codes.min()} to {codes.max()} are not of a first stage that has {count}")
    return decode_codes(autoencoder, maps)


if __name__ == "__main__":
    with one_line_errors():
        main()
