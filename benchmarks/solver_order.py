"""Solvers of the probability-flow ODE side by side: their error on a problem with an exact answer, by calls made.

    python benchmarks/solver_order.py --out solver_order.svg

The data are a mixture of three normals in the plane, whose denoiser is known exactly, so that the error is the
solvers' own. It is followed from much noise to little, and not to none, where every solver ends with the same plain
step. On the figure a method of order p falls by a factor of 2^p with each doubling of the calls.

Legend: K components, (1, 2, H, W) points of the plane at H W places.
"""

import argparse
from dataclasses import dataclass, field
from math import log2
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from ldm.cli import one_line_errors
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers import SAMPLERS
from ldm.samplers.ode import ode
from ldm.types import Grid, Level, Prediction, Sampler, Schedule

Rows = list[list[float]]
FROM, TO = 20.0, 0.1  # sigma / alpha at both ends


@dataclass
class Mixture:
    """Round normals in the plane, and their exact denoiser."""

    weights: list[float] = field(default_factory=lambda: [0.5, 0.3, 0.2])
    means: Rows = field(default_factory=lambda: [[-1.0, 0.0], [0.8, 0.9], [0.6, -1.0]])
    stds: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.2])

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The mean of x0 given ``x`` (1, 2, H, W) at ``level``."""
        weights, means, stds = (x.new_tensor(part) for part in (self.weights, self.means, self.stds))
        variance = (level.alpha**2 * stds**2 + level.sigma**2).view(-1, 1, 1, 1)  # (K, 1, 1, 1)
        mean = means[:, :, None, None]  # (K, 2, 1, 1)
        offset = x - level.alpha * mean  # (K, 2, H, W)
        squared = offset.square().sum(dim=1, keepdim=True)  # (K, 1, H, W)
        share = (weights.view(-1, 1, 1, 1).log() - variance.log() - squared / (2 * variance)).softmax(dim=0)
        each = mean + level.alpha * stds.view(-1, 1, 1, 1) ** 2 / variance * offset  # (K, 2, H, W)
        return Prediction((share * each).sum(dim=0, keepdim=True))


# What is compared: the solver, its order, and calls a step.
SOLVERS: dict[str, tuple[Sampler, int, int]] = {
    "DDIM / Euler": (SAMPLERS["euler"](), 1, 1),
    "Heun": (SAMPLERS["heun"](), 2, 2),
    "DPM-Solver-2": (SAMPLERS["dpm_solver"](order=2), 2, 2),
    "DPM-Solver-3": (SAMPLERS["dpm_solver"](order=3), 3, 3),
    "DPM-Solver-2M": (SAMPLERS["dpm_solver"](order=2, multistep=True, lower_order_final=False), 2, 1),
    "DPM-Solver-3M": (SAMPLERS["dpm_solver"](order=3, multistep=True, lower_order_final=False), 3, 1),
    "DPM-Solver++ 2S": (SAMPLERS["dpm_solver_pp"](order=2, multistep=False), 2, 2),
    "DPM-Solver++ 3S": (SAMPLERS["dpm_solver_pp"](order=3, multistep=False), 3, 3),
    "DPM-Solver++ 2M": (SAMPLERS["dpm_solver_pp"](order=2, lower_order_final=False), 2, 1),
    "DPM-Solver++ 3M": (SAMPLERS["dpm_solver_pp"](order=3, lower_order_final=False), 3, 1),
    "UniPC-2": (SAMPLERS["unipc"](order=2, lower_order_final=False), 3, 1),
    "UniPC-3": (SAMPLERS["unipc"](order=3, lower_order_final=False), 4, 1),
    "DEIS (t), 3": (SAMPLERS["deis"](order=3, lower_order_final=False), 3, 1),
    "DEIS (rho), 3": (SAMPLERS["deis"](order=3, variable="rho", lower_order_final=False), 3, 1),
    "DEIS (log rho), 3": (SAMPLERS["deis"](order=3, variable="log_rho", lower_order_final=False), 3, 1),
    "PLMS": (SAMPLERS["plms"](), 2, 1),
    "iPNDM": (SAMPLERS["ipndm"](), 2, 1),
}


def even(schedule: Schedule, steps: int) -> Grid:
    """``steps`` + 1 levels even in log(sigma / alpha) from FROM, or where the schedule ends before that, to TO."""
    nsrs = np.geomspace(min(FROM, schedule.level(1.0).nsr), TO, steps + 1)
    return Grid([schedule.level(schedule.t_at(float(nsr))) for nsr in nsrs], schedule)


def errors(sampler: Sampler, steps: list[int], schedule: Schedule, x: Tensor, exact: Tensor) -> list[float]:
    """The root mean square error at the end of ``even`` grids of so many steps, from ``x`` at their start."""
    ends = (sampler(Mixture(), x, even(schedule, n), lambda: torch.zeros_like(x)) for n in steps)
    return [float((end - exact).square().mean().sqrt()) for end in ends]


def slope(steps: list[int], error: list[float]) -> float:
    """The order that the last two errors show."""
    return log2(error[-2] / error[-1]) / log2(steps[-1] / steps[-2])


def problem(schedule: Schedule, side: int = 8) -> tuple[Tensor, Tensor]:
    """Points (1, 2, H, W) at the start of ``even`` grids, and where the ODE takes them, both float64."""
    start = even(schedule, 1)[0]
    draw = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start.sigma * draw
    exact = ode(Mixture(), x, even(schedule, 1), rtol=1e-10, atol=1e-10)
    return x, exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="the figure, .svg or .png")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="vp")
    parser.add_argument("--most", type=int, default=320, help="most calls of the denoiser")
    args = parser.parse_args()
    schedule = SCHEDULES[args.schedule]().build()
    calls = [n for n in (6, 12, 24, 48, 96, 192, 384, 768) if n <= args.most]
    if len(calls) < 2:
        parser.error(f"--most {args.most} is not at least 12; try --most 320")
    x, exact = problem(schedule)
    figure, axes = plt.subplots(figsize=(9, 5))
    for i, (name, (sampler, order, per_step)) in enumerate(SOLVERS.items()):
        steps = [n // per_step for n in calls]
        error = errors(sampler, steps, schedule, x, exact)
        print(f"{name:16} order {order}, shows {slope(steps, error):.2f}; " + " ".join(f"{e:.1e}" for e in error))
        axes.loglog(
            calls, error, marker="o", markersize=3, color=f"C{i % 10}", linestyle="-" if i < 10 else "--", label=name
        )
    axes.set_xticks(calls, [str(n) for n in calls])
    axes.minorticks_off()
    axes.set(
        xlabel="calls of the denoiser", ylabel="root mean square error", title=f"Solvers, schedule {args.schedule}"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the lines
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    with one_line_errors():
        main()
