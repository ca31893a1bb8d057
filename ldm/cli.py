"""What the scripts share: the options of a run, and mistakes told in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ldm.config import load, to_yaml
from ldm.diffusion.guidance import GuidanceConfig
from ldm.files import make_writable
from ldm.folders import load_classifier, load_model
from ldm.memory import keep_freed, ran_out
from ldm.pipeline import DTYPES, Steer, TextToImage
from ldm.ranks import is_first_process
from ldm.run import Run
from ldm.samplers import SAMPLERS
from ldm.samplers.ddim import DDPMConfig
from ldm.sampling import Sampling
from ldm.steering import away_from, by_classifier, by_worse_model, in_turn, towards
from ldm.training.signals import Terminated, terminating
from ldm.training.start import Start
from ldm.types import Grid

DEVICE_HELP = "cpu, cuda, cuda:1, ...; the GPU if there is one when left out"
SHORT = {  # options of their own for what is asked for most
    "sampler": "sampler",
    "steps": "sample.steps",
    "scale": "guidance.scale",
    "eta": "sampler.eta",
    "batch": "sample.batch",
    "tile": "sample.tile",
}
DRAWING = (  # options of how to draw and of what else steers, but for the device
    *SHORT,
    *("set", "precision", "seed", "also", "perp_neg"),
    *("classifier", "classifier_scale", "classifier_form", "worse", "worse_scale"),
)
EXAMPLES = """
values of the configuration are set by key=value after the options:
  python scripts/{script} train_{stage}.steps=2000 train_{stage}.batch=32 out=runs/mine
  python scripts/{script} --config {example}
--print-config shows every key with its value.
"""


def add_sampling(parser: Any, precision: str = "fp32") -> None:
    """Options of how images are drawn; what is left out is as the model has it.

    ``precision`` says, for the help alone, what the script then takes.
    """
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), help="see docs/samplers.md")
    parser.add_argument("--steps", "--ddim_steps", "--num_inference_steps", help="noise levels that it visits")
    parser.add_argument("--scale", "--guidance_scale", help="classifier-free guidance; 1 is none")
    parser.add_argument("--eta", "--ddim_eta", help="noise of a sampler that has it: 0 none, 1 as ddpm, or more")
    parser.add_argument("--batch", help="images drawn at once; does not change them")
    parser.add_argument("--tile", help="pixels a side of what is decoded at once, for large images; 0 is all")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of sampler, grid, guidance and sample: grid=karras 'guidance.interval=[0.2,0.8]'",
    )
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    parser.add_argument("--precision", choices=sorted(DTYPES), help=f"of the networks; {precision} if left out")


def add_steering(parser: Any) -> None:
    """Options of what else than the prompt steers."""
    parser.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("WEIGHT", "PROMPT"),
        help="towards a further prompt, or away from it where the weight is below 0; may be given again",
    )
    parser.add_argument(
        "--perp-neg",
        nargs=2,
        metavar=("WEIGHT", "PROMPT"),
        help="away from what a prompt says and the first does not ask for",
    )
    parser.add_argument("--classifier", type=Path, metavar="FOLDER", help="steer by a classifier of noised latents")
    parser.add_argument("--classifier-scale", type=float, help="how much, 1 if left out")
    parser.add_argument(
        "--classifier-form",
        choices=("noise", "mean"),
        help="what it moves: the noise, with any sampler, or the mean of ddpm's steps; noise if left out",
    )
    parser.add_argument("--worse", type=Path, metavar="FOLDER", help="steer away from an earlier or smaller model")
    parser.add_argument("--worse-scale", type=float, help="how far, 1 is not at all; 1.5 if left out")


def given_steering(args: argparse.Namespace, model: TextToImage, sampling: Sampling) -> tuple[Steer | None, str]:
    """What the options steer ``model`` by, which draws by ``sampling``, and that in words; None and "" for nothing.

    Raises:
        ValueError: the classifier or the other model is of other latents or noise levels; a weight is no number; there
            is no classifier whose form is given, or the sampler takes no steps of ddpm.
    """
    scales = {name: scale_of(args, name, usual) for name, usual in (("classifier", 1.0), ("worse", 1.5))}
    steers, words = [], []
    if wishes := [(weight_in("--also", *wish), wish[1]) for wish in args.also]:
        steers.append(towards(model, wishes))
        words += [f"also {text!r}, weight {weight:g}" for weight, text in wishes]
    if args.perp_neg:
        weight, text = weight_in("--perp-neg", *args.perp_neg), args.perp_neg[1]
        steers.append(away_from(model, text, weight))
        words.append(f"not {text!r}, weight {weight:g}")
    if args.classifier_form and not args.classifier:
        raise ValueError(f"--classifier-form {args.classifier_form} is of --classifier, which is not given; give both")
    if args.classifier:
        grid = grid_of_means(model, sampling) if args.classifier_form == "mean" else None
        steers.append(by_classifier(load_classifier(args.classifier, model), scales["classifier"], grid))
        words.append(
            f"{args.classifier.resolve().name}, scale {scales['classifier']:g}" + (", by the mean" if grid else "")
        )
    if args.worse:
        steers.append(by_worse_model(model, load_model(args.worse, model.device), scales["worse"]))
        words.append(f"away from {'/'.join(args.worse.resolve().parts[-2:])}, scale {scales['worse']:g}")
    return (in_turn(steers) if steers else None), "; ".join(words)


def grid_of_means(model: TextToImage, sampling: Sampling) -> Grid:
    """The levels of ``sampling``; ValueError where its sampler does not draw the mean of ddpm's steps and noise."""
    if not isinstance(sampling.sampler, DDPMConfig) or sampling.sampler.variance != "posterior":
        raise ValueError(
            "--classifier-form mean moves the means of ddpm's steps, by their posterior's variance; "
            "give --sampler ddpm --set sampler.variance=posterior, or leave it out"
        )
    return sampling.grid(model.process.schedule, sampling.sample.steps)


def scale_of(args: argparse.Namespace, name: str, usual: float) -> float:
    """--NAME-scale, or else ``usual``; ValueError where it is no number, or --NAME is not given."""
    scale = getattr(args, f"{name}_scale")
    if scale is not None and not getattr(args, name):
        raise ValueError(f"--{name}-scale {scale:g} is of --{name}, which is not given; give it, or leave both out")
    if scale is not None and not abs(scale) < inf:
        raise ValueError(f"--{name}-scale {scale} is no finite number; try --{name}-scale {usual}")
    return usual if scale is None else scale


def weight_in(option: str, weight: str, prompt: str) -> float:
    """``weight`` as a number; ValueError where it is none."""
    try:
        found = float(weight)
    except ValueError:
        found = inf
    if not abs(found) < inf:
        raise ValueError(f'{option} {weight} "{prompt}": {weight} is no finite number; try {option} 1.5 "{prompt}"')
    return found


def check_seed(first: int, count: int) -> None:
    """Raise ValueError unless ``first``, and the ``count`` seeds that count up from it, are all of other pictures.

    torch's generator on a CPU takes the low 32 bits of a seed and no others.
    """
    if not 0 <= first <= 2**32 - count:
        same = first % 2**32
        instead = f"{same}, which draws the same" if same <= 2**32 - count and first > 0 else "0"
        raise ValueError(f"--seed {first} is not a number from 0 to 2^32 - {count}; try --seed {instead}")


def check_negative(prompt: str | None, guidance: GuidanceConfig) -> None:
    """Raise ValueError where a negative ``prompt`` is given to ``guidance`` that asks nothing of it."""
    if prompt and guidance.scale == 1:
        raise ValueError(f'--negative-prompt "{prompt}" changes nothing at a guidance scale of 1; try --scale 4')


def read_lines(path: Path) -> list[str]:
    """The prompts of a text file, one on each line, stripped and without empty ones; bytes not UTF-8 are replaced."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def given_sampling(args: argparse.Namespace) -> list[str]:
    """What of a ``Sampling`` the options settle, as overrides of it."""
    given = [f"{key}={getattr(args, name)}" for name, key in SHORT.items() if getattr(args, name) is not None]
    return [*given, *args.set]


def options_given(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the options ``names`` that were given, as they are written: ["--perp-neg"] of ["perp_neg", "also"]."""
    values = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return [option for option, value in values.items() if value is not False and value not in (None, "", [])]


def run_script(
    stage: str,
    script: str,
    description: str,
    call: Callable[[Run, torch.device, Start], object],
    *,
    example: str = "configs/folder256.yaml data.path=~/pictures",
    resumes: bool = True,
) -> None:
    """Parse the options of a training script, then ``call`` it with the run, the device and what else was asked.

    One that ``resumes`` has checkpoints to go on from; ``example`` is a configuration of its help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python scripts/{script}",
        description=description,
        epilog=EXAMPLES.format(script=script, stage=stage, example=example),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a value of the configuration")
    parser.add_argument("--config", metavar="FILE", help="a YAML file, see configs/; the shapes run when left out")
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    parser.add_argument(
        "--dry-run", action="store_true", help="try a few steps, tell what the run will take, and leave"
    )
    if resumes:
        parser.add_argument("--resume-changed", action="store_true", help="go on from a checkpoint of other settings")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and leave")
    args = parser.parse_intermixed_args()
    with one_line_errors(), only_first_prints():
        run = load(Run, args.config, args.overrides)
        if args.print_config:
            print(to_yaml(run), end="")
            return
        device = device_of(args.device)
        if args.dry_run:
            with TemporaryDirectory(prefix="ldm-dry-run-") as scratch:
                call(run, device, Start(scratch=Path(scratch)))
            print(f"a dry run: nothing was written to {run.out}")
        else:
            print(f"written to {call(run, device, Start(resume_changed=resumes and args.resume_changed))}")


def check_sides(size: int, factor: int) -> None:
    """Raise ValueError where pictures of ``size`` pixels a side do not suit a first stage of that factor."""
    if size < 1 or size % factor:
        raise ValueError(f"--size {size} is not a multiple of {factor}; try {max(1, size // factor) * factor}")


def check_picture(out: Path, endings: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp", ".bmp")) -> None:
    """Before anything is drawn: a ValueError where ``out`` is no name of a picture, an OSError where none can be."""
    if out.suffix.lower() not in endings or out.is_dir():
        raise ValueError(f"{out} ends in none of {', '.join(endings)}, or is a folder; try {out.stem}.png")
    make_writable(out.parent)


@contextmanager
def only_first_prints() -> Iterator[None]:
    """What all processes print alike only the first prints; torchrun tells each its RANK. All tell of their errors."""
    with ExitStack() as stack:
        if not is_first_process():
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A mistake of the user's ends the program with one line and status 2; a fault of ours keeps its traceback.

    Ctrl-C and SIGTERM end it with status 130 and 143, after everything half-written has been removed. It keeps the
    memory that it frees, for it is a program's whole run that lies within.
    """
    keep_freed()
    try:
        with terminating():
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print("terminated", file=sys.stderr)
        sys.exit(143)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not (words := ran_out(error)):
            raise
        way_out = "a smaller batch (of a training with more accumulate, of its latents cache.batch), or a smaller tile"
        print(f"error: memory ran out ({words}); try {way_out}", file=sys.stderr)
        sys.exit(2)


def device_of(name: str = "") -> torch.device:
    """The device of that name; where none is named, this process's GPU, or the CPU on a machine without one.

    Raises:
        ValueError: this machine has no such device, or it has no double precision.
    """
    if not name or name == "cuda":
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        name = gpu if name or torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not there ({str(error).splitlines()[0]}); try --device cpu") from error
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError as error:
        raise ValueError(f"--device {name} has no double precision, which schedules need; try --device cpu") from error
    return device
