"""What the target, the weight, the schedule and the times of a denoiser's training are worth: a table in Markdown.

    make demo
    python benchmarks/training_choices.py --base runs/demo --config configs/demo.yaml \\
        train_ldm.steps=400 train_ldm.decay=linear

Each row trains a denoiser from scratch, all of them on the same latents, for the same steps with the same seed. A row
tells the target, the schedule where it is not the first row's, and what else is not. The score is that of the exact
benchmark, on the prompts that pictures of the run's world can fulfil, with a 95 % interval. One that is there is
not trained again.
"""

import argparse
from hashlib import sha256
from pathlib import Path

from ldm.cli import device_of, one_line_errors
from ldm.config import load
from ldm.evaluation.benchmark import drawn_by, mark
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import load_model
from ldm.run import Run
from ldm.stages import train_ldm
from ldm.training.log import read

GIVEN = ("autoencoder", "text", "cache")  # the stages that all rows share
PLAIN = ["weight=plain", "times=uniform"]
V = ["process.target=v", "schedule=cosine", "schedule.shift=2", *PLAIN]
# of the linear schedule, for x0 cannot be told from noise where no signal is left
EPS = ["process.target=eps", "schedule=linear", "schedule.shift=1", *PLAIN]
FLOW = ["process.target=flow", "schedule=flow", "schedule.shift=1", *PLAIN]
ROWS = {  # name: overrides of the configuration
    "v, cosine with shift 2": V,
    "x0, cosine with shift 2": [*V, "process.target=x0"],
    "edm, cosine with shift 2": [*V, "process.target=edm"],
    "flow, cosine with shift 2": [*V, "process.target=flow"],
    "eps, linear": EPS,
    "v, linear": [*V, "schedule=linear", "schedule.shift=1"],
    "v, scaled_linear": [*V, "schedule=scaled_linear", "schedule.shift=1"],
    "v, sigmoid": [*V, "schedule=sigmoid", "schedule.shift=1"],
    "v, cosine with shift 1": [*V, "schedule.shift=1"],
    "v, cosine with shift 4": [*V, "schedule.shift=4"],
    "v, flow": [*V, "schedule=flow", "schedule.shift=1"],
    "flow, flow": FLOW,
    "flow, flow with shift 2": [*FLOW, "schedule.shift=2"],
    "flow, flow, times logit_normal": [*FLOW, "times=logit_normal"],
    "v, times logit_normal": [*V, "times=logit_normal"],
    "v, times importance": [*V, "times=importance"],
    "v, weight min_snr": [*V, "weight=min_snr"],
    "v, weight p2": [*V, "weight=p2"],
    "v, weight sigmoid": [*V, "weight=sigmoid"],
    "v, weight vlb": [*V, "weight=vlb"],
    "eps, linear, weight min_snr": [*EPS, "weight=min_snr"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="laid over the configuration of every row")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--base", type=Path, required=True, metavar="RUN", help="whose latents and text are used")
    parser.add_argument("--row", action="append", choices=ROWS, help="all if left out; may be given again")
    parser.add_argument("--out", type=Path, default=Path("runs/choices"), metavar="FOLDER")
    parser.add_argument("--prompts-per-category", type=int, default=50, metavar="N", help="before those are left out")
    args = parser.parse_args()
    print("| target, schedule | right | loss: its own caption / another's |\n| --- | --- | --- |")
    for name in args.row or ROWS:
        told = [*args.overrides, *ROWS[name]]
        folder = args.out / sha256(" ".join([str(args.config), *told]).encode()).hexdigest()[:8]
        run = load(Run, args.config, [*told, f"out={folder}"])
        print(f"| {name} | {row(run, args.base, args.prompts_per_category)} |", flush=True)


def row(run: Run, base: Path, per_category: int) -> str:
    """The score of the denoiser of ``run``, trained here, and its losses, which compare within a target and schedule.

    Raises:
        ValueError: ``base`` lacks a stage.
    """
    share(base, Path(run.out))
    model = load_model(train_ldm(run, device_of()), device_of())
    prompts = [p for p in prompt_set(per_category, TRAINING_SEED) if run.data.holds(p.statement)]
    score = mark(prompts, drawn_by(model, prompts)).score.overall
    low, high = score.interval
    log = read(Path(run.out) / "training" / "denoiser" / "log.jsonl")
    last = [line for line in log if "val_loss" in line][-1]
    losses = f"{last['val_loss']:.3f} / {last['val_loss_shuffled']:.3f}"
    return f"{100 * score.value:.0f} % of {score.total} ({100 * low:.0f} to {100 * high:.0f}) | {losses}"


def share(base: Path, out: Path) -> None:
    """Link the given stages of ``base`` into the run's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in GIVEN:
        if not (base / stage).is_dir():
            raise ValueError(f"{base} has no {stage}; run `make demo`, or give a run that has all of {GIVEN}")
        if not (out / stage).exists():
            (out / stage).symlink_to((base / stage).resolve(), target_is_directory=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
