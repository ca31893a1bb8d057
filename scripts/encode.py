"""Write the codes of pictures, or the latents of a first stage that has none, and make pictures of them again.

    python scripts/encode.py runs/first_stages/vq --images ~/pictures --out outputs/codes
    python scripts/encode.py runs/first_stages/vq --decode outputs/codes --out outputs/pictures

Of each picture in the folder --images and below a square of its middle is taken, scaled to --size. What is written is a
folder of safetensors with up to 4,096 pictures a file, int32 "codes" (N, h, w) (of two levels "top" and "bottom") or
float16 "latent" (N, C, h, w), scaled as a denoiser sees it, and pictures.json with the pictures' names in their order.
"""

import argparse
import json
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
from ldm.autoencoders.codes import decode_codes, encode_codes, map_sizes, quantizers
from ldm.cli import DEVICE_HELP, check_sides, device_of, one_line_errors
from ldm.data.folder import list_files
from ldm.data.transforms import IMAGE_SUFFIXES, BrokenSample, Tally, Transform, read_image, refuse_outside, to_images
from ldm.files import BrokenFile, check_folder, check_outside, read_tensors, save_tensors, whole_folder
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
    broken = "share of broken pictures that may be left out; %(default)s"
    parser.add_argument("--max-broken", type=float, default=0.1, help=broken)
    parser.add_argument("--batch", type=int, default=16, help="pictures at once; %(default)s")
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse()
    for name in ("batch", "size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} is not at least 1")
    if not 0 <= args.max_broken <= 1:
        raise ValueError(f"--max-broken {args.max_broken} is not a share from 0 to 1")
    if args.decode and args.size is not None:
        raise ValueError(f"--size {args.size}: what was encoded has its size; leave it out")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out {args.out} is there already; name a folder that is new or empty")
    check_outside(args.out)
    autoencoder, run = load_autoencoder(first_stage_in(args.model or shipped_model()), device_of(args.device))
    if args.decode:
        count = decode(autoencoder, args.decode, args.out, args.batch)
    else:
        size, most = args.size or run.data.size, args.max_broken
        count = encode(autoencoder, args.images, args.out, size=size, batch=args.batch, max_broken=most)
    print(f"{count} pictures: {args.out}")


def encode(autoencoder: Autoencoder, images: Path, out: Path, *, size: int, batch: int, max_broken: float) -> int:
    """Write what ``autoencoder`` makes of the pictures in ``images`` to ``out``; returns how many there are.

    Raises:
        ValueError: there is none that can be read, too many are broken, or their size does not fit.
    """
    if not images.is_dir():
        raise ValueError(f"--images {images} is not a folder")
    check_sides(size, autoencoder.factor)
    names = [name for name in list_files(images) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise ValueError(f"--images {images} holds no picture; the endings looked for are {' '.join(IMAGE_SUFFIXES)}")
    tally = Tally("pictures", max_broken, floor=min(100, len(names)))
    files: list[list[str]] = []  # the names in each
    with whole_folder(out) as staged:
        for part in encoded(autoencoder, images, names, size, batch, tally):
            save_tensors(part.values, staged / f"{len(files):05d}.safetensors")
            files.append(part.names)
        if not files:
            raise ValueError(f"--images {images} holds no picture that can be read")
        described = {"size": size, "autoencoder": latent_fingerprint(autoencoder), "files": files}
        (staged / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if tally.broken:
        print(f"broken and left out: {tally.broken}")
    return sum(map(len, files))


@dataclass
class Part:
    """Some pictures, by name, and what became of them: maps (N, h, w) or latents (N, C, h, w)."""

    names: list[str]
    values: dict[str, Tensor]


def encoded(
    autoencoder: Autoencoder, images: Path, names: list[str], size: int, batch: int, tally: Tally
) -> Iterator[Part]:
    """The pictures ``names`` in parts of a file each; broken ones are counted in ``tally`` and left out."""
    transform, rng = Transform(size), np.random.default_rng(0)  # a cut of the middle draws nothing that counts

    def read(name: str) -> Tensor | Exception:
        try:
            return transform(read_image(images / name), rng)
        except (BrokenSample, OSError) as error:
            return error

    with ThreadPoolExecutor(READERS) as readers, tqdm(total=len(names), unit=" pictures", leave=False) as bar:
        for first in range(0, len(names), A_FILE):
            kept: list[str] = []
            made: list[dict[str, Tensor]] = []
            for i in range(first, min(first + A_FILE, len(names)), batch):
                some = names[i : min(i + batch, first + A_FILE)]
                whole: list[Tensor] = []
                for name, image in zip(some, readers.map(read, some), strict=True):
                    if isinstance(image, Exception):
                        tally.count_broken(name, image)
                        continue
                    tally.read += 1
                    kept.append(name)
                    whole.append(image)
                if whole:
                    made.append(values_of(autoencoder, torch.stack(whole).to(autoencoder.mean.device)))
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
            check_values(autoencoder, held, len(names))
            for first in range(0, len(names), batch):
                some = names[first : first + batch]
                part = {key: value[first : first + batch].to(autoencoder.mean.device) for key, value in held.items()}
                for name, picture in zip(some, to_images(pictures_of(autoencoder, part)), strict=True):
                    path = staged / (name if name.lower().endswith(".png") else f"{name}.png")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)
                bar.update(len(some))
    return total


def check_values(autoencoder: Autoencoder, values: dict[str, Tensor], count: int) -> None:
    """Raise BrokenFile unless ``values`` are of ``count`` pictures and of such a first stage."""
    codes = [quantizer.num_codes for quantizer in quantizers(autoencoder.bottleneck)]
    names = levels(len(codes)) if codes else ("latent",)
    finest = tuple(values[names[-1]].shape[-2:]) if names[-1] in values else ()
    if not codes:
        wanted = {"latent": (count, autoencoder.channels, *finest)}
    else:
        sizes = map_sizes(autoencoder.bottleneck, *finest) if len(finest) == 2 else [()] * len(codes)
        wanted = {name: (count, *size) for name, size in zip(names, sizes, strict=True)}
    found = {name: tuple(value.shape) for name, value in values.items()}
    if found != wanted or not all(all(shape) for shape in found.values()):
        raise BrokenFile(f"tensors {found} are not those of {count} pictures by this first stage: {', '.join(names)}")
    for name, most in zip(names, codes, strict=False):
        low, high = values[name].min(), values[name].max()
        if low < 0 or high >= most:
            raise BrokenFile(f"codes from {low} to {high} are not of a first stage that has {most}")


def pictures_of(autoencoder: Autoencoder, values: dict[str, Tensor]) -> Tensor:
    """Images (B, 3, S, S) in [-1, 1] of what ``values_of`` gave."""
    if "latent" in values:
        return autoencoder.decode(values["latent"].float())
    return decode_codes(autoencoder, [values[name].long() for name in levels(len(values))])


if __name__ == "__main__":
    with one_line_errors():
        main()
