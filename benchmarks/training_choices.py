"""What the choices of a denoiser's training are worth: a table in Markdown.

    make demo
    python benchmarks/training_choices.py --base runs/demo --config configs/demo.yaml \\
        train_ldm.steps=400 train_ldm.decay=linear
    python scripts/cache_latents.py
    python benchmarks/training_choices.py --recipe --base runs/shapes --config configs/shapes_wide.yaml \\
        train_ldm.steps=800

Each row trains a denoiser from scratch, all of them on the same latents with the same seed. The first table compares
targets, weights, schedules and times at the same steps; a row tells the target, the schedule where it is not the first
row's, and what else is not. All are guided throughout, for a time is another level on another schedule. ``--recipe``
compares the rest: the first row takes the configuration's steps, the others about as many more or fewer as take the
same time by ``training_speed.py`` on two cores of an AMD EPYC where it is shapes_wide.yaml's; the minutes are those of
the steps alone. The score is that of the exact benchmark, on the prompts that pictures of the run's world can fulfil,
with a 95 % interval. A row that is there is not trained again.
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
from ldm.training.log import minutes_of_steps, read

STAGES = ("autoencoder", "text", "cache")  # what all rows share; the shipped model's where the base lacks the first two
PLAIN = ["weight=plain", "times=uniform", "guidance.interval=[0,1]"]
V = ["process.target=v", "schedule=cosine", "schedule.shift=2", *PLAIN]
# of the linear schedule, for x0 cannot be told from noise where no signal is left
EPS = ["process.target=eps", "schedule=linear", "schedule.shift=1", *PLAIN]
FLOW = ["process.target=flow", "schedule=flow", "schedule.shift=1", *PLAIN]
TARGETS = {  # name: overrides of the configuration
    "v, cosine with shift 2": V,
    "x0, cosine with shift 2": [*V, "process.target=x0"],
    "edm, cosine with shift 2": [*V, "process.target=edm"],
    "flow, cosine with shift 2": [*V, "process.target=flow"],
    "flow, cosine with shift 2, times logit_normal": [*V, "process.target=flow", "times=logit_normal"],
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
NARROW = ["denoiser.width=48", "train_ldm.muon_iterations=3"]
RECIPES = {  # name: how many steps take the time of one as configured, and overrides
    "as configured": (1.0, []),
    "average with decay 0.99": (1.0, ["train_ldm.ema=0.99"]),
    "learning rate 3e-3": (1.0, ["train_ldm.lr=3e-3"]),
    "learning rate 1.2e-2": (1.0, ["train_ldm.lr=1.2e-2"]),
    "AdamW, learning rate 1e-3": (1.3, ["train_ldm.optimizer=adamw", "train_ldm.lr=1e-3"]),
    "batches of 32": (1.5, ["train_ldm.batch=32"]),
    "batches of 16": (2.0, ["train_ldm.batch=16"]),
    "text dropout 0.02": (1.0, ["process.text_dropout=0.02"]),
    "text dropout 0.2": (1.0, ["process.text_dropout=0.2"]),
    "times uniform": (1.0, ["times=uniform"]),
    "width 96": (0.5, ["denoiser.width=96"]),
    "width 48": (1.45, ["denoiser.width=48"]),
    "width 48, three iterations of Muon": (1.6, NARROW),
    "width 48, three iterations of Muon, learning rate 3e-3": (1.6, [*NARROW, "train_ldm.lr=3e-3"]),
    "width 48, three iterations of Muon, learning rate 1.2e-2": (1.6, [*NARROW, "train_ldm.lr=1.2e-2"]),
    "DiT of width 256 and depth 5": (
        0.85,
        [
            "denoiser=dit",
            "denoiser.patch=2",
            "denoiser.width=256",
            "denoiser.depth=5",
            "denoiser.heads=4",
            "denoiser.pooled=false",
            "train_ldm.lr=5e-3",
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="laid over the configuration of every row")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the shapes run's if left out")
    parser.add_argument("--base", type=Path, required=True, metavar="RUN", help="whose cache is used, and its stages")
    parser.add_argument("--recipe", action="store_true", help="compare batch, learning rate, size and the like")
    parser.add_argument("--row", action="append", metavar="NAME", help="all if left out; may be given again")
    parser.add_argument("--out", type=Path, default=Path("runs/choices"), metavar="FOLDER")
    parser.add_argument("--prompts-per-category", type=int, default=50, metavar="N", help="before those are left out")
    args = parser.parse_args()
    table = RECIPES if args.recipe else {name: (1.0, overrides) for name, overrides in TARGETS.items()}
    if unknown := set(args.row or ()) - table.keys():
        raise ValueError(f"--row '{min(unknown)}' is not one of: {'; '.join(table)}")
    what = "what is changed" if args.recipe else "target, schedule"
    print(f"| {what} | right | loss: its own caption / another's | steps | minutes |\n|{' --- |' * 5}")
    for name in args.row or table:
        pace, changes = table[name]
        run = configured(args.config, args.overrides, pace=pace, changes=changes, base=args.base, out=args.out)
        print(f"| {name} | {row(run, args.base, args.prompts_per_category)} |", flush=True)


def configured(
    config: Path | None, overrides: list[str], *, pace: float, changes: list[str], base: Path, out: Path
) -> Run:
    """The run of a row: ``config`` with ``overrides``, ``pace`` times its steps, and ``changes``.

    Its folder below ``out`` is named by all of these, and by the ``base``.
    """
    steps = round(pace * load(Run, config, overrides).train_ldm.steps)
    told = [*overrides, *changes, f"train_ldm.steps={steps}"]
    name = sha256(" ".join([str(config), str(base.resolve()), *told]).encode()).hexdigest()[:8]
    return load(Run, config, [*told, f"out={out / name}"])


def row(run: Run, base: Path, per_category: int) -> str:
    """The cells but for the name: losses compare within a target and schedule.

    Raises:
        ValueError: ``base`` has no cache.
    """
    share(base, Path(run.out))
    model = load_model(train_ldm(run, device_of()), device_of())
    prompts = [p for p in prompt_set(per_category, TRAINING_SEED) if run.data.holds(p.statement)]
    score = mark(prompts, drawn_by(model, prompts)).score.overall
    config, log = run.train_ldm, read(Path(run.out) / "training" / "denoiser" / "log.jsonl")
    last = [line for line in log if "val_loss" in line][-1]
    cells = (
        f"{score.percent(0)} of {score.total}",
        f"{last['val_loss']:.3f} / {last['val_loss_shuffled']:.3f}",
        f"{config.steps:,}",
        f"{minutes_of_steps(log, config.batch * config.accumulate)[-1]:.1f}",
    )
    return " | ".join(cells)


def share(base: Path, out: Path) -> None:
    """Link the stages that ``base`` has into the run's folder; ValueError where it has no cache."""
    if not (base / "cache").is_dir():
        raise ValueError(f"{base} has no cache; run `make demo` or scripts/cache_latents.py, and give its folder")
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if (base / stage).is_dir() and not (out / stage).exists():
            (out / stage).symlink_to((base / stage).resolve(), target_is_directory=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
