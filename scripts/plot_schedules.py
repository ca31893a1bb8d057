"""Draw every noise schedule: its log SNR, alpha and sigma over time.

    python scripts/plot_schedules.py --out schedules.png

The ending of the file's name says whether it is a PNG or an SVG. Each schedule is drawn with its default values; tables
of betas are solid lines, closed forms are dashed. Some are drawn again, dotted, with values that are not the defaults:
among them the one that was learned of the shipped model (scripts/learn_schedule.py).
"""

import argparse
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no screen

import numpy as np
from matplotlib import pyplot as plt

from ldm.cli import check_picture, one_line_errors
from ldm.config import load
from ldm.diffusion.schedules import SCHEDULES, TableConfig
from ldm.run import Run

POINTS = 801  # of each curve
CLIP = 20  # largest log SNR that is drawn, and smallest with a minus
COLOURS = [*(f"C{number}" for number in range(10)), "black"]
TABLE, CLOSED, CHANGED = "-", (0, (5, 2)), (0, (1, 1.5))  # matplotlib's kinds of line
LEARNED = Path(__file__).parents[1] / "configs" / "shapes_learned.yaml"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # schedules with a value that is not the default
    "scaled_linear, zero_snr=true": ("scaled_linear", {"zero_snr": True}),  # Lin et al. 2023, arXiv:2305.08891
    "flow, shift=3": ("flow", {"shift": 3.0}),  # SD3, Esser et al. 2024, arXiv:2403.03206
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write, *.png or *.svg")
    args = parser.parse_args()
    check_picture(args.out, (".png", ".svg"))
    draw(args.out)
    print(f"{len(SCHEDULES)} schedules in {args.out}")


def draw(out: Path) -> None:
    """Write the picture of all schedules to ``out``."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5.6), layout="constrained")
    times = np.linspace(0, 1, POINTS)
    colours = dict(zip(SCHEDULES, cycle(COLOURS), strict=False))
    curves = [(name, name, kind()) for name, kind in SCHEDULES.items()]
    curves += [(label, name, SCHEDULES[name](**values)) for label, (name, values) in VARIANTS.items()]
    curves += [("listed, as learned", "listed", load(Run, LEARNED).schedule)]
    for label, name, config in curves:
        dashes = CHANGED if label != name else TABLE if isinstance(config, TableConfig) else CLOSED
        style = {"color": colours[name], "linewidth": 1.8, "linestyle": dashes}
        schedule = config.build()
        levels = [schedule.level(float(t)) for t in times]
        left.plot(times, np.clip([level.log_snr for level in levels], -CLIP, CLIP), label=label, **style)
        middle.plot(times, [level.alpha for level in levels], **style)
        right.plot(times, [level.sigma for level in levels], **style)
    left.set(ylabel=f"log SNR = 2 log(alpha / sigma), cut at ±{CLIP}", ylim=(-CLIP - 1, CLIP + 1))
    middle.set(ylabel="alpha", ylim=(-0.02, 1.05))
    right.set(ylabel="sigma", yscale="log", ylim=(1e-3, 2e2))
    for axes in (left, middle, right):
        axes.set(xlabel="t, from data (0) to noise (1)", xlim=(0, 1))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=7, frameon=False, handlelength=3.2)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    with one_line_errors():
        main()
