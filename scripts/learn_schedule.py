"""Learn the noise schedule at which every time of a trained model's variational bound counts alike.

    python scripts/learn_schedule.py runs/shapes/model
    python scripts/train_ldm.py schedule=listed "schedule.gamma=[...]" times=uniform weight=vlb

The bound depends on the schedule's ends alone; what lies between is chosen for the least variance of the loss over
times (Kingma et al. 2021, arXiv:2107.00630, App. I). The size of the loss at each log SNR is measured on held-out
images. What is printed is a schedule for a new training.
"""

import argparse
from math import exp
from pathlib import Path

import torch
from torch import Tensor

from ldm.cli import device_of, one_line_errors
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.diffusion.grids import at_times
from ldm.diffusion.learned import LearnedConfig, fit, on_lines
from ldm.diffusion.times import MIN_TIME
from ldm.diffusion.vlb import continuous_bound
from ldm.folders import CONFIG, load_model, shipped_model
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.samplers import ImageNoise
from ldm.types import Level

AT_ONCE = 64  # images
PLACES = 64  # log SNRs at which the loss is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; the shipped model if left out")
    parser.add_argument("--gamma", type=float, nargs=2, default=(-7.0, 9.0), metavar=("LOW", "HIGH"), help="-log SNR")
    parser.add_argument("--images", type=int, default=128, metavar="N", help="held-out images; 128 if left out")
    parser.add_argument("--values", type=int, default=17, metavar="N", help="how long the list is; 17 if left out")
    parser.add_argument("--device", default="", help="cpu, cuda, ...")
    args = parser.parse_args()
    if args.images < 1 or args.values < 2:
        raise ValueError(f"--images {args.images} and --values {args.values} are too few; try 128 and 17")
    low, high = args.gamma
    learned = LearnedConfig(low, high).build()  # refuses what cannot be
    folder = args.model or shipped_model()
    sizes = loss_sizes(load_model(folder, device_of(args.device)), load(Run, folder / CONFIG), args.images, low, high)

    def size(level: Level) -> Tensor:
        gamma = -torch.as_tensor(level.log_snr).flatten()  # (B,)
        return on_lines(((gamma - low) / (high - low) * PLACES - 0.5) / (PLACES - 1), sizes)  # from middle to middle

    before, after = fit(learned, size)
    with torch.no_grad():
        gamma = learned.gamma(torch.linspace(0, 1, args.values, dtype=torch.float64)).tolist()
    listed = [round(value, 3) for value in gamma]
    print(f"mean square of the loss: {before:.4g} with log SNR linear in t, {after:.4g} as learned")
    print(f"schedule: {{name: listed, gamma: {listed}}}")


@torch.no_grad()
def loss_sizes(model: TextToImage, run: Run, images: int, low: float, high: float) -> Tensor:
    """The root mean square over held-out images of the bound per unit of log SNR, in bits per dimension (PLACES,).

    Of as many bins of equal length from where -log SNR is ``low`` to where it is ``high``.

    Raises:
        ValueError: the model's schedule does not reach so far.
    """
    schedule = model.process.schedule
    least, most = (-float(schedule.level(t).log_snr) for t in (MIN_TIME, 1.0))
    if low < least - 0.01 or high > most + 0.01:
        ends = f"{least:.2f} to {most:.2f}"
        raise ValueError(f"--gamma {low:g} {high:g} is not within what the model was trained on, {ends}")
    grid = at_times(schedule, [schedule.t_at(exp(gamma / 2)) for gamma in (high, low)])
    squares, count = torch.zeros(PLACES), 0
    for seed, batch in enumerate(first_batches(run.data.build("val"), AT_ONCE, images)):
        latent, cond = model.encode(batch)
        _, channels, height, width = latent.shape
        noise = ImageNoise([*range(count, count + len(latent))], (channels, height, width), model.device)
        denoise = model.process.denoiser(model.denoiser, cond)
        generator = torch.Generator().manual_seed(seed)
        bound = continuous_bound(denoise, latent, grid, noise, generator, evaluations=PLACES)
        squares += bound.steps.square().sum(dim=0).cpu()
        count += len(latent)
    return (squares / count).sqrt().flip(0) * PLACES / (high - low)


if __name__ == "__main__":
    with one_line_errors():
        main()
