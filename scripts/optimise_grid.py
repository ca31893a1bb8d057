"""Find the noise levels at which few steps of one model draw what many would, and write the model with them.

python scripts/optimise_grid.py runs/shapes/model --steps 8 --out runs/shapes/model-8
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.cli import device_of, one_line_errors, read_lines
from ldm.config import load
from ldm.diffusion.schedules import SCHEDULES
from ldm.evaluation.grid_search import optimised_times
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.files import check_ours, make_writable
from ldm.folders import CONFIG, load_model, save_model, shipped_model
from ldm.pipeline import TextToImage, from_noise
from ldm.run import Run
from ldm.sampling import Sampling
from ldm.types import Denoise, Grid, Noise, Sampler

FINE = ("sampler=heun", "sample.steps=60", "grid=uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; the shipped model if left out")
    parser.add_argument("--steps", type=int, default=8, help="as many levels as the grid has; 8 if left out")
    parser.add_argument("--sampler", default="dpm_solver_pp", help="one without noise; dpm_solver_pp if left out")
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="prompts, one on each line; else of the shapes")
    parser.add_argument("--evaluations", type=int, default=150, metavar="N", help="drawings of all prompts; 150")
    parser.add_argument("--device", default="", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model with its new settings")
    args = parser.parse_args()
    walk = without_noise(args.sampler, args.steps)
    prompts = read_lines(args.from_file) if args.from_file else [p.text for p in prompt_set(2, TRAINING_SEED)]
    if not prompts:
        raise ValueError(f"{args.from_file} holds no prompt; write one on each line")
    check_ours(args.out)
    make_writable(args.out.parent)
    folder = args.model or shipped_model()
    model = load_model(folder, device_of(args.device))
    few = model.sampling.but(*walk)
    exact = latents(model, prompts, model.sampling.but(*FINE))
    with tqdm(total=args.evaluations, desc="searching", unit="drawing", dynamic_ncols=True) as bar:

        def draw(times: list[float]) -> Tensor:
            bar.update()
            return latents(model, prompts, few.but("grid=listed", f"grid.times={times}"))

        start = [float(level.t) for level in few.grid(model.process.schedule, args.steps)[:-1]]
        found = optimised_times(draw, exact, start, evaluations=args.evaluations)
    sampling = few.but("grid=listed", f"grid.times={[round(t, 6) for t in found.times]}")
    run = replace(load(Run, folder / CONFIG), **vars(sampling))
    print(
        f"error of the latents {found.error_before:.3f} with even times, {found.error:.3f} with {sampling.grid.times}"
    )
    save_model(model, run, args.out)
    print(f"written to {args.out}")


def without_noise(sampler: str, steps: int) -> list[str]:
    """The settings that draw by ``sampler`` along a grid, alike each time; ValueError where it cannot."""
    walk = [f"sampler={sampler}", "grid=uniform", f"sample.steps={steps}"]
    if hasattr(Sampling().but(*walk).sampler, "eta"):
        walk.append("sampler.eta=0")
    tried = Sampling().but(*walk)
    if tried.rehearsal(SCHEDULES["vp"]().build())[1] or tried.batch != Sampling().batch:
        raise ValueError(f"--sampler {sampler} draws noise or takes steps of its own; try --sampler dpm_solver_pp")
    return walk


@torch.no_grad()
def latents(model: TextToImage, prompts: list[str], sampling: Sampling) -> Tensor:
    """What ``sampling`` draws for the prompts of the same noise each time, not decoded."""
    drawn = []

    def keep(sampler: Sampler, denoise: Denoise, grid: Grid, noise: Noise) -> Tensor:
        drawn.append(from_noise(sampler, denoise, grid, noise))
        return drawn[-1]

    list(model(prompts, sampling=sampling, walk=keep))
    return torch.cat(drawn)


if __name__ == "__main__":
    with one_line_errors():
        main()
