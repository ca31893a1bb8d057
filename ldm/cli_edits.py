"""The ways of ``scripts/edit.py``: what each makes of its options, for the model to draw and for the eye to see.

Each is called with the options, the model and the given picture (1, 3, H, W) in [-1, 1], and raises ValueError where an
option does not fit.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.cascade import Enlarger
from ldm.cli import given_sampling
from ldm.data.hints import HINTS, enlarged
from ldm.data.transforms import read_picture, to_tensor
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
from ldm.folders import load_control, unet_of
from ldm.pipeline import Steer, TextToImage, Walk, from_noise

OPERATORS = {
    "downscale": "means of squares of AMOUNT x AMOUNT pixels",
    "blur": "Gaussian blur of AMOUNT pixels",
    "pixels": "a share AMOUNT of the pixels hidden",
    "projections": "a share AMOUNT of as many random projections as there are values",
}


class Plan(NamedTuple):
    """What an edit makes of the model's drawing, and what is shown of it."""

    before: list[Tensor]  # pictures (1, 3, H, W) that stand before the results
    legend: str  # what they are
    steps: int  # of each drawing
    draw: Callable[..., Iterator[tuple[Tensor, int]]] | None = None  # in place of the model, which is as it is then
    steer: Steer | None = None
    walk: Walk = from_noise
    finish: Callable[[Tensor], Tensor] = lambda drawn: drawn
    hole: Tensor | None = None  # (1, 1, H, W), 1 where the results are not given
    residual: Callable[[Tensor], float] | None = None  # how far a result is from what was to be kept
    kept: str = "what was measured"  # what that is, in words


def vary(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """Pictures like this one, ``varied``."""
    walk = varied(model, image, args.strength)
    return Plan([image], "the picture", steps_from(model, args.strength), walk=walk)


def reword(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """The picture in other words, ``reworded``."""
    if args.n_samples > 1:
        raise ValueError(f"--n_samples {args.n_samples} would be the same picture each time; leave it out")
    if args.seed:
        raise ValueError(f"--seed {args.seed} has no say: reword draws no noise; leave it out")
    refuse_sampler(args, "goes back and forth by the steps of ddim; leave it out")
    walk = reworded(model, image, args.caption, args.strength)
    return Plan([image], "the picture", steps_from(model, args.strength), walk=walk)


def fill(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """A part of it drawn anew, ``filled``."""
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
    return Plan(
        [image * (1 - mask)], "the picture without the hole", steps, steer=steer, walk=walk, finish=finish, hole=mask
    )


def trace(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """Along what a ControlNet follows of it."""
    if not abs(args.control_scale) < inf:
        raise ValueError(f"--control-scale {args.control_scale} is no finite number; try --control-scale 1")
    control, run = load_control(args.control, model)
    size, of = (image.shape[2], image.shape[3]), HINTS[run.control.hint].of
    hint = of(image) if not args.drawn or HINTS[run.control.hint].factor > 1 else image
    shown = run.control.shown(hint, size).to(model.device)
    model.denoiser = Controlled(unet_of(model), control, shown, args.control_scale)

    def residual(result: Tensor) -> float:
        return (of(result) - hint).square().mean().sqrt().item()

    seen = shown[:, :3].cpu()
    before, legend = ([seen], "") if args.drawn else ([image, seen], "the picture, ")
    kept, steps = "what was to be followed", model.sampling.sample.steps
    return Plan(before, legend + kept, steps, residual=residual, kept=f"{kept} ({run.control.hint})")


def enlarge(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """A larger picture of it, by an ``Enlarger``."""
    enlarger = Enlarger.load(args.control, model, args.noise_level)
    size = enlarger.size((image.shape[2], image.shape[3]))
    small = [(image, args.seed + i) for i in range(args.n_samples)]
    of = HINTS[enlarger.config.hint].of

    def residual(result: Tensor) -> float:
        return (of(result) - image).square().mean().sqrt().item()

    steps, before = model.sampling.sample.steps, enlarged(image, enlarger.factor, size)
    draw = partial(enlarger, small)
    return Plan([before], "the picture", steps, draw, residual=residual, kept="what was enlarged")


def resemble(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """What CLIP takes for the same, ``resembling``."""
    unclip = model.unclip = resembling(model, image).unclip
    assert unclip is not None and unclip.given is not None  # or it would have been refused
    given = unclip.given

    def residual(result: Tensor) -> float:
        return (unclip.of_pictures(result.to(model.device)) - given).square().mean().sqrt().item()

    steps = model.sampling.sample.steps
    return Plan([image], "the picture", steps, residual=residual, kept="CLIP's embedding of it")


def restore(args: argparse.Namespace, model: TextToImage, image: Tensor) -> Plan:
    """The picture from a measurement of it alone, ``restored`` or ``followed``."""
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
    return Plan(before, "the picture, what was measured of it", steps, steer=steer, residual=residual)


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
    """The picture (1, 3, H, W) in [-1, 1] in the file ``path``; ValueError where it is none."""
    return to_tensor(read_picture(path))[None]


def operator_of(name: str, amount: float, image: Tensor) -> Operator:
    """That of ``OPERATORS`` by its name for ``image`` (1, 3, H, W); ValueError where ``amount`` is none of its own."""
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


WAYS: dict[str, Callable[[argparse.Namespace, TextToImage, Tensor], Plan]] = {
    "vary": vary,
    "reword": reword,
    "fill": fill,
    "trace": trace,
    "enlarge": enlarge,
    "resemble": resemble,
    "restore": restore,
}
