"""FID, KID and CLIP score of what a model draws for any captions, and what its autoencoder does to true pictures.

For models of other pictures than the shapes world's, which evaluate.py scores exactly. Captions and true pictures are
the held-out ones of the model's own data where none are named. Writes figures.json and all pictures into a folder;
what the figures mean is told in docs/evaluation.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.cli import (
    add_sampling,
    add_steering,
    check_seed,
    device_of,
    given_sampling,
    given_steering,
    one_line_errors,
    read_lines,
)
from ldm.cli_metrics import add_sources, read_sources
from ldm.config import load, to_dict
from ldm.data.loader import first_batches
from ldm.data.transforms import to_bytes
from ldm.evaluation.benchmark import Pictures, read_reference
from ldm.evaluation.evaluation import Drawer
from ldm.evaluation.general import Found, general, in_words
from ldm.files import check_ours, make_writable, whole_folder
from ldm.folders import CONFIG, digest, load_model
from ldm.run import Run
from ldm.training.optim import resolve_precision

COUNT = 1_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="one on each line, all drawn; else held-out ones")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="true pictures; else as many held-out ones")
    parser.add_argument("--count", type=int, metavar="N", help=f"how many held-out ones; {COUNT:,} if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next count up by 1")
    parser.add_argument("--out", type=Path, default=Path("outputs/metrics"), help="folder of figures and pictures")
    add_sampling(parser.add_argument_group("how to draw (the model's own settings where left out)"))
    add_steering(parser.add_argument_group("what else steers"))
    add_sources(parser.add_argument_group("the networks that measure (extra: pip install -e '.[eval]')"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.count is not None and (args.count < 1 or (args.captions and args.reference)):
        raise ValueError(
            f"--count {args.count} held-out ones: give 1 or more, and not captions and pictures of your own"
        )
    sources = read_sources(args)
    model, run = load_model(args.model, device_of(args.device)), load(Run, args.model / CONFIG)
    model.sampling = model.sampling.but(*given_sampling(args))
    steer, steering = given_steering(args, model, model.sampling)
    captions, reference = captions_and_pictures(args, run)
    check_seed(args.seed, len(captions))
    make_writable(args.out.parent)
    check_ours(args.out)
    draw = Drawer(model, args.seed, args.precision or resolve_precision("auto", model.device), steer)
    pictures = draw(captions, "drawing")
    found = general(pictures, captions, reference=reference, sources=sources, autoencoder=model.autoencoder)
    what = {
        "model": str(args.model),
        "hash": digest(args.model),
        "captions": str(args.captions or f"{len(captions)} held-out ones"),
        "reference": str(args.reference or f"{len(reference)} held-out pictures"),
        **({"steering": steering} if steering else {}),
        **to_dict(model.sampling),
        "seed": args.seed,
        "precision": draw.precision,
    }
    write(args.out, found, what, pictures, captions)
    for line in in_words(found.tables, found.notes):
        print(line)
    print(f"figures and pictures: {args.out}")


def captions_and_pictures(args: argparse.Namespace, run: Run) -> tuple[list[str], Pictures]:
    """The captions to draw, and true pictures (N, S, S, 3): those that were named, else held-out ones of the run.

    Raises:
        ValueError: held-out ones are wanted and the run's data is not here, or a file holds no caption.
    """
    captions = read_lines(args.captions) if args.captions else []
    if args.captions and not captions:
        raise ValueError(f"{args.captions} holds no caption; write one on each line")
    if args.captions and args.reference:
        return captions, read_reference(args.reference, run.data.size)
    count = args.count or len(captions) or COUNT
    try:
        held_out = list(first_batches(run.data.build("val"), 64, count))
    except (ValueError, OSError) as error:
        raise ValueError(f"the model's own data is not here ({error}); give --captions and --reference") from error
    pictures = [to_bytes(batch.image) for batch in held_out]
    found = captions or [caption for batch in held_out for caption in batch.captions]
    return found, read_reference(args.reference, run.data.size) if args.reference else np.concatenate(pictures)


def write(out: Path, found: Found, what: dict[str, object], pictures: Pictures, captions: list[str]) -> None:
    """Write the folder at once, in place of one that is there."""
    figures = {"what": what, "tables": found.tables, "notes": found.notes, "captions": captions}
    with whole_folder(out) as staged:
        (staged / "images").mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(staged / "images" / f"{number:05d}.png")
        (staged / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
