"""Draw what prompts say, with the shipped model or one of your own."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ldm.cascade import Enlarger
from ldm.cli import (
    add_sampling,
    add_steering,
    check_negative,
    check_seed,
    device_of,
    given_sampling,
    given_steering,
    one_line_errors,
    read_lines,
)
from ldm.config import from_dict, to_dict
from ldm.data.transforms import to_images
from ldm.files import make_writable
from ldm.folders import digest, load_model, shipped_model
from ldm.metadata import Settings, next_number, read_settings, save_image
from ldm.pictures import grid
from ldm.pipeline import Steer, TextToImage
from ldm.sampling import Sampling


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_argument_group("what to draw")
    what.add_argument("--prompt", nargs="+", action="extend", default=[], help="one or more prompts, each in quotes")
    what.add_argument("--from-file", type=Path, metavar="FILE", help="a text file with a prompt on each line")
    what.add_argument("--from-image", type=Path, metavar="PNG", help="draw an image of this program again")
    what.add_argument("--negative-prompt", help="what to steer away from; nothing if left out")
    what.add_argument("--n_samples", "--n-samples", type=int, default=1, help="images for each prompt, 1 if left out")
    what.add_argument("--seed", type=int, help="of the first image, 0 if left out; each further one counts up by 1")
    what.add_argument("--H", "--height", type=int, dest="height", help="pixels; the model's own if left out")
    what.add_argument("--W", "--width", type=int, dest="width", help="pixels; the model's own if left out")
    how = parser.add_argument_group("how (the model's own settings where left out)")
    how.add_argument("--ckpt", type=Path, metavar="FOLDER", help="a model folder; the shipped model if left out")
    add_sampling(how)
    add_steering(how)
    larger = parser.add_argument_group(
        "a cascade: the images drawn again, larger (docs/editing.md)",
        "Of the options above it has --negative-prompt, --batch, --tile, --precision and --device; the others are of "
        "the smaller images.",
    )
    larger.add_argument("--enlarger", type=Path, metavar="FOLDER", help="a ControlNet of a smaller picture")
    larger.add_argument(
        "--enlarger-ckpt", type=Path, metavar="FOLDER", help="the model that it is of; the shipped model if left out"
    )
    larger.add_argument(
        "--enlarger-noise-level",
        type=float,
        metavar="S",
        help="how far the smaller is not trusted; half of what was learned if left out",
    )
    larger.add_argument(
        "--enlarger-set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of sampler, grid, guidance and sample of that model: sample.steps=10",
    )
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--outdir", "--out", type=Path, default=Path("outputs"), help="folder of the images; outputs if left out"
    )
    where.add_argument("--grid", action="store_true", help="also write all images as one picture, a row per prompt")
    return parser.parse_args()


def main() -> None:
    args = parse()
    again = read_settings(args.from_image) if args.from_image else None
    prompts = read_prompts(args, again)
    if args.n_samples < 1:
        raise ValueError(f"--n_samples {args.n_samples} is not at least 1")
    folder = args.ckpt or shipped_model()
    model = load_model(folder, device_of(args.device))
    first = settle(args, again, model)
    steer, steering = given_steering(args, model, from_dict(Sampling, first.sampling))
    enlarger, enlarging = given_enlarger(args, model.device)
    first = replace(
        first,
        prompt=prompts[0],
        model=folder.resolve().name,
        model_hash=digest(folder),
        steering=steering,
        enlarger=enlarging,
        factor=1 if enlarger is None else enlarger.factor,
    )
    models, guidances = [model], [from_dict(Sampling, first.sampling).guidance]
    if enlarger is not None:
        models, guidances = [model, enlarger.model], [*guidances, enlarger.model.sampling.guidance]
    check_negative(args.negative_prompt, max(guidances, key=lambda guidance: abs(guidance.scale - 1)))
    check_seed(first.seed, len(prompts) * args.n_samples)
    model.latent_size((first.height, first.width))  # refuses a size that does not fit before anything is drawn
    if enlarger is not None:
        enlarger.size((first.height, first.width))
    make_writable(args.outdir)  # a folder that takes no file is noticed here, before anything is drawn
    notes = dict.fromkeys(note for each in models for note in cut(prompts, first.negative_prompt, each))
    for note in (*notes, *differences(first, again)):
        print(f"note: {note}", file=sys.stderr)
    draw(model, prompts, first, steer, enlarger, args)


def draw(
    model: TextToImage,
    prompts: list[str],
    first: Settings,
    steer: Steer | None,
    enlarger: Enlarger | None,
    args: argparse.Namespace,
) -> None:
    """Write ``args.n_samples`` images of each prompt, with the settings of the ``first`` and seeds that count up."""
    repeated = [prompt for prompt in prompts for _ in range(args.n_samples)]
    sampling, number = from_dict(Sampling, first.sampling), next_number(args.outdir)
    images, paths, began = [], [], time.perf_counter()
    steps = sampling.sample.steps + (0 if enlarger is None else enlarger.model.sampling.sample.steps)
    with tqdm(total=len(repeated) * steps, desc="drawing", unit="step", dynamic_ncols=True) as bar:
        drawn = model(
            repeated,
            negative=first.negative_prompt,
            seed=first.seed,
            size=(first.height, first.width),
            sampling=sampling,
            precision=first.precision,
            progress=bar.update,
            steer=steer,
        )
        if enlarger is not None:
            drawn = enlarger(
                drawn, repeated, negative=first.negative_prompt, precision=first.precision, progress=bar.update
            )
        for prompt, (image, seed) in zip(repeated, drawn, strict=True):
            settings = replace(first, prompt=prompt, seed=seed)
            path, number = save_image(to_images(image)[0], settings, args.outdir, number)
            if args.grid:
                images.append(image)
            paths.append(path)
    taken = time.perf_counter() - began
    print(f"{len(paths)} images in {taken:.1f} s, {len(paths) / taken:.2f} a second: {paths[0]} to {paths[-1]}")
    if args.grid:
        columns = args.n_samples if args.n_samples > 1 else min(4, len(images))
        path = paths[0].with_name(f"grid-{paths[0].stem}.png")
        grid(torch.cat(images), columns=columns, path=path)
        print(f"grid: {path}")


def given_enlarger(args: argparse.Namespace, device: torch.device) -> tuple[Enlarger | None, str]:
    """What the options have the images enlarged by, and that in words; None and "" for nothing."""
    if args.enlarger is None:
        for name in ("ckpt", "noise-level", "set"):
            if (value := getattr(args, f"enlarger_{name.replace('-', '_')}")) not in (None, []):
                given = " ".join(value) if name == "set" else value
                raise ValueError(f"--enlarger-{name} {given} is of --enlarger, which is not given; give both, or none")
        return None, ""
    folder = args.enlarger_ckpt or shipped_model()
    model = load_model(folder, device)
    shared = [f"sample.{name}={value}" for name in ("batch", "tile") if (value := getattr(args, name)) is not None]
    model.sampling = model.sampling.but(*shared, *args.enlarger_set)
    enlarger = Enlarger.load(args.enlarger, model, args.enlarger_noise_level)
    own = "".join(f", {override}" for override in args.enlarger_set)
    whose = f"{named(args.enlarger)} of {named(folder)}"
    return enlarger, f"{whose}, noise level {enlarger.noise_level:g}{own}"


def named(folder: Path) -> str:
    """The last two names of a folder's path, and the hash of what it holds."""
    return f"{'/'.join(folder.resolve().parts[-2:])} ({digest(folder)})"


def read_prompts(args: argparse.Namespace, again: Settings | None) -> list[str]:
    """The prompts of the command line and of the file, in that order; those of an image where neither is given."""
    prompts = list(args.prompt)
    if args.from_file:
        prompts += read_lines(args.from_file)
    if again is not None and not prompts:
        prompts = [again.prompt]
    if not prompts:
        raise ValueError('nothing to draw; give --prompt "a red star left of a blue ring", --from-file or --from-image')
    return prompts


def settle(args: argparse.Namespace, again: Settings | None, model: TextToImage) -> Settings:
    """How to draw: what the command line says, else the image, else the model; without a prompt as yet."""
    plain = Settings(
        prompt="",
        negative_prompt="",
        seed=0,
        height=model.size[0],
        width=model.size[1],
        sampling=to_dict(model.sampling),
        precision="fp32",
        model="",
        model_hash="",
    )
    start = again or plain
    options = {
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
        "height": args.height,
        "width": args.width,
        "precision": args.precision,
    }
    sampling = to_dict(from_dict(Sampling, start.sampling).but(*given_sampling(args)))
    return replace(start, **{name: value for name, value in options.items() if value is not None}, sampling=sampling)


def cut(prompts: list[str], negative: str, model: TextToImage) -> Iterator[str]:
    """Of how many prompts, and whether of the negative one, the model does not read the end."""
    for what, texts in (("prompts", [*dict.fromkeys(prompts)]), ("negative prompt", [negative])):
        before = model.text.truncated
        model.text.tokenize(texts)
        if number := model.text.truncated - before:
            yield f"{what} cut to the {model.text.context_length} tokens that the model reads: {number}"


def differences(first: Settings, again: Settings | None) -> Iterator[str]:
    """What keeps the ``first`` image from being the one that is to be drawn ``again``."""
    if again is not None and again.model_hash != first.model_hash:
        yield f"the image was drawn by another model ({again.model}, {again.model_hash})"
    if again is None:
        return
    if again.steering != first.steering:
        yield f"the image was steered by {again.steering or 'nothing'}; give the options that do so for the same"
    if again.enlarger != first.enlarger:
        yield f"the image was enlarged by {again.enlarger or 'nothing'}; give the options that do so for the same"


if __name__ == "__main__":
    with one_line_errors():
        main()
