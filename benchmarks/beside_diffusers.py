"""The same weights drawn with here and by diffusers, in turn: seconds of each part, and how far apart the results are.

    python benchmarks/beside_diffusers.py runs/shapes_sd/model --from-file data/prompts_one.txt --picture both.png
    python benchmarks/beside_diffusers.py --config configs/shards_unet.yaml --prompts 1 --steps 4 --precision bf16

The model is written for diffusers first. With --config it has random weights of the configuration's sizes, and a text
tower of the sizes of OpenAI's ViT-L/14. Each part is called by turns, here and there, the second of two calls being
timed; told is the median of each, and of the ratios of neighbours, with their range. A text's keys and values are made
once a picture here and at every step there, so that the U-Net alone is timed without them here.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ldm.cli import device_of, one_line_errors, read_lines
from ldm.config import load
from ldm.folders import build_denoiser, load_model, save_model
from ldm.interchange import to_diffusers
from ldm.pictures import grid
from ldm.pipeline import DTYPES, TextToImage
from ldm.run import Run
from ldm.samplers.noise import ImageNoise
from ldm.text.clip import Architecture, ClipText

PROMPT = "two large red stars left of a small blue ring"
VIT_L = Architecture(768, 12, 12, 77, 768, quick_gelu=True, padding="ends")
SCALE = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder, of Stable Diffusion 1's layout")
    parser.add_argument("--config", type=Path, help="or a configuration whose sizes get random weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over it")
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="prompts, one on each line, drawn at once")
    parser.add_argument("--prompts", type=int, default=4, help="or so many times the same; 4 if left out")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="those drawn here, and below them those there")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM; 20 if left out")
    parser.add_argument("--turns", type=int, default=5, help="of each part; 5 if left out")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32", help="fp32 if left out")
    parser.add_argument("--device", default="", help="cpu, cuda, ...")
    args = parser.parse_args()
    if bool(args.model) == bool(args.config):
        raise ValueError("give a model folder or --config FILE, one of the two")
    device = device_of(args.device)
    with TemporaryDirectory() as folder:
        source = args.model or made_up(args.config, args.set, Path(folder) / "model")
        to_diffusers(source, Path(folder) / "diffusers")
        ours = load_model(source, device)
        theirs = StableDiffusionPipeline.from_pretrained(Path(folder) / "diffusers", local_files_only=True)
    theirs = theirs.to(device, DTYPES[args.precision])
    theirs.set_progress_bar_config(disable=True)
    prompts = read_lines(args.from_file) if args.from_file else [PROMPT] * args.prompts
    pairs = parts(ours, theirs, prompts, args.steps, args.precision)
    if args.picture:
        both = torch.cat([each.call() for each in pairs[f"{len(prompts)} pictures in {args.steps} steps"]])
        grid(both, columns=len(prompts), path=args.picture)
    print(f"| part | here | diffusers | diffusers / here | apart by |\n{'| --- ' * 5}|")
    for name, (here, there) in pairs.items():
        print(f"| {name} | {row(here, there, args.turns)} |", flush=True)


def made_up(config: Path, overrides: list[str], folder: Path) -> Path:
    """A model folder of the sizes of ``config`` with random weights, none of them zero."""
    torch.manual_seed(0)
    run = load(Run, config, overrides)
    autoencoder = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    text = ClipText(VIT_L)
    denoiser = build_denoiser(run, autoencoder, text)
    for weight in denoiser.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    size, process = (run.data.size, run.data.size), run.process.build(run.schedule.build())
    save_model(TextToImage(denoiser, autoencoder, text, process, run.sampling, size), run, folder)
    return folder


class Timed(NamedTuple):
    """What is called, and within what: a context, or nothing, that is entered before the clock runs."""

    call: Callable[[], Tensor]
    within: Callable[[], AbstractContextManager[None]] = nullcontext


Pair = tuple[Timed, Timed]


def timed(what: Timed) -> float:
    """Seconds of the second of two calls."""
    with what.within():
        what.call()
        began = time.perf_counter()
        what.call().sum().item()  # waits for a GPU
        return time.perf_counter() - began


def parts(ours: TextToImage, theirs: Any, prompts: list[str], steps: int, precision: str) -> dict[str, Pair]:
    """What is timed, here and there, and gives a tensor that should be the same."""
    device, count, dtype = ours.device, len(prompts), DTYPES[precision]
    height, width = ours.latent_size(ours.size)
    noise = ImageNoise(list(range(count)), (ours.autoencoder.channels, height, width), device)()
    both = ours.condition([*[""] * count, *prompts])  # guidance asks twice
    tokens = both.tokens
    x = noise.repeat(2, 1, 1, 1)
    place = torch.tensor(500, device=device)
    told = torch.full((len(x),), 0.501, device=device)
    network: Any = ours.denoiser
    with torch.inference_mode(), ours.autocast(precision):
        prepared = network.prepare(both)  # once a picture here, at every step there
    sampling = ours.sampling.but(
        "sampler=ddim", "grid=uniform", f"sample.steps={steps}", f"sample.batch={count}",
        f"guidance.scale={SCALE}", "guidance.interval=[0,1]",
    )  # fmt: skip

    def ids() -> Tensor:
        limits = {"padding": "max_length", "max_length": theirs.tokenizer.model_max_length, "truncation": True}
        return theirs.tokenizer(prompts, return_tensors="pt", **limits).input_ids.to(device)

    def pictures() -> Tensor:
        return torch.cat([image for image, _ in ours(prompts, sampling=sampling, precision=precision)])

    def their_pictures() -> Tensor:
        drawn = theirs(
            prompts, latents=noise.to(dtype), num_inference_steps=steps, guidance_scale=SCALE, output_type="pt"
        )
        return drawn.images.float().cpu() * 2 - 1

    def here(call: Callable[[], Tensor]) -> Timed:
        return Timed(call, partial(ours.autocast, precision))

    return {
        f"text of {count} prompts": (
            here(lambda: ours.text(prompts).tokens),
            Timed(lambda: theirs.text_encoder(ids())[0]),
        ),
        f"U-Net, {count} guided": (
            here(lambda: ours.denoiser(x, told, prepared)),
            Timed(lambda: theirs.unet(x.to(dtype), place, encoder_hidden_states=tokens.to(dtype)).sample),
        ),
        f"decoding {count}": (
            here(lambda: ours.autoencoder.decode(noise, clamp=False)),
            Timed(lambda: theirs.vae.decode(noise.to(dtype)).sample),
        ),
        f"{count} pictures in {steps} steps": (Timed(pictures), Timed(their_pictures)),
    }


@torch.inference_mode()
def row(here: Timed, there: Timed, turns: int) -> str:
    """The cells of one part."""
    seconds: list[tuple[float, float]] = []
    with here.within():
        said = here.call().float()
    apart = float((said - there.call().float()).abs().max())
    for turn in range(turns):
        pair = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            pair[which] = timed((here, there)[which])
        seconds.append((pair[0], pair[1]))
    ratios = [b / a for a, b in seconds]
    mine, other = (median(each) for each in zip(*seconds, strict=True))
    return f"{mine:.3g} s | {other:.3g} s | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {apart:.1e}"


if __name__ == "__main__":
    with one_line_errors():
        main()
