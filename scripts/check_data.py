"""Read a data set before any training, and say what is in it, what is wrong with it, and what its latents will take.

    python scripts/check_data.py data/sample
    python scripts/check_data.py ~/pictures --config configs/folder256.yaml
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

from ldm.autoencoders import Autoencoder
from ldm.cli import DEVICE_HELP, device_of, one_line_errors
from ldm.config import load
from ldm.data.check import Inspection, TextSizes, images_per_second
from ldm.data.check_page import page
from ldm.data.samples import SplitOptions
from ldm.data.stored import find_stored
from ldm.files import settled
from ldm.folders import CONFIG, load_autoencoder, load_text, shipped_model
from ldm.run import Run
from ldm.stages.frozen import frozen_autoencoder, frozen_text
from ldm.text.clip import named_architecture
from ldm.text.vocabulary import Vocabulary


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH", help="a folder, or archives such as 'data/{00..99}.tar'")
    parser.add_argument("--size", type=int, help="pixels that are trained on; the model's if left out")
    parser.add_argument("--max-broken", type=float, help="share of broken pictures still fit; 0.1, or as --config says")
    parser.add_argument("--ranks", type=int, default=1, help="processes that will train; %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="loader workers of each; %(default)s")
    parser.add_argument("--no-captions", action="store_true", help="for a first stage or a prior, which read none")
    config = "what will be trained, for its size, autoencoder and text encoder, trained yet or not"
    parser.add_argument("--config", type=Path, metavar="FILE", help=config)
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
    if args.config and args.model:
        raise ValueError("--config and --model name an autoencoder and a text encoder each; leave one out")
    stored, device = find_stored(args.path, captioned=not args.no_captions), device_of(args.device)
    source = args.config or args.model or shipped_model()
    run = load(Run, args.config or source / "autoencoder" / CONFIG)
    size = run.data.size if args.size is None else args.size
    given = run.data if args.config and isinstance(run.data, SplitOptions) else SplitOptions()
    most = given.max_broken if args.max_broken is None else args.max_broken
    options = SplitOptions(size=size, max_broken=most, val_share=given.val_share)
    if stored.captioned:
        autoencoder, sizes = encoders(run, None if args.config else source, device)
        rate = images_per_second(lambda images: encoded(autoencoder, images), size)
    else:
        sizes, rate = TextSizes(Vocabulary(), 0, 0, 0), 0.0  # of which nothing is told
    inspection = Inspection(options, sizes)
    for picture in tqdm(stored, unit=" pictures", dynamic_ncols=True):
        inspection.look(picture)
    side = size // run.autoencoder.factor
    found = inspection.findings(args.path, stored, (run.autoencoder.channels, side, side), args.ranks, args.workers)
    print(page(found, source.name.removesuffix(".yaml"), rate, str(device)))
    if args.json:
        figures = {"fit": not found.reasons, **asdict(found)}
        if not stored.captioned:
            del figures["captions"], figures["cache"]
        else:
            timed = {"images_per_second": rate, "device": str(device), "hours": found.cache.pictures / rate / 3600}
            figures["encoding"] = {"model": str(source), **timed}
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    return 1 if found.reasons else 0


def encoders(run: Run, model: Path | None, device: torch.device) -> tuple[Autoencoder, TextSizes]:
    """The autoencoder, and what counts of the text encoder: of a ``model``'s or a run's folder, or those of ``run``.

    The latter need not be trained yet.
    """
    if model is None:
        _, autoencoder = frozen_autoencoder(run, device, stand_in=True)
    else:
        autoencoder, _ = load_autoencoder(model / "autoencoder", device)
    own = None if model is None else model / "text"
    if run.text.model and not (own and settled(own)):  # it comes as it is; a run keeps no copy until it has a model
        return autoencoder, TextSizes.of(named_architecture(run.text), Vocabulary())
    text = frozen_text(run, device, stand_in=True) if own is None else load_text(own)
    return autoencoder, TextSizes.of(text.architecture, text.vocabulary)


@torch.inference_mode()
def encoded(autoencoder: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    return autoencoder.encode(images.to(autoencoder.mean.device))


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
