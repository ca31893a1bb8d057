"""Draw what prompts say, with the shipped model or one of your own."""

import argparse
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

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
from ldm.config import from_dict, to_dict
from ldm.data.transforms import to_images
from ldm.files import make_writable
from ldm.folders import digest, load_model, shipped_model
from ldm.metadata import Settings, next_number, read_settings, save_image
from ldm.pictures import grid
from ldm.pipeline import TextToImage
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
    what.add_argument("--H", "--height", type=int, dest="height", help="pixels; the model's own size if left out")
    what.add_argument("--W", "--width", type=int, dest="width", help="pixels; the model's own size if left out")
    how = parser.add_argument_group("how (the model's own settings where left out)")
    how.add_argument("--ckpt", type=Path, metavar="FOLDER", help="a model folder; the shipped model if left out")
    add_sampling(how)
    add_steering(how)
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
    given = given_sampling(args)
    folder = args.ckpt or shipped_model()
    model = load_model(folder, device_of(args.device))
    sampling, size, seed = settle(args, given, again, model)
    check_seed(seed, len(prompts) * args.n_samples)
    model.latent_size(size)  # refuses a size that does not fit before anything is drawn
    make_writable(args.outdir)  # a folder that takes no file is noticed here, before anything is drawn
    number = next_number(args.outdir)
    model_hash = digest(folder)
    if again is not None and again.model_hash != model_hash:
        print(f"note: the image was drawn by another model ({again.model}, {again.model_hash})", file=sys.stderr)
    precision = args.precision or (again.precision if again is not None else "fp32")
    negative = again.negative_prompt if again is not None else ""
    negative = args.negative_prompt if args.negative_prompt is not None else negative
    tell_cut(prompts, negative, model)
    steer, steering = given_steering(args, model)
    if again is not None and again.steering and not steering:
        print(
            f"note: the image was steered ({again.steering}); give --classifier or --worse for the same",
            file=sys.stderr,
        )
    repeated = [prompt for prompt in prompts for _ in range(args.n_samples)]
    images, paths, began = [], [], time.perf_counter()
    with tqdm(total=len(repeated) * sampling.sample.steps, desc="drawing", unit="step", dynamic_ncols=True) as bar:
        drawn = model(
            repeated,
            negative=negative,
            seed=seed,
            size=size,
            sampling=sampling,
            precision=precision,
            progress=bar.update,
            steer=steer,
        )
        for prompt, (image, image_seed) in zip(repeated, drawn, strict=True):
            settings = Settings(
                prompt=prompt,
                negative_prompt=negative,
                seed=image_seed,
                height=size[0],
                width=size[1],
                sampling=to_dict(sampling),
                precision=precision,
                model=folder.resolve().name,
                model_hash=model_hash,
                steering=steering,
            )
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


def tell_cut(prompts: list[str], negative: str, model: TextToImage) -> None:
    """Say of how many prompts, and of the negative one, the model does not read the end."""
    for what, texts in (("prompts", [*dict.fromkeys(prompts)]), ("negative prompt", [negative])):
        before = model.text.truncated
        model.text.tokenize(texts)
        if cut := model.text.truncated - before:
            most = model.text.context_length
            print(f"note: {what} cut to the {most} tokens that the model reads: {cut}", file=sys.stderr)


def settle(
    args: argparse.Namespace, given: list[str], again: Settings | None, model: TextToImage
) -> tuple[Sampling, tuple[int, int], int]:
    """Sampling settings, (height, width) and seed: the command line's, else the image's, else the model's."""
    sampling, size, seed = model.sampling, model.size, 0
    if again is not None:
        sampling = from_dict(Sampling, again.sampling)
        size, seed = (again.height, again.width), again.seed
    sampling = sampling.but(*given)
    size = (args.height if args.height is not None else size[0], args.width if args.width is not None else size[1])
    seed = args.seed if args.seed is not None else seed
    return sampling, size, seed


if __name__ == "__main__":
    with one_line_errors():
        main()
