"""How good a cascade's pictures are by the noise on the small ones: a table in Markdown.

    python benchmarks/cascade.py runs/small/model runs/enlarger/control --noise-level 0 0.1 0.25 0.5

A cell is the share of right pictures by the exact benchmark, on prompts of a seed of their own: of true small pictures,
and of those that the small model draws; enlarged by cubic interpolation, which knows neither words nor shapes, and by
the ControlNet with each amount of noise.

Legend: N pictures, h w small size.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.cascade import Enlarger
from ldm.cli import device_of, one_line_errors
from ldm.data.transforms import from_bytes, to_bytes
from ldm.evaluation.benchmark import mark, true_pictures
from ldm.evaluation.prompts import TRAINING_SEED, Prompt, prompt_set
from ldm.folders import load_model, shipped_model
from ldm.pipeline import DTYPES
from ldm.training.optim import resolve_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path, metavar="MODEL", help="a model of small pictures")
    parser.add_argument("control", type=Path, metavar="FOLDER", help="a ControlNet of half, quarter or coarse")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="that it is of; the shipped model if left out")
    parser.add_argument("--noise-level", nargs="+", type=float, default=[0.0], metavar="S", help="0 if left out")
    parser.add_argument(
        "--prompts-per-category", type=int, default=10, metavar="N", help="10 categories; 10 if left out"
    )
    parser.add_argument("--precision", choices=sorted(DTYPES), help="of the networks; as evaluate.py if left out")
    args = parser.parse_args()
    device = device_of()
    small, large = load_model(args.small, device), load_model(args.model or shipped_model(), device)
    enlarger = Enlarger.load(args.control, large)
    enlargers = [replace(enlarger, noise_level=noise_level) for noise_level in args.noise_level]
    enlarger.size(small.size)  # refuses a size that does not fit before anything is drawn
    if small.size[0] != small.size[1]:
        raise ValueError(f"{args.small} draws pictures of {small.size}, and the benchmark's are square; give another")
    precision = args.precision or resolve_precision("auto", device)
    prompts = prompt_set(args.prompts_per_category, TRAINING_SEED)
    texts = [prompt.text for prompt in prompts]
    whole = torch.from_numpy(true_pictures(prompts, small.size[0])).permute(0, 3, 1, 2)
    pictures = {  # (N, 3, h, w)
        "true": from_bytes(whole),
        "drawn": torch.cat([image for image, _ in small(texts, precision=precision)]),
    }
    columns = ["small pictures", "cubic", *(f"noise level {noise_level:g}" for noise_level in args.noise_level)]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name, images in pictures.items():
        cubic = interpolate(images, scale_factor=enlarger.factor, mode="bicubic", align_corners=False).clamp(-1, 1)
        cells = [score(prompts, cubic)]
        for each in enlargers:
            drawn = each(zip(images.split(1), range(len(images)), strict=True), texts, precision=precision)
            cells.append(score(prompts, torch.cat([image for image, _ in drawn])))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def score(prompts: list[Prompt], images: Tensor) -> str:
    """The share of right ones of ``images`` (N, 3, H, W), with its 95 % interval."""
    return mark(prompts, to_bytes(images)).score.overall.percent()


if __name__ == "__main__":
    with one_line_errors():
        main()
