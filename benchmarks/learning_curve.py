"""Draw the benchmark's score of denoisers against the minutes that they were trained for.

    python benchmarks/learning_curve.py runs/seed{0,1,2} --out docs/learning_curve.svg
    python benchmarks/learning_curve.py runs/seed{0,1,2} --clock runs/seed0 --out docs/learning_curve.svg

Each run was trained by one process with train_ldm.score_every=N; what is scored is the average of its weights, on the
prompts that the run scores itself by. The minutes are those of the training steps alone: not of the scores, the
validations, the sample grids and the checkpoints. With --clock they are those of another run after as many steps: a
score does not depend on how fast a machine is, so that runs may be trained side by side, and one alone, on all cores,
says how long its steps take. Of runs of the same length that were scored equally often the mean is
drawn, and a band from the lowest to the highest: the score's interval would leave out that trainings differ. A run by
itself has a band of the 95 % interval that its pictures leave.
"""

import argparse
from pathlib import Path
from statistics import mean

from ldm.cli import one_line_errors
from ldm.config import load
from ldm.evaluation.report import Point, curve
from ldm.evaluation.score import Share
from ldm.folders import CONFIG
from ldm.run import Run
from ldm.stages.denoiser import scored_prompts
from ldm.training.log import minutes_of_steps, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (its out)")
    parser.add_argument("--clock", type=Path, metavar="RUN", help="whose minutes count; each run's own if left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write, *.svg")
    args = parser.parse_args()
    alone = {str(run): scores(run, args.clock or run) for run in args.runs}
    groups: dict[str, list[dict[float, Share]]] = {}
    for name, line in alone.items():
        groups.setdefault(f"{length(Path(name))}, scored {len(line)} times", []).append(line)
    joined = {f"mean of {len(runs)} runs of {name}": means(runs) for name, runs in groups.items() if len(runs) > 1}
    single = len(alone) == 1
    shares: dict[str, dict[float, Point]] = {
        name: {minutes: (share.value, *share.interval) if single else share.value for minutes, share in line.items()}
        for name, line in alone.items()
    }
    for name, points in (shares | joined).items():
        print(name + ": " + ", ".join(f"{told(point)} after {minutes:.1f} min" for minutes, point in points.items()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        curve(shares | joined, "minutes of training the denoiser", "share of right pictures"), encoding="utf-8"
    )


def told(point: Point) -> str:
    middle, *ends = point if isinstance(point, tuple) else (point,)
    return f"{middle:.0%}" + (f" ({ends[0]:.0%} to {ends[1]:.0%})" if ends else "")


def minutes_after(run: Path) -> dict[int, float]:
    """The minutes of training steps before each step in the run's log."""
    config = load(Run, run / "model" / CONFIG).train_ldm
    log = read(run / "training" / "denoiser" / "log.jsonl")
    minutes = minutes_of_steps(log, config.batch * config.accumulate)
    return {line["step"]: before for line, before in zip(log, minutes, strict=True)}


def scores(run: Path, clock: Path) -> dict[float, Share]:
    """Every score in the run's log, by the minutes that the run ``clock`` took to come as far.

    Raises:
        ValueError: the run has none, or its last configuration asks for another number of pictures than a score is of,
            or the clock trained another network or by other batches, or has logged nothing at a step that was scored.
    """
    made, minutes = load(Run, run / "model" / CONFIG), minutes_after(clock)
    timed = load(Run, clock / "model" / CONFIG)
    if (timed.denoiser, length(clock)) != (made.denoiser, length(run)):
        raise ValueError(f"{clock} trained another network than {run}, or for another time, and cannot be its clock")
    total = len(scored_prompts(made))
    found: dict[float, Share] = {}
    for line in read(run / "training" / "denoiser" / "log.jsonl"):
        if "score" in line:
            if line["step"] not in minutes:
                raise ValueError(f"{clock} has logged nothing at step {line['step']}, where {run} was scored")
            hits = round(line["score"] * total)
            if not total or abs(hits / total - line["score"]) > 1e-6:
                raise ValueError(f"{run}: a score of {line['score']:g} is none of {total} pictures, as it asks for now")
            found[minutes[line["step"]]] = Share(hits, total)
    if not found:
        raise ValueError(f"{run} was never scored; train it with train_ldm.score_every=500")
    return found


def length(run: Path) -> str:
    """How long the run was to be, at whose end its learning rate has come down."""
    config = load(Run, run / "model" / CONFIG).train_ldm
    return f"{config.steps:,} steps of {config.batch * config.accumulate}"


def means(runs: list[dict[float, Share]]) -> dict[float, Point]:
    """Mean, lowest and highest of the n-th scores of the runs, at the mean of their minutes."""
    points: dict[float, Point] = {}
    for each in zip(*(run.items() for run in runs), strict=True):
        values = [share.value for _, share in each]
        points[mean(minutes for minutes, _ in each)] = (mean(values), min(values), max(values))
    return points


if __name__ == "__main__":
    with one_line_errors():
        main()
