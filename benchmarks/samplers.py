"""How good a model's pictures are by sampler, or by grid, and by calls of its denoiser: Markdown tables and a figure.

    python benchmarks/samplers.py --prompts-per-category 10 --precision bf16 --out docs/samplers.png
    python benchmarks/samplers.py --grids --prompts-per-category 5 --precision bf16 --out docs/grids.png

The score is that of the exact benchmark, on prompts of a seed of their own. The distance is that of the first pictures
from those of a thousand steps of the probability-flow ODE from the same noise, root mean square, pixels in [-1, 1];
samplers that draw noise on their way have none. Each column is a budget of calls, and each row takes the most steps
that it allows; a guided call is one call. Samplers that take the same steps share a row.

What has been measured is kept beside the figure (docs/samplers.json), and a row that is there with the same settings
is not measured again; after a change of a sampler's code its row has to be deleted.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ldm.cli import check_picture, device_of, one_line_errors
from ldm.diffusion.grids import GRIDS
from ldm.evaluation.benchmark import drawn_by, mark
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import digest, load_model, shipped_model
from ldm.pipeline import DTYPES, TextToImage
from ldm.samplers import SAMPLERS
from ldm.sampling import Sampling
from ldm.types import Denoise, Level, Prediction, Schedule

BUDGETS = (1, 2, 4, 8, 12, 20, 50, 100)
SOLVED = 20  # pictures whose distance from the solution is told; few are exact enough
SOLVER = ["sampler=dpm_solver_pp", "sampler.eta=0"]
NAMED = {  # what is drawn with: overrides of the model's own settings
    "ddim = euler": ["sampler=ddim", "sampler.eta=0"],
    "ddim, eta 1 = ddpm = euler_ancestral": ["sampler=ddim", "sampler.eta=1"],
    "heun": ["sampler=heun"],
    "edm": ["sampler=edm"],
    "plms": ["sampler=plms"],
    "ipndm": ["sampler=ipndm"],
    "deis": ["sampler=deis"],
    "dpm_solver": ["sampler=dpm_solver"],
    "dpm_solver_pp": SOLVER,
    "dpm_solver_pp, order 3": [*SOLVER, "sampler.order=3"],
    "dpm_solver_pp, eta 1": ["sampler=dpm_solver_pp", "sampler.eta=1"],
    "dpm_solver_pp, eta 1.5": ["sampler=dpm_solver_pp", "sampler.eta=1.5"],
    "dpm_solver_pp, eta 2.5": ["sampler=dpm_solver_pp", "sampler.eta=2.5"],
    "unipc": ["sampler=unipc"],
    "euler_maruyama": ["sampler=euler_maruyama"],
    "predictor_corrector": ["sampler=predictor_corrector"],
    "annealed_langevin": ["sampler=annealed_langevin"],
    "ode, 0.03": ["sampler=ode", "sampler.rtol=0.03", "sampler.atol=0.03"],
    "ode, 0.001": ["sampler=ode", "sampler.rtol=0.001", "sampler.atol=0.001"],
}


def with_others(rows: dict[str, list[str]], samplers: Iterable[str]) -> dict[str, list[str]]:
    """``rows``, and one for each of the ``samplers`` that has none, with its own settings."""
    seen = {part.partition(",")[0] for row in rows for part in row.split(" = ")}
    return {**rows, **{name: [f"sampler={name}"] for name in samplers if name not in seen}}


ROWS = with_others(NAMED, SAMPLERS)


@dataclass
class Point:
    """What one setting gave."""

    calls: int  # of the denoiser, for a picture
    score: float  # share of right pictures
    distance: float | None  # from the solution
    seconds: float  # for a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; the shipped model if left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the figure, .svg or .png")
    parser.add_argument("--grids", action="store_true", help="compare ways to space the levels, not samplers")
    parser.add_argument("--prompts-per-category", type=int, default=10, metavar="N", help="10 if left out")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32", help="of the networks; fp32")
    parser.add_argument("--solution", type=int, default=1_000, metavar="STEPS", help="of the solution; 1000")
    args = parser.parse_args()
    check_picture(args.out, (".png", ".svg"))
    folder = args.model or shipped_model()
    rows = {name: [*SOLVER, f"grid={name}"] for name in sorted(GRIDS.keys() - {"listed"})} if args.grids else ROWS
    how = {"prompts_per_category": args.prompts_per_category, "solution": args.solution, "precision": args.precision}
    kept = Kept(args.out.with_suffix(".json"), {"model": digest(folder), **how})
    if missing := [name for name, overrides in rows.items() if kept.settings.get(name) != overrides]:
        model = load_model(folder, device_of())
        measure = Measure(model, args.prompts_per_category, args.solution, args.precision)
        for name in missing:
            kept.add(name, rows[name], measure.row(rows[name]))
    found = {name: kept.found[name] for name in rows}
    print(*tables(found), sep="\n")
    figure(found, args.out)


class Kept:
    """Rows that have been measured, in a file, with what they were measured of."""

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        """``of`` is all that figures depend on besides a row's own settings.

        Raises:
            ValueError: the file is not one of these, or its rows were measured of something else.
        """
        self.path, self.of = path, of
        self.settings: dict[str, list[str]] = {}
        self.found: dict[str, list[Point]] = {}
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            then, rows = dict(stored["of"]), stored["rows"]
            self.settings = {name: row["settings"] for name, row in rows.items()}
            self.found = {name: [Point(**point) for point in row["points"]] for name, row in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no rows of this benchmark; move it, or give another --out") from error
        if other := [f"{name} {then.get(name)}, now {now}" for name, now in of.items() if then.get(name) != now]:
            raise ValueError(f"{path} was measured with another {', another '.join(other)}; give another --out")

    def add(self, name: str, settings: list[str], points: list[Point]) -> None:
        self.settings[name], self.found[name] = settings, points
        rows = {
            row: {"settings": self.settings[row], "points": [asdict(point) for point in self.found[row]]}
            for row in self.found
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".partial")
        written.write_text(json.dumps({"of": self.of, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)


class Measure:
    """Scores, distances and times of a model's pictures of a fixed set of prompts."""

    def __init__(self, model: TextToImage, per_category: int, solution: int, precision: str) -> None:
        self.model = model
        self.precision = precision
        asked = prompt_set(per_category, TRAINING_SEED)
        self.prompts = [prompt for first in range(per_category) for prompt in asked[first::per_category]]  # all mixed
        exact = model.sampling.but(*SOLVER, "grid=uniform", f"sample.steps={solution}")
        solved = drawn_by(model, self.prompts[:SOLVED], sampling=exact, precision=precision)
        self.solution = torch.from_numpy(solved).float()  # (N, S, S, 3)

    def row(self, overrides: list[str]) -> list[Point]:
        """A point for each budget that allows a step, the fewest calls first."""
        asked = self.model.sampling.but(*overrides)
        if "sampler=ode" in overrides:  # it takes the steps that its tolerance asks for
            return [self.point(asked)]
        schedule = self.model.process.schedule
        steps = {most_steps(asked, schedule, budget) for budget in BUDGETS} - {0}
        return [self.point(asked.but(f"sample.steps={n}")) for n in sorted(steps)]

    def point(self, sampling: Sampling) -> Point:
        counter = Counter()
        began = time.perf_counter()
        pictures = drawn_by(self.model, self.prompts, sampling=sampling, precision=self.precision, steer=counter.steer)
        seconds = (time.perf_counter() - began) / len(self.prompts)
        score = mark(self.prompts, pictures).score.overall.value
        distance = None
        _, draws_noise = sampling.rehearsal(self.model.process.schedule)
        if not draws_noise:
            error = (torch.from_numpy(pictures[: len(self.solution)]).float() - self.solution) / 127.5
            distance = error.square().mean().sqrt().item()
        return Point(counter.most, score, distance, seconds)


class Counter:
    """Counts the calls of a denoiser: the most that any batch of pictures took."""

    def __init__(self) -> None:
        self.most = 0

    def steer(self, denoise: Denoise, prompts: list[str]) -> Denoise:
        """``denoise``, counted; ``prompts`` are those of the batch."""
        calls = 0

        def counted(x: Tensor, level: Level) -> Prediction:
            nonlocal calls
            calls += 1
            self.most = max(self.most, calls)
            return denoise(x, level)

        return counted


def most_steps(sampling: Sampling, schedule: Schedule, budget: int) -> int:
    """The most steps that take no more than ``budget`` calls; 0 where one takes more."""
    fitting = (n for n in range(budget, 0, -1) if _calls(sampling, schedule, n) <= budget)
    return next(fitting, 0)


def _calls(sampling: Sampling, schedule: Schedule, steps: int) -> int:
    return sampling.but(f"sample.steps={steps}").rehearsal(schedule)[0]


def tables(found: dict[str, list[Point]]) -> list[str]:
    """The three tables in Markdown: scores, distances and seconds."""
    return [
        table(found, "right", lambda point: f"{100 * point.score:.0f} %"),
        table(found, "distance", lambda point: "" if point.distance is None else f"{point.distance:.3f}"),
        table(found, "seconds a picture", lambda point: f"{point.seconds:.3f}"),
    ]


def table(found: dict[str, list[Point]], name: str, cell: Callable[[Point], str]) -> str:
    """Markdown; a point stands in the first column whose budget allows it, or else in the last, with its calls."""
    lines = [f"| {name} | {' | '.join(map(str, BUDGETS))} |", "|" + " --- |" * (len(BUDGETS) + 1)]
    for row, points in found.items():
        cells = {budget_of(point): cell(point) + beyond(point) for point in points}
        lines.append(f"| {row} | {' | '.join(cells.get(budget, '') for budget in BUDGETS)} |")
    return "\n".join(lines) + "\n"


def budget_of(point: Point) -> int:
    return next((budget for budget in BUDGETS if point.calls <= budget), BUDGETS[-1])


def beyond(point: Point) -> str:
    return f" ({point.calls} calls)" if point.calls > BUDGETS[-1] else ""


def figure(found: dict[str, list[Point]], out: Path) -> None:
    """Score, and distance from the solution, against calls."""
    drawn, (scores, distances) = plt.subplots(1, 2, figsize=(13, 6.5), layout="constrained")
    for i, (name, points) in enumerate(found.items()):
        style = {"marker": "o", "markersize": 3, "color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
        scores.plot([p.calls for p in points], [100 * p.score for p in points], label=name, **style)
        near = [(p.calls, p.distance) for p in points if p.distance is not None]
        if near:
            distances.plot(*zip(*near, strict=True), **style)
    distances.set_yscale("log")
    for axes, label in ((scores, "right, per cent"), (distances, "distance from the solution")):
        axes.set_xscale("log")
        axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axes.minorticks_off()
        axes.set(xlabel="calls of the denoiser", ylabel=label)
        axes.grid(alpha=0.3)
    drawn.legend(*scores.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(out)


if __name__ == "__main__":
    with one_line_errors():
        main()
