"""How fast a denoiser trains with one thing changed at a time: a table in Markdown.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --config configs/demo.yaml --row "SDPA's attention" --rounds 5

Each row is a dry run of ``train_ldm.py``, in a process of its own: some steps for real, thrown away. The rows take
turns, for ``--rounds`` rounds, and the median of the images a second counts; the ratio is that to the first row's, the
memory that of the last round. What a change does to what is learned is another question (``training_choices.py``).
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

from ldm.cli import one_line_errors

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_ldm.py"
FIRST = "as configured"
ROWS = {  # name: overrides of the configuration
    FIRST: [],
    "pictures and captions encoded in every step, no cache": ["cache.use=never"],
    "single precision": ["train_ldm.precision=fp32"],
    "SDPA's attention": ["denoiser.attention=sdpa"],
    "fused AdamW": ["train_ldm.optimizer=adamw"],
    "three iterations of Muon": ["train_ldm.muon_iterations=3"],
    "batches of 32": ["train_ldm.batch=32"],
    "batches of 16": ["train_ldm.batch=16"],
    "width 48": ["denoiser.width=48"],
    "width 48, three iterations of Muon": ["denoiser.width=48", "train_ldm.muon_iterations=3"],
    "width 96": ["denoiser.width=96"],
    "DiT of width 256 and depth 5": [
        "denoiser=dit",
        "denoiser.patch=2",
        "denoiser.width=256",
        "denoiser.depth=5",
        "denoiser.heads=4",
        "denoiser.pooled=false",
    ],
    "blocks computed again in the backward pass": ["denoiser.checkpointing=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="laid over the configuration of every row")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the shapes run's if left out")
    parser.add_argument("--row", action="append", choices=ROWS, help="besides the first; all if left out")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured; 3 if left out")
    args = parser.parse_args()
    if args.rounds < 1:
        raise ValueError(f"--rounds {args.rounds} is not at least 1")
    given = [*(["--config", str(args.config)] if args.config else []), *args.overrides]
    rows = {name: ROWS[name] for name in dict.fromkeys([FIRST, *(args.row or ROWS)])}
    measured: dict[str, list[tuple[float, str]]] = {name: [] for name in rows}
    for _ in range(args.rounds):
        for name, overrides in rows.items():
            measured[name].append(dry_run([*given, *overrides]))
    speeds = {name: median(speed for speed, _ in found) for name, found in measured.items()}
    print("| | images a second | ratio | memory at the peak |\n| --- | --- | --- | --- |")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.0f} | {speed / speeds[FIRST]:.2f} | {measured[name][-1][1]} |")


def dry_run(overrides: list[str]) -> tuple[float, str]:
    """Images a second, and the memory at the peak in words, of a training with ``overrides``.

    Raises:
        ValueError: it does not run.
    """
    done = subprocess.run(
        [sys.executable, SCRIPT, "--dry-run", *overrides], capture_output=True, text=True, check=False
    )
    measured = measured_by(done.stdout)
    if measured is None:
        raise ValueError(f"{' '.join(overrides) or FIRST}: {(done.stderr.strip() or done.stdout.strip())[-300:]}")
    return measured


def measured_by(printed: str) -> tuple[float, str] | None:
    """Both from what a dry run has ``printed``; None where that is something else."""
    speed = re.search(r"speed +([\d.e+]+) images a second", printed)
    memory = re.search(r"memory +([\d.]+ \w+) at the peak", printed)
    return (float(speed[1]), memory[1]) if speed and memory else None


if __name__ == "__main__":
    with one_line_errors():
        main()
