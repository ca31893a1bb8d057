"""Draw the benchmark's score of denoisers against the minutes that they were trained for.

    python benchmarks/learning_curve.py runs/seed0 runs/seed1 runs/seed2 --out docs/learning_curve.png

Each run was trained by scripts/train_ldm.py with train_ldm.score_every=N; what is scored is the average of its weights,
on the prompts that the run scores itself by. The minutes are those of the training steps alone: not of the scores, the
validations, the sample grids and the checkpoints.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no screen

from matplotlib import pyplot as plt

from ldm.cli import one_line_errors
from ldm.config import load
from ldm.folders import CONFIG
from ldm.run import Run
from ldm.training.log import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (its out)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write, *.png or *.svg")
    args = parser.parse_args()
    curves = {run.name: scores(run) for run in args.runs}
    for name, curve in curves.items():
        print(name + ": " + ", ".join(f"{score:.0%} after {minutes:.1f} min" for minutes, score in curve))
    draw(curves, args.out)


def scores(run: Path) -> list[tuple[float, float]]:
    """(minutes, score) of every score in the run's log.

    Raises:
        ValueError: the run has none.
    """
    config = load(Run, run / "model" / CONFIG).train_ldm
    images = config.batch * config.accumulate
    found, seconds, step = [], 0.0, 0
    for line in read(run / "training" / "denoiser" / "log.jsonl"):
        if "images_per_second" in line:
            seconds += (line["step"] - step) * images / line["images_per_second"]
            step = line["step"]
        if "score" in line:
            found.append((seconds / 60, line["score"]))
    if not found:
        raise ValueError(f"{run} was never scored; train it with train_ldm.score_every=500")
    return found


def draw(curves: dict[str, list[tuple[float, float]]], out: Path) -> None:
    """Write the picture to ``out``."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        minutes, score = zip(*curve, strict=True)
        axes.plot(minutes, [100 * each for each in score], "o-", markersize=4, label=name)
    axes.set(xlabel="minutes of training the denoiser", ylabel="right pictures, %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    with one_line_errors():
        main()
