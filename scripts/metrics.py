"""FID, KID and CLIP score of what a model draws for any captions, and what its autoencoder does to true pictures.

For models of other pictures than the shapes world's, which evaluate.py scores exactly; of an autoencoder alone there
is the last of these. Captions and true pictures are the held-out ones of the model's own data where none are named.
Writes figures.json and all pictures that were drawn into a folder; what the figures mean is told in docs/evaluation.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm.cli import (
    DRAWING,
    add_sampling,
    add_steering,
    check_seed,
    device_of,
    given_sampling,
    given_steering,
    one_line_errors,
    options_given,
    read_lines,
)
from ldm.cli_metrics import add_sources, read_sources
from ldm.config import load, to_dict
from ldm.data import pictures_of
from ldm.data.loader import first_batches
from ldm.data.transforms import to_bytes
from ldm.evaluation.benchmark import Pictures, read_reference
from ldm.evaluation.evaluation import Drawer
from ldm.evaluation.general import Found, Sources, general, in_words, of_autoencoder
from ldm.evaluation.report import check_out
from ldm.files import whole_folder
from ldm.folders import CONFIG, digest, load_autoencoder, load_model, lone_autoencoder
from ldm.run import Run
from ldm.training.optim import resolve_precision

COUNT = 1_000
FIGURES = "figures.json"
OF_MODELS = ("captions", *(name for name in DRAWING if name != "batch"), "clip", "clip_weights", "clip_run")  # options


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder, or an autoencoder's alone")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="one on each line, all drawn; else held-out ones")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="true pictures; else held-out ones")
    count = f"of held-out captions, pictures or both; as many as --captions has, else {COUNT:,}"
    parser.add_argument("--count", type=int, metavar="N", help=count)
    parser.add_argument("--seed", type=int, help="of the first picture, 0 if left out; the next count up by 1")
    parser.add_argument("--out", type=Path, default=Path("outputs/metrics"), help="folder of figures and pictures")
    add_sampling(
        parser.add_argument_group("how to draw (the model's own settings where left out)"),
        "what the machine multiplies fastest",
    )
    add_steering(parser.add_argument_group("what else steers"))
    add_sources(parser.add_argument_group("the networks that measure (extra: pip install -e '.[eval]')"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    autoencoder = lone_autoencoder(args.model)
    if autoencoder and (void := options_given(args, OF_MODELS)):
        raise ValueError(f"{args.model} holds an autoencoder and no model; leave out {', '.join(void)}")
    if args.count is not None and (args.count < 1 or (args.reference and (autoencoder or args.captions))):
        own = "pictures" if autoencoder else "captions and pictures"
        raise ValueError(f"--count {args.count} held-out ones: give 1 or more, and not {own} of your own")
    sources, out = read_sources(args), check_out(args.out, {FIGURES})
    if autoencoder:
        found = measure_autoencoder(args, autoencoder, sources, out)
    else:
        found = measure_model(args, sources, out)
    for line in in_words(found.tables, found.notes):
        print(line)
    print(f"{'figures' if autoencoder else 'figures and pictures'}: {args.out}")


def measure_autoencoder(args: argparse.Namespace, folder: Path, sources: Sources, out: Path) -> Found:
    """What the autoencoder in ``folder`` does to true pictures, written to ``out``.

    Raises:
        ValueError: there are fewer than two of them, or held-out ones are wanted and the run's data is not here.
    """
    autoencoder, run = load_autoencoder(folder, device_of(args.device))
    batch = run.sampling.but(*given_sampling(args)).sample.batch
    notes: list[str] = []
    if args.reference:
        reference = read_reference(args.reference, run.data.size)
    else:
        reference, _, notes = held_out(run, args.count or COUNT, captioned=False)
    networks = sources.load("inception", "lpips")
    found = of_autoencoder(autoencoder, reference, networks, batch=batch)
    if not found.tables:
        raise ValueError(found.notes[-1])
    found.notes += notes
    what = {
        "model": str(folder),
        "hash": digest(folder),
        "reference": str(args.reference or f"{len(reference)} held-out pictures"),
        "batch": batch,
    }
    write(out, what, found)
    return found


def measure_model(args: argparse.Namespace, sources: Sources, out: Path) -> Found:
    """The metrics of what the model draws, and what its autoencoder does to true pictures, written to ``out``."""
    model, run = load_model(args.model, device_of(args.device)), load(Run, args.model / CONFIG)
    model.sampling = model.sampling.but(*given_sampling(args))
    steer, steering = given_steering(args, model, model.sampling)
    asked = captions_and_pictures(args, run)
    check_seed(args.seed or 0, len(asked.captions))
    networks = sources.load("inception", "clip", "lpips")  # what is named and cannot be had is told before drawing
    draw = Drawer(model, args.seed or 0, args.precision or resolve_precision("auto", model.device), steer)
    pictures = draw(asked.captions, "drawing")
    what = {
        "model": str(args.model),
        "hash": digest(args.model),
        "captions": asked.whose,
        "reference": asked.reference_of,
        "steering": steering,
        "seed": draw.seed,
        "precision": draw.precision,
        **to_dict(model.sampling),
    }
    unmeasured = Found(notes=["not measured to the end"])
    write(out, what, unmeasured, asked.captions, pictures)  # so nothing is lost below
    found = general(
        pictures, asked.captions, reference=asked.reference, networks=networks, autoencoder=model.autoencoder
    )
    found.notes += asked.notes
    write(out, what, found, asked.captions, pictures)
    return found


class Asked(NamedTuple):
    """What is drawn, and what it is compared with."""

    captions: list[str]
    whose: str
    reference: Pictures  # (N, S, S, 3)
    reference_of: str
    notes: list[str]


def captions_and_pictures(args: argparse.Namespace, run: Run) -> Asked:
    """The captions and true pictures that were named, else held-out ones of the run.

    Raises:
        ValueError: held-out ones are wanted and the run's data is not here, or a file holds no caption.
    """
    captions = read_lines(args.captions) if args.captions else []
    if args.captions and not captions:
        raise ValueError(f"{args.captions} holds no caption; write one on each line")
    reference = read_reference(args.reference, run.data.size) if args.reference else None
    notes: list[str] = []
    if not captions or reference is None:
        count = args.count or len(captions) or COUNT
        pictures, texts, notes = held_out(run, count)
        captions = captions or texts
        reference = pictures if reference is None else reference
    return Asked(
        captions,
        str(args.captions or f"{len(captions)} held-out ones"),
        reference,
        str(args.reference or f"{len(reference)} held-out pictures"),
        notes,
    )


def held_out(run: Run, count: int, *, captioned: bool = True) -> tuple[Pictures, list[str], list[str]]:
    """The first ``count`` held-out pictures (N, S, S, 3) of the run's data, their captions, and a note if N is less."""
    pictures, captions = [], []
    try:
        data = run.data.build("val") if captioned else pictures_of(run.data, "val")
        for batch in first_batches(data, 64, count):
            pictures.append(to_bytes(batch.image))
            captions += batch.captions
    except (ValueError, OSError) as error:
        way_out = "give --reference, and of a model --captions"
        raise ValueError(f"the run's own data is not here ({error}); {way_out}") from error
    fewer = f"of {count} held-out samples that are asked for there are {len(captions)}"
    return np.concatenate(pictures), captions, [fewer] if len(captions) < count else []


def write(
    out: Path,
    what: dict[str, Any],
    found: Found,
    captions: Sequence[str] = (),
    pictures: Pictures | None = None,
) -> None:
    """Write the folder at once, in place of one that is there; with captions and pictures where they were drawn."""
    figures = {"what": what, "tables": found.tables, "notes": found.notes}
    with whole_folder(out) as staged:
        if pictures is not None:
            figures["captions"] = captions
            (staged / "images").mkdir()
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(staged / "images" / f"{number:05d}.png")
        (staged / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
