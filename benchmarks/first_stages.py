"""First stages of every kind side by side: a Markdown table, and one picture of what comes back from each.

    python benchmarks/first_stages.py --picture first_stages.png
    python benchmarks/first_stages.py configs/first_stages/kl.yaml configs/first_stages/vq.yaml --denoiser 1500
    python benchmarks/first_stages.py --out runs/photographs --set data.name=folder data.path=MY_PICTURES data.size=64

Each configuration is trained, if its run is not at its end already, and looked at with the same pictures: true ones of
the exact benchmark's prompts, or of other data those held out for validation, which the benchmark cannot read. With
--out the runs lie below that folder, each under its configuration's name. With --denoiser the shapes run's own denoiser
is trained on each first stage, too, for so many steps, and scored by those prompts that pictures of its world can
fulfil; the text encoder is the run's own or the shipped one. --denoiser-set makes that world or that denoiser a smaller
one.

Legend: N pictures, S side.
"""

import argparse
from hashlib import sha256
from math import comb, log2, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.bottlenecks.sparse import TopK
from ldm.autoencoders.codes import map_sizes, quantizers
from ldm.cli import check_picture, device_of, one_line_errors
from ldm.config import load
from ldm.data import pictures_of
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.data.transforms import from_bytes, to_bytes
from ldm.evaluation.autoencoder import AutoencoderReport, autoencoder_report
from ldm.evaluation.benchmark import AT_ONCE, Pictures, drawn_by, mark, through, true_pictures
from ldm.evaluation.prompts import TRAINING_SEED, Prompt, prompt_set
from ldm.evaluation.score import Score
from ldm.folders import load_autoencoder, load_model
from ldm.pictures import grid
from ldm.run import Run
from ldm.stages import train_autoencoder, train_ldm

CONFIGS = Path(__file__).parents[1] / "configs" / "first_stages"
READ = "read right"
COLUMNS = (
    "model",
    "latent",
    "compression",
    "parameters",
    "PSNR",
    "SSIM",
    READ,
    "pictures encoded, decoded a second",
    "KL, or use of the codes",
)
SHOWN = 10  # pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="*", metavar="FILE", help="all of configs/first_stages if left out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the runs; their own if left out")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over every configuration")
    parser.add_argument("--denoiser", type=int, default=0, metavar="STEPS", help="train one on each, and score it")
    parser.add_argument("--denoiser-set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over its run")
    parser.add_argument("--prompts-per-category", type=int, default=50, metavar="N", help="50 if left out")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="originals, and a row of reconstructions for each")
    args = parser.parse_args()
    if any(override.startswith("out=") for override in [*args.set, *args.denoiser_set]):
        raise ValueError("--set out=... would train every configuration in one folder; use --out DIR")
    if args.denoiser < 0 or (args.denoiser_set and not args.denoiser):
        raise ValueError(f"--denoiser {args.denoiser} trains none; give it 1 step or more, or leave out --denoiser-set")
    if args.picture is not None:
        check_picture(args.picture)
    prompts = prompt_set(args.prompts_per_category, TRAINING_SEED)
    runs = {path: run_of(path, args.out, args.set) for path in args.configs or sorted(CONFIGS.glob("*.yaml"))}
    drawn = all(isinstance(run.data, ShapesConfig) for run in runs.values())
    if args.denoiser and not drawn:
        raise ValueError("--denoiser is scored by the shapes benchmark; leave it out, or set data.name=shapes")
    changes = [*args.set, *args.denoiser_set, f"train_ldm.steps={args.denoiser}", "train_ldm.score_every=0"]
    for path in runs if args.denoiser else ():
        load(Run, path, changes)  # a setting that cannot be is told before anything is trained
    columns = [name for name in COLUMNS if drawn or name != READ]
    columns += ["score of a denoiser"] if args.denoiser else []
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    sheet: list[Pictures] = []
    for path, run in runs.items():
        pictures = true_pictures(prompts, run.data.size) if drawn else held_out(run.data, len(prompts))
        autoencoder, _ = load_autoencoder(train_autoencoder(run, device_of()), device_of())
        cells = [path.stem, *row(autoencoder, pictures, prompts if drawn else None)]
        if args.denoiser:
            score = score_of_denoiser(path, Path(run.out), changes, prompts)
            cells.append(score.overall.percent())
        print(f"| {' | '.join(cells)} |", flush=True)
        shown = pictures[:: -(-len(pictures) // SHOWN)]  # of all categories
        sheet += [through(autoencoder, shown)] if sheet else [shown, through(autoencoder, shown)]
    if args.picture is not None:
        images = from_bytes(torch.from_numpy(np.concatenate(sheet)).permute(0, 3, 1, 2))  # (N, 3, S, S)
        grid(images, columns=len(sheet[0]), path=args.picture)


def run_of(path: Path, out: Path | None, overrides: list[str]) -> Run:
    """The run that ``path`` configures, in a folder of its own below ``out`` if there is one."""
    return load(Run, path, overrides if out is None else [*overrides, f"out={out / path.stem}"])


def held_out(data: Any, count: int) -> Pictures:
    """The first ``count`` pictures that ``data`` holds out for validation, or all where there are fewer."""
    return np.concatenate([to_bytes(batch.image) for batch in first_batches(pictures_of(data, "val"), AT_ONCE, count)])


def row(autoencoder: Autoencoder, pictures: Pictures, prompts: list[Prompt] | None) -> list[str]:
    """The cells but for the name and the denoiser's, by ``pictures`` (N, S, S, 3) in which ``prompts`` are true.

    Pictures without prompts are not read.
    """
    report, size = autoencoder_report(autoencoder, pictures), pictures.shape[1]
    side = size // autoencoder.factor
    return [
        f"{side} x {side} x {autoencoder.channels}",
        compression(autoencoder, size),
        f"{sum(weight.numel() for weight in autoencoder.parameters()) / 1e6:.2f} M",
        f"{report.psnr:.1f} dB",
        f"{report.ssim:.3f}",
        *([mark(prompts, through(autoencoder, pictures)).score.overall.percent()] if prompts is not None else []),
        f"{1 / report.encode_seconds:.0f}, {1 / report.decode_seconds:.0f}",
        said_by_latents(report),
    ]


def score_of_denoiser(path: Path, base: Path, changes: list[str], prompts: list[Prompt]) -> Score:
    """That of a denoiser trained on the first stage in ``base``, in a folder of its own there.

    Its run is the configuration at ``path`` with ``changes`` laid over it.
    """
    out = base / f"denoiser-{sha256(' '.join(changes).encode()).hexdigest()[:8]}"
    out.mkdir(exist_ok=True)
    for stage in ("autoencoder", "text"):  # links, so that one that is trained anew is not passed over
        if (base / stage).is_dir() and not (out / stage).exists():
            (out / stage).symlink_to((base / stage).resolve(), target_is_directory=True)
    run = load(Run, path, [*changes, f"out={out}"])
    model = load_model(train_ldm(run, device_of()), device_of())
    asked = [prompt for prompt in prompts if run.data.holds(prompt.statement)]
    return mark(asked, drawn_by(model, asked)).score


def compression(autoencoder: Autoencoder, size: int) -> str:
    """How many times fewer bits (of codes) or numbers (of other latents) than a picture of ``size`` has."""
    side, values = size // autoencoder.factor, 3 * size**2
    if levels := quantizers(autoencoder.bottleneck):
        sizes = map_sizes(autoencoder.bottleneck, side, side)
        bits = sum(prod(places) * log2(quantizer.num_codes) for places, quantizer in zip(sizes, levels, strict=True))
        return f"{bits:.0f} bits, {8 * values / bits:.0f} times fewer"
    if isinstance(autoencoder.bottleneck, TopK):
        numbers = autoencoder.bottleneck.k * side**2
        which = side**2 * log2(comb(autoencoder.channels, autoencoder.bottleneck.k))
        return f"{numbers} numbers, {values / numbers:.0f} times fewer, and {which:.0f} bits: which they are"
    numbers = autoencoder.channels * side**2
    return f"{numbers} numbers, {values / numbers:.0f} times fewer"


def said_by_latents(report: AutoencoderReport) -> str:
    """The KL, or of each level the codes' perplexity and how many of them are used; empty where there is neither."""
    own = report.bottleneck
    if "kl_sum" in own:
        return f"{own['kl_sum']:.0f} nats"
    levels = [name.removeprefix("perplexity") for name in own if name.startswith("perplexity")]
    used = [f"perplexity {own[f'perplexity{at}']:.0f}, {100 * own[f'usage{at}']:.0f} % used" for at in levels]
    return "; ".join(used)


if __name__ == "__main__":
    with one_line_errors():
        main()
