"""Read a data set before any training, and say what is in it, what is wrong with it, and what its latents will take.

    python scripts/check_data.py data/sample
    python scripts/check_data.py "shards/*.tar" --size 256 --ranks 8 --workers 4 --json check.json

PATH is a folder of pictures with captions, a folder of .tar files, or a pattern of them. Nothing is written there.
The exit status is 0 where the data set is fit to be trained on, 1 where it is not, and 2 for a mistake in the options.
docs/data.md says what each number means.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from ldm.cli import DEVICE_HELP, device_of, one_line_errors
from ldm.data.check import Inspection, TextSizes, images_per_second
from ldm.data.check_page import page
from ldm.data.samples import SplitOptions
from ldm.data.stored import find_stored
from ldm.folders import load_autoencoder, load_text, shipped_model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH", help="a folder, or archives such as 'data/{00..99}.tar'")
    parser.add_argument("--size", type=int, help="pixels that are trained on; the model's if left out")
    parser.add_argument("--max-broken", type=float, default=0.1, help="share of broken pictures still fit; %(default)s")
    parser.add_argument("--ranks", type=int, default=1, help="processes that will train; %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="loader workers of each; %(default)s")
    model = "a model folder, or a run's, for its autoencoder and text encoder; the shipped model if left out"
    parser.add_argument("--model", type=Path, metavar="DIR", help=model)
    parser.add_argument("--device", default="", help=f"where the autoencoder is timed: {DEVICE_HELP}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same figures there too")
    return parser.parse_args()


def main() -> int:
    args = parse()
    for name in ("ranks", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} is not at least 1")
    if args.json and (args.json.exists() or not args.json.parent.is_dir()):
        raise ValueError(f"--json {args.json} is there already, or its folder is not; name another file")
    stored, folder, device = find_stored(args.path), args.model or shipped_model(), device_of(args.device)
    autoencoder, run = load_autoencoder(folder / "autoencoder", device)
    text = load_text(folder / "text")
    size = run.data.size if args.size is None else args.size
    options = SplitOptions(size=size, max_broken=args.max_broken)

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return autoencoder.encode(images.to(device))

    rate = images_per_second(encode, size)
    sizes = TextSizes(text.vocabulary, text.context_length, text.width, text.pooled_width)
    inspection = Inspection(options, sizes)
    for picture in tqdm(stored, unit=" pictures", dynamic_ncols=True):
        inspection.look(picture)
    side = size // autoencoder.factor
    found = inspection.findings(args.path, stored, (autoencoder.channels, side, side), args.ranks, args.workers)
    print(page(found, folder.name, rate, str(device)))
    if args.json:
        timed = {"images_per_second": rate, "device": str(device), "hours": found.cache.pictures / rate / 3600}
        figures = {"fit": not found.reasons, **asdict(found), "encoding": {"model": str(folder), **timed}}
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    return 1 if found.reasons else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
