"""How good a model's pictures are by guidance and its scale: a table in Markdown.

    python benchmarks/guidance.py --classifier runs/shapes/classifier --worse runs/early/model
    python benchmarks/guidance.py --worse runs/early/model --rows plain worse

A cell says the share of right pictures by the exact benchmark, on prompts of a seed of their own; and the spread, the
root mean square difference of two pictures of one prompt, pixels in [-1, 1]: how different they are. A scale of 1 is
no guidance, but for the classifier, which then counts as it is: beside the prompt, or in its place, where all that the
denoiser is told is the empty prompt; and for Perp-Neg and composed prompts, which have a weight of 1 then. The negative
prompt of a picture is its own with the two shapes exchanged, and the empty one where that says the same, or there is
one shape. Composed is a prompt for each object, which cannot say where they are to one another.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.cli import device_of, one_line_errors
from ldm.data.captions import caption, parse
from ldm.diffusion.guidance import GuidanceConfig, classifier_free, composed, perpendicular
from ldm.evaluation.benchmark import drawn_by, mark
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import load_classifier, load_model, shipped_model
from ldm.pipeline import DTYPES, Steer, TextToImage
from ldm.steering import by_classifier, by_worse_model
from ldm.training.optim import resolve_precision
from ldm.types import Denoise

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
PAIRS = 30  # prompts whose two pictures are compared
OTHER = 1_000_000  # seed of the second ones
BESIDE, INSTEAD = "classifier beside the prompt", "classifier instead of the prompt"
NEGATIVE = "negative prompt in the empty one's place"
PERPENDICULAR, COMPOSED = "plain, and Perp-Neg", "composed of its objects"
FROM_ONE = ("plain", BESIDE, INSTEAD, PERPENDICULAR, COMPOSED)  # shown at a scale of 1, too
KINDS = {
    "interval [0.2, 0.9]": ["guidance.interval=[0.2,0.9]"],
    "interval [0.4, 0.8]": ["guidance.interval=[0.4,0.8]"],
    "rescale 0.7": ["guidance.rescale=0.7"],
    "threshold 0.995": ["guidance.threshold=0.995"],
    "projected (parallel 0, norm 10, momentum -0.5)": [
        "guidance.parallel=0",
        "guidance.norm=10",
        "guidance.momentum=-0.5",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; the shipped model if left out")
    parser.add_argument(
        "--prompts-per-category", type=int, default=10, metavar="N", help="10 categories; 10 if left out"
    )
    parser.add_argument("--precision", choices=sorted(DTYPES), help="of the networks; as evaluate.py if left out")
    parser.add_argument("--classifier", type=Path, metavar="FOLDER", help="of this model's latents, for guidance")
    parser.add_argument("--worse", type=Path, metavar="FOLDER", help="an earlier or smaller model, for autoguidance")
    parser.add_argument("--rows", nargs="+", metavar="START", help="those of that name, or whose names begin so, alone")
    args = parser.parse_args()
    model = load_model(args.model or shipped_model(), device_of())
    precision = args.precision or resolve_precision("auto", model.device)
    measure = Measure(model, args.prompts_per_category, precision)
    settings, steered = {"plain": [], **KINDS}, steers(args, model)
    asked = [*settings, *steered] if args.rows is None else asked_for(args.rows, [*settings, *steered])
    head("guidance", [f"scale {scale:g}" for scale in SCALES])
    for name in asked:
        guided = [scale for scale in SCALES if scale > 1 or name in FROM_ONE]
        if name in settings:
            tell(name, {scale: measure.cell([*settings[name], f"guidance.scale={scale}"]) for scale in guided})
        else:
            prompted = f"guidance.scale={0 if name == INSTEAD else 1}"
            tell(name, {scale: measure.cell([prompted], steered[name](scale)) for scale in guided})


def asked_for(starts: list[str], names: list[str]) -> list[str]:
    """For each of ``starts`` the name that it is, or else those that begin with it; a ValueError where none does."""
    asked = []
    for start in starts:
        found = [name for name in names if name == start] or [name for name in names if name.startswith(start)]
        if not found:
            raise ValueError(f"--rows {start}: no row begins so; the rows are {', '.join(names)}")
        asked += found
    return asked


def head(name: str, columns: list[str]) -> None:
    print(f"| {name} | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")


def tell(name: str, cells: dict[float, str]) -> None:
    print(f"| {name} | {' | '.join(cells.get(scale, '') for scale in SCALES)} |", flush=True)


def steers(args: argparse.Namespace, model: TextToImage) -> dict[str, Callable[[float], Steer]]:
    """Guidance that is not the classifier-free one, by name, each a function of its scale."""
    found: dict[str, Callable[[float], Steer]] = {
        NEGATIVE: lambda scale: by_negative(model, scale),
        PERPENDICULAR: lambda scale: by_perpendicular(model, scale),
        COMPOSED: lambda scale: by_objects(model, scale),
    }
    if args.classifier:
        classifier = load_classifier(args.classifier, model)
        found |= dict.fromkeys((BESIDE, INSTEAD), lambda scale: by_classifier(classifier, scale))
    if args.worse:
        worse = load_model(args.worse, model.device)
        found["worse model, no empty prompt"] = lambda scale: by_worse_model(model, worse, scale)
    return found


def by_negative(model: TextToImage, scale: float) -> Steer:
    """Classifier-free guidance away from each prompt as it could be misread."""

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        cond, negative = model.condition(prompts), model.condition([misread(text) for text in prompts])
        return classifier_free(model.denoiser, model.process, cond, negative, scale)

    return steer


def by_perpendicular(model: TextToImage, scale: float) -> Steer:
    """Plain guidance, and away from what that says besides by ``scale``, which is the paper's weight of 1."""

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        network, process = model.denoiser, model.process
        cond, negative = model.condition(prompts), model.condition([misread(text) for text in prompts])
        null = model.condition([""]).repeat(len(prompts))
        plain = classifier_free(network, process, cond, null, scale)
        return perpendicular(plain, network, process, cond, negative, null, scale)

    return steer


def by_objects(model: TextToImage, scale: float) -> Steer:
    """From the empty prompt towards a prompt for each object, all with the same weight."""

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        null = model.condition([""]).repeat(len(prompts))
        conds = [model.condition(list(part)) for part in zip(*(objects(text) for text in prompts), strict=True)]
        alone = model.process.denoiser(model.denoiser, null)
        return composed(alone, model.denoiser, model.process, conds, [scale] * len(conds), null)

    return steer


def misread(text: str) -> str:
    """A prompt of two objects with their shapes exchanged; nothing where that is no other picture, or there is one."""
    said = parse(text)
    if len(said.things) < 2 or not (said.relation or any(thing.color or thing.size for thing in said.things)):
        return ""
    first, second = said.things
    things = replace(first, shape=second.shape), replace(second, shape=first.shape)
    return caption(replace(said, things=things), np.random.default_rng(0))


def objects(text: str) -> tuple[str, str]:
    """What a prompt says of each of its objects; of one kind alone, and nothing."""
    said, rng = parse(text), np.random.default_rng(0)
    first, *rest = (caption(replace(said, things=(thing,), relation=None), rng) for thing in said.things)
    return first, rest[0] if rest else ""


class Measure:
    """Scores and spreads of a model's pictures of a fixed set of prompts."""

    def __init__(self, model: TextToImage, per_category: int, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.prompts = prompt_set(per_category, TRAINING_SEED)

    def cell(self, overrides: list[str], steer: Steer | None = None) -> str:
        """The share of right pictures, and the difference of two of one prompt."""
        how: dict[str, Any] = {
            "sampling": replace(self.model.sampling, guidance=GuidanceConfig()).but(*overrides),
            "precision": self.precision,
            "steer": steer,
        }
        pictures = drawn_by(self.model, self.prompts, **how)
        right = mark(self.prompts, pictures).score.overall.value
        some = range(0, len(self.prompts), -(-len(self.prompts) // PAIRS))
        others = drawn_by(self.model, [self.prompts[i] for i in some], seed=OTHER, **how)
        apart = (torch.from_numpy(pictures[some]).float() - torch.from_numpy(others).float()) / 127.5
        return f"{100 * right:.0f} %, {apart.square().mean(dim=(1, 2, 3)).sqrt().mean().item():.2f}"


if __name__ == "__main__":
    with one_line_errors():
        main()
