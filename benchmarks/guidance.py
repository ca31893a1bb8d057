"""How good a model's pictures are by guidance and its scale: a table in Markdown.

    python benchmarks/guidance.py --classifier runs/shapes/classifier --worse runs/early/model

Scores are those of the exact benchmark on prompts of a seed of their own. Spread is the root mean square difference of
two pictures of the same prompt, pixels in [-1, 1]: how different they are.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ldm.cli import device_of, one_line_errors
from ldm.evaluation.benchmark import drawn_by, mark
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import load_classifier, load_model, shipped_model
from ldm.pipeline import Steer, TextToImage
from ldm.steering import by_classifier, by_worse_model

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
KINDS = {
    "interval [0.2, 0.9]": ["guidance.interval=[0.2,0.9]"],
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
    parser.add_argument("--classifier", type=Path, metavar="FOLDER", help="of this model's latents, for guidance")
    parser.add_argument("--worse", type=Path, metavar="FOLDER", help="an earlier or smaller model, for autoguidance")
    args = parser.parse_args()
    model = load_model(args.model or shipped_model(), device_of())
    measure = Measure(model, args.prompts_per_category)
    head("guidance", [f"scale {scale:g}" for scale in SCALES])
    for name, setting in {"plain": [], **KINDS}.items():
        tell(name, [measure.both([*setting, f"guidance.scale={scale}"]) for scale in SCALES])
    for name, steered in steers(args, model).items():
        tell(name, [measure.both(["guidance.scale=1"], steered(scale)) for scale in SCALES])


def head(name: str, columns: list[str]) -> None:
    print(f"| {name} | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")


def tell(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def steers(args: argparse.Namespace, model: TextToImage) -> dict[str, Callable[[float], Steer]]:
    """Guidance that is not the classifier-free one, by name, each a function of its scale."""
    found: dict[str, Callable[[float], Steer]] = {}
    if args.classifier:
        classifier = load_classifier(args.classifier, model)
        found["classifier"] = lambda scale: by_classifier(classifier, scale)
    if args.worse:
        worse = load_model(args.worse, model.device)
        found["worse model"] = lambda scale: by_worse_model(model, worse, scale)
    return found


class Measure:
    """Scores and spreads of a model's pictures of a fixed set of prompts."""

    def __init__(self, model: TextToImage, per_category: int) -> None:
        self.model = model
        self.prompts = prompt_set(per_category, TRAINING_SEED)

    def score(self, overrides: list[str], steer: Steer | None = None) -> str:
        """The share of right pictures, and the seconds that one took."""
        sampling = self.model.sampling.but(*overrides)
        began = time.perf_counter()
        pictures = drawn_by(self.model, self.prompts, sampling=sampling, steer=steer)
        seconds = (time.perf_counter() - began) / len(self.prompts)
        return f"{100 * mark(self.prompts, pictures).score.overall.value:.0f} % ({seconds:.2f} s)"

    def both(self, overrides: list[str], steer: Steer | None = None) -> str:
        return f"{self.score(overrides, steer)}, {self.spread(overrides, steer)}"

    def spread(self, overrides: list[str], steer: Steer | None = None) -> str:
        """The difference of two pictures of one prompt, over 30 prompts."""
        sampling, some = self.model.sampling.but(*overrides), self.prompts[:: max(1, len(self.prompts) // 30)]
        one, other = (
            torch.from_numpy(drawn_by(self.model, some, sampling=sampling, seed=seed, steer=steer)).float() / 127.5
            for seed in (1_000, 2_000)
        )
        return f"{(one - other).square().mean(dim=(1, 2, 3)).sqrt().mean().item():.2f}"


if __name__ == "__main__":
    with one_line_errors():
        main()
