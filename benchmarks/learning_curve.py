"""Draw the benchmark's score of denoisers against the minutes that they were trained for.

    python benchmarks/learning_curve.py runs/seed0 runs/seed1 runs/seed2 --out docs/learning_curve.svg

Each run was trained by one process with train_ldm.score_every=N; what is scored is the average of its weights, on the
prompts that the run scores itself by. The minutes are those of the training steps alone: not of the scores, the
validations, the sample grids and the checkpoints.
"""

import argparse
from pathlib import Path

from ldm.cli import one_line_errors
from ldm.config import load
from ldm.evaluation.report import curve
from ldm.folders import CONFIG
from ldm.run import Run
from ldm.training.log import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (its out)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write, *.svg")
    args = parser.parse_args()
    lines = {str(run): scores(run) for run in args.runs}
    for name, line in lines.items():
        print(name + ": " + ", ".join(f"{score:.0%} after {minutes:.1f} min" for minutes, score in line.items()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(curve(lines, "minutes of training the denoiser", "share of right pictures"))


def scores(run: Path) -> dict[float, float]:
    """Every score in the run's log, by the minutes before it.

    Raises:
        ValueError: the run has none.
    """
    config = load(Run, run / "model" / CONFIG).train_ldm
    images = config.batch * config.accumulate
    found: dict[float, float] = {}
    seconds, step = 0.0, 0
    for line in read(run / "training" / "denoiser" / "log.jsonl"):
        if "images_per_second" in line:
            seconds += (line["step"] - step) * images / line["images_per_second"]
            step = line["step"]
        if "score" in line:
            found[seconds / 60] = line["score"]
    if not found:
        raise ValueError(f"{run} was never scored; train it with train_ldm.score_every=500")
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
