"""Arithmetic, not measurement: what training the large configurations takes on many GPUs. Needs no GPU itself.

python benchmarks/scaling.py --peak 312 --use 0.35 --link 25
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.cli import one_line_errors
from ldm.config import load
from ldm.run import Run
from ldm.training.sharding import blocks_of
from ldm.types import Condition

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = ("stream_dit_xl", "shards_unet")
TEXT_WIDTH, TEXT_TOKENS = 768, 77  # of CLIP ViT-L/14, which both read
BYTES = {"weights": 4, "gradients": 4, "their buckets": 4, "AdamW": 8, "average": 4}  # a parameter, in float32


def cost(run: Run) -> tuple[nn.Module, int]:
    """The run's denoiser, without numbers (on torch's "meta" device), and the FLOPs of training on one image."""
    channels, side = run.autoencoder.channels, run.data.size // run.autoencoder.factor
    widths = {"text_width": TEXT_WIDTH, "pooled_width": TEXT_WIDTH}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = run.denoiser.build(channels=channels, out_channels=channels, **widths)
        x, tokens = torch.randn(1, channels, side, side), torch.randn(1, TEXT_TOKENS, TEXT_WIDTH)
        cond = Condition(tokens, torch.randn(1, TEXT_WIDTH), torch.ones(1, TEXT_TOKENS, dtype=torch.bool))
        network(x, torch.rand(1), cond).sum().backward()
    return network, counter.get_total_flops()


def size(module: nn.Module) -> int:
    """The number of its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def sharded(network: nn.Module, gpus: int) -> float:
    """GB on each GPU of a sharded network: its shards, and what is whole at a time, with its gradient.

    That is what stands outside the blocks, and two blocks: one that computes and one that is being gathered.
    """
    blocks = sorted(map(size, blocks_of(network)))
    shards = (sum(BYTES.values()) - BYTES["their buckets"]) * size(network) / gpus
    return (shards + 8 * (size(network) - sum(blocks) + sum(blocks[-2:]))) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=312.0, help="TFLOP/s of one GPU in bfloat16; an A100's")
    parser.add_argument("--use", type=float, default=0.35, help="share of the peak that is reached, an assumption")
    parser.add_argument("--link", type=float, default=25.0, help="GB/s of one GPU's link to the others")
    args = parser.parse_args()
    print("| configuration | parameters | FLOPs an image | GPUs | images a second | step | exchange | steps | days |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    memory = []
    for name in NAMES:
        run = load(Run, CONFIGS / f"{name}.yaml")
        network, flops = cost(run)
        parameters = size(network)
        for gpus in (8, 64):
            rate = gpus * args.peak * 1e12 * args.use / flops
            step = gpus * run.train_ldm.batch * run.train_ldm.accumulate / rate
            exchange = 2 * 4 * parameters * (gpus - 1) / gpus / (args.link * 1e9)  # a ring's all-reduce in float32
            days = run.train_ldm.steps * (step + exchange) / 86_400  # none of the exchange is hidden
            print(
                f"| {name} | {parameters / 1e6:.1f} M | {flops / 1e9:.0f} G | {gpus} | {rate:.0f} | {step:.2f} s | "
                f"{exchange:.2f} s | {run.train_ldm.steps:,} | {days:.1f} |"
            )
        held = ", ".join(f"{part} {each * parameters / 1e9:.1f} GB" for part, each in BYTES.items())
        memory.append(f"{name}: {held}; {sum(BYTES.values()) * parameters / 1e9:.1f} GB in all")
        shared = ", ".join(f"{sharded(network, gpus):.1f} GB over {gpus} GPUs" for gpus in (8, 64))
        memory.append(f"{name}, sharded: {shared}")
    print("\nmemory of each GPU, before activations and the frozen parts", *memory, sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
