"""Draw from a picture: vary it, say it in other words, fill a hole in it, or restore it from a measurement of it.

python scripts/edit.py vary     --image star.png --prompt "a blue star" --strength 0.6
python scripts/edit.py reword   --image star.png --caption "a red star" --prompt "a blue star"
python scripts/edit.py fill     --image star.png --box 0,32,64,64 --prompt "a red star and a ring"
python scripts/edit.py trace    --image star.png --prompt "a blue star" --control runs/shapes/control
python scripts/edit.py resemble --image star.png --prompt "" --ckpt runs/demo_unclip/model
python scripts/edit.py restore  --image star.png --prompt "a red star" --operator downscale --amount 4
"""

import argparse
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.cli import (
    add_sampling,
    check_negative,
    check_picture,
    check_seed,
    device_of,
    given_sampling,
    one_line_errors,
)
from ldm.data.hints import HINTS
from ldm.data.transforms import BrokenSample, read_image, to_tensor
from ldm.denoisers.control import Controlled
from ldm.editing import (
    Blur,
    Downscale,
    Masked,
    Operator,
    Projections,
    ResamplingConfig,
    filled,
    followed,
    resembling,
    restored,
    reworded,
    varied,
)
from ldm.editing.image_to_image import first_level
from ldm.evaluation.reconstruction import psnr
from ldm.folders import load_control, load_model, shipped_model, unet_of
from ldm.pictures import grid
from ldm.pipeline import Steer, TextToImage, Walk, from_noise

OPERATORS = {
    "downscale": "means of squares of AMOUNT x AMOUNT pixels",
    "blur": "Gaussian blur of AMOUNT pixels",
    "pixels": "a share AMOUNT of the pixels hidden",
    "projections": "a share AMOUNT of as many random projections as there are values",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--image", type=Path, required=True, help="the picture; its sides fit the model")
    common.add_argument("--prompt", required=True, help="what the result shows")
    common.add_argument("--negative-prompt", default="", help="what to steer away from")
    common.add_argument("--n_samples", "--n-samples", type=int, help="results, 4 if left out; reword has one")
    common.add_argument("--seed", type=int, default=0, help="of the first; each further one counts up by 1")
    common.add_argument("--ckpt", type=Path, metavar="FOLDER", help="a model folder; the shipped model if left out")
    common.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/edit.png"),
        help="one PNG of all; replaced if it is there",
    )
    add_sampling(common)
    ways = parser.add_subparsers(dest="way", required=True)
    varying = ways.add_parser("vary", parents=[common], help="pictures like this one (SDEdit)")
    varying.add_argument("--strength", type=float, default=0.6, help="0 keeps the picture, 1 forgets it")
    rewording = ways.add_parser("reword", parents=[common], help="this one with other words (DDIM inversion)")
    rewording.add_argument("--caption", required=True, help="what the picture shows as it is")
    rewording.add_argument("--strength", type=float, default=0.7, help="0 keeps the picture, 1 goes back to noise")
    filling = ways.add_parser("fill", parents=[common], help="draw a part of it anew (RePaint)")
    hole = filling.add_mutually_exclusive_group(required=True)
    hole.add_argument("--mask", type=Path, help="a picture: white is drawn anew, black is kept")
    hole.add_argument("--box", metavar="L,T,R,B", help="or the pixels of a rectangle: left, top, right, bottom")
    filling.add_argument("--jump", type=int, help="steps that are done again, 5 if left out")
    filling.add_argument("--times", type=int, default=4, help="how often; 1 is once, with the model's sampler")
    tracing = ways.add_parser(
        "trace", parents=[common], help="along its edges, or what else is to be kept (ControlNet)"
    )
    tracing.add_argument("--control", type=Path, metavar="FOLDER", required=True, help="train_control.py writes one")
    tracing.add_argument("--control-scale", type=float, default=1.0, help="how closely: 0 not at all, 1 as trained")
    tracing.add_argument(
        "--drawn",
        action="store_true",
        help="the image itself is to be followed: of edges white on black",
    )
    ways.add_parser("resemble", parents=[common], help="what CLIP takes for the same (unCLIP)")
    restoring = ways.add_parser("restore", parents=[common], help="from a measurement of it alone (DDNM, DPS)")
    described = "; ".join(f"{name}: {what}" for name, what in OPERATORS.items())
    restoring.add_argument(
        "--operator",
        choices=OPERATORS,
        required=True,
        help=described,
    )
    restoring.add_argument("--amount", type=float, required=True, help="how much, see the operators")
    restoring.add_argument("--method", choices=["ddnm", "dps"], default="ddnm", help="dps follows gradients, ddnm none")
    restoring.add_argument("--noise", type=float, default=0.0, help="std of noise on it, where pixels are -1 to 1; dps")
    return parser.parse_args()


class Plan(NamedTuple):
    """What an edit makes of the model's drawing, and what is shown of it."""

    before: list[Tensor]  # pictures (1, 3, H, W) that stand before the results
    legend: str  # what they are
    steps: int  # of each drawing
    steer: Steer | None = None
    walk: Walk = from_noise
    finish: Callable[[Tensor], Tensor] = lambda drawn: drawn
    hole: Tensor | None = None  # (1, 1, H, W), 1 where the results are not given
    residual: Callable[[Tensor], float] | None = None  # how far a result is from what was to be kept
    kept: str = "what was measured"  # what that is, in words


def main() -> None:
    args = parse()
    if args.n_samples is None:
        args.n_samples = 1 if args.way == "reword" else 4
    if args.n_samples < 1:
        raise ValueError(f"--n_samples {args.n_samples} is not at least 1")
    check_seed(args.seed, args.n_samples)
    check_picture(args.out)
    image = read(args.image)
    model = load_model(args.ckpt or shipped_model(), device_of(args.device))
    model.sampling = model.sampling.but(*given_sampling(args))
    check_negative(args.negative_prompt, model.sampling.guidance)
    size = (image.shape[2], image.shape[3])
    model.latent_size(size)  # refuses a size that does not fit
    ways = {"vary": vary, "reword": reword, "fill": fill, "trace": trace, "resemble": resemble, "restore": restore}
    plan = ways[args.way](args, model, image)
    prompts = [args.prompt] * args.n_samples
    with tqdm(total=len(prompts) * plan.steps, desc=args.way, unit="step", dynamic_ncols=True) as bar:
        drawn = model(
            prompts,
            negative=args.negative_prompt,
            seed=args.seed,
            size=size,
            precision=args.precision or "fp32",
            progress=bar.update,
            steer=plan.steer,
            walk=plan.walk,
        )
        results = [plan.finish(one) for one, _ in drawn]
    if args.way == "restore":
        print(f"PSNR against the whole picture: of the measurement alone {decibels(image, plan.before[-1])} dB")
        print(f"of the restored pictures {', '.join(decibels(image, one) for one in results)} dB")
    if plan.residual is not None:
        off = ", ".join(f"{plan.residual(one):.2g}" for one in results)
        print(f"{plan.kept} differs in the results by {off} (root mean square)")
    if plan.hole is not None:
        inside = plan.hole.expand_as(image) > 0
        cut = [one[inside].view(1, 1, 1, -1) for one in (image, *results)]
        print(f"PSNR in the hole against the picture: {', '.join(decibels(cut[0], one) for one in cut[1:])} dB")
    shown = [*plan.before, *results]
    grid(torch.cat(shown), columns=len(shown), path=args.out)
    print(f"{args.out}: {plan.legend}, and the results")


def vary(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    walk = varied(model, image, args.strength)
    return Plan([image], "the picture", steps_from(model, args.strength), walk=walk)


def reword(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    if args.n_samples > 1:
        raise ValueError(f"--n_samples {args.n_samples} would be the same picture each time; leave it out")
    if args.seed:
        raise ValueError(f"--seed {args.seed} has no say: reword draws no noise; leave it out")
    refuse_sampler(args, "goes back and forth by the steps of ddim; leave it out")
    walk = reworded(model, image, args.caption, args.strength)
    return Plan([image], "the picture", steps_from(model, args.strength), walk=walk)


def fill(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    mask = box(args.box, image) if args.box else (read(args.mask).mean(dim=1, keepdim=True) > 0).float()  # (1, 1, H, W)
    if mask.shape[2:] != image.shape[2:]:
        size = f"{image.shape[3]} x {image.shape[2]}"
        raise ValueError(f"--mask {args.mask} is of another size than the image; make it {size}")
    if not mask.any():
        raise ValueError(f"--mask {args.mask} is black all over; what is to be drawn anew is white in it")
    if args.times < 1:
        raise ValueError(f"--times {args.times} is not at least 1")
    if args.times > 1:
        refuse_sampler(args, "draws parts again by steps of its own; give it --times 1")
    if args.times == 1 and args.jump is not None:
        raise ValueError(f"--jump {args.jump} is of steps that are done again; leave it out with --times 1")
    jump = 5 if args.jump is None else args.jump
    resampling = ResamplingConfig(jump, args.times) if args.times > 1 else None
    steer, walk = filled(model, image, mask, resampling)

    def finish(drawn: Tensor) -> Tensor:
        return torch.lerp(image, drawn, mask)

    steps = model.sampling.sample.steps
    return Plan([image * (1 - mask)], "the picture without the hole", steps, steer, walk, finish, mask)


def trace(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    if not abs(args.control_scale) < inf:
        raise ValueError(f"--control-scale {args.control_scale} is no finite number; try --control-scale 1")
    control, run = load_control(args.control, model)
    hint_of = HINTS[run.control.hint]
    hint = image if args.drawn else hint_of(image)
    model.denoiser = Controlled(unet_of(model), control, hint.to(model.device), args.control_scale)

    def residual(result: Tensor) -> float:
        return (hint_of(result) - hint).square().mean().sqrt().item()

    before, legend = ([hint], "") if args.drawn else ([image, hint], "the picture, ")
    kept, steps = "what was to be followed", model.sampling.sample.steps
    return Plan(before, legend + kept, steps, residual=residual, kept=f"{kept} ({run.control.hint})")


def resemble(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    unclip = model.unclip = resembling(model, image).unclip
    assert unclip is not None  # or it would have been refused

    def residual(result: Tensor) -> float:
        return (unclip.of_pictures(result.to(model.device)) - unclip.given).square().mean().sqrt().item()

    steps = model.sampling.sample.steps
    return Plan([image], "the picture", steps, residual=residual, kept="CLIP's embedding of it")


def restore(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    if not 0 <= args.noise < inf:
        raise ValueError(f"--noise {args.noise} is not a number from 0; try --noise 0.1")
    if args.noise and args.method == "ddnm":
        raise ValueError(f"--noise {args.noise} is nothing that ddnm allows for; give it --method dps")
    operator = operator_of(args.operator, args.amount, image)
    y = operator.apply(image)
    if args.noise:  # where nothing is measured there is none; numpy's, for none of torch's may be a picture's first
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal(y.shape, dtype=np.float32))
        y = y + args.noise * operator.apply(operator.pseudo_inverse(drawn))
    steer = followed(model, operator, y, std=args.noise) if args.method == "dps" else restored(model, operator, y)
    before = [image, operator.pseudo_inverse(y).view_as(image)]

    def residual(result: Tensor) -> float:
        return (operator.apply(result) - y).square().mean().sqrt().item()

    steps = model.sampling.sample.steps
    return Plan(before, "the picture, what was measured of it", steps, steer, residual=residual)


def steps_from(model: TextToImage, strength: float) -> int:
    """How many of the model's steps lie below the level of ``strength``."""
    steps = model.sampling.sample.steps
    return steps - first_level(model.sampling.grid(model.process.schedule, steps), strength)


def refuse_sampler(args: argparse.Namespace, why: str) -> None:
    """A ValueError where a sampler was asked for, of an edit that does without."""
    if chosen := [override for override in given_sampling(args) if override.startswith("sampler")]:
        raise ValueError(f"{' '.join(chosen)} has no say: {args.way} {why}")


def box(text: str, image: Tensor) -> Tensor:
    """The mask (1, 1, H, W) of the rectangle "left,top,right,bottom"."""
    height, width = image.shape[2:]
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--box {text} is not four whole numbers; write e.g. --box 0,32,64,64") from error
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"--box {text} is not within 0,0,{width},{height}")
    mask = torch.zeros(1, 1, height, width)
    mask[..., top:bottom, left:right] = 1
    return mask


def read(path: Path) -> Tensor:
    """The picture (1, 3, H, W) in [-1, 1]."""
    try:
        return to_tensor(read_image(path))[None]
    except BrokenSample as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def operator_of(name: str, amount: float, image: Tensor) -> Operator:
    height, width = image.shape[2:]
    if name == "downscale":
        if not amount.is_integer():
            raise ValueError(f"--amount {amount} of downscale is not a whole number; try --amount 4")
        return Downscale(int(amount))
    if name == "blur":
        return Blur(amount, (height, width))
    if not 0 < amount < 1:
        raise ValueError(f"--amount {amount} of {name} is not a share between 0 and 1; try --amount 0.5")
    if name == "pixels":
        return Masked.random(height, width, amount, seed=0)
    return Projections((3, height, width), round(amount * image[0].numel()), seed=0)


def decibels(image: Tensor, other: Tensor) -> str:
    return f"{psnr(other.clamp(-1, 1), image).item():.1f}"


if __name__ == "__main__":
    with one_line_errors():
        main()
