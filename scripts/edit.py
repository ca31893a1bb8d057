"""Draw from a picture: vary it, say it in other words, fill a hole in it, follow or enlarge it, or restore it.

python scripts/edit.py vary     --image star.png --prompt "a blue star" --strength 0.6
python scripts/edit.py reword   --image star.png --caption "a red star" --prompt "a blue star"
python scripts/edit.py fill     --image star.png --box 0,32,64,64 --prompt "a red star and a ring"
python scripts/edit.py trace    --image star.png --prompt "a blue star" --control runs/edges/control
python scripts/edit.py enlarge  --image star.png --prompt "a blue star" --control runs/enlarger/control
python scripts/edit.py resemble --image star.png --prompt "" --ckpt runs/demo_unclip/model
python scripts/edit.py restore  --image star.png --prompt "a red star" --operator downscale --amount 4
"""

import argparse
from functools import partial
from pathlib import Path

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
from ldm.cli_edits import OPERATORS, WAYS, read
from ldm.evaluation.reconstruction import psnr
from ldm.folders import load_model, shipped_model
from ldm.pictures import grid


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--image", type=Path, required=True, help="the picture; it, or what it becomes, fits the model")
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
    enlarging = ways.add_parser("enlarge", parents=[common], help="a larger picture of it (a cascade's second model)")
    enlarging.add_argument("--control", type=Path, metavar="FOLDER", required=True, help="of half, quarter or coarse")
    enlarging.add_argument(
        "--noise-level", type=float, help="how far the image is not trusted; half of what was learned if left out"
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
    if args.way != "enlarge":
        model.latent_size(size)  # refuses a size that does not fit
    plan = WAYS[args.way](args, model, image)
    prompts = [args.prompt] * args.n_samples
    draw = plan.draw or partial(model, seed=args.seed, size=size, steer=plan.steer, walk=plan.walk)
    with tqdm(total=len(prompts) * plan.steps, desc=args.way, unit="step", dynamic_ncols=True) as bar:
        drawn = draw(prompts, negative=args.negative_prompt, precision=args.precision or "fp32", progress=bar.update)
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


def decibels(image: Tensor, other: Tensor) -> str:
    return f"{psnr(other.clamp(-1, 1), image).item():.1f}"


if __name__ == "__main__":
    with one_line_errors():
        main()
