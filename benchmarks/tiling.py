"""Decoding a large picture whole and in tiles, side by side: peak memory, time, and how far apart the results are.

    python benchmarks/tiling.py --size 1024 --tiles 256 640

The decoder has the sizes of Stable Diffusion 1's and random weights. Each way runs in a process of its own, and its
memory is what the process's peak rises by over that of a picture of one tile's least size: on a GPU, that of tensors.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ldm.autoencoders import BOTTLENECKS, Autoencoder, AutoencoderConfig
from ldm.cli import device_of, one_line_errors

STABLE_DIFFUSION = AutoencoderConfig(channels=4, width=128, multipliers=[1, 2, 4, 4], blocks=2, attention=True)
LOCAL = AutoencoderConfig(channels=4, width=128, multipliers=[1, 2, 4, 4], blocks=2, attention=False, norm="channel")


class Measured(NamedTuple):
    """Seconds, bytes, and the picture (3, H, W)."""

    seconds: float
    peak: int
    picture: NDArray[np.float32]


@torch.inference_mode()
def measured(config: AutoencoderConfig, size: int, tile: int, device: torch.device) -> Measured:
    """Decode a latent of independent normals with ``tile``; 0 is whole."""
    torch.manual_seed(0)
    network: Autoencoder = config.build(BOTTLENECKS["kl"]().build(config.channels)).eval().to(device)
    side = size // network.factor
    latent = torch.randn(1, network.channels, side, side).to(device)
    network.decode(latent[:, :, :8, :8])  # the first call of a process is slow
    before, began = peak(device), time.perf_counter()
    picture = network.decode(latent, tile=tile)[0].cpu()
    return Measured(time.perf_counter() - began, peak(device) - before, picture.numpy())


def peak(device: torch.device) -> int:
    """The most bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="of the picture, pixels a side; 1024 if left out")
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 640], help="pixels a side; 256 and 640")
    parser.add_argument("--local", action="store_true", help="with channel norms and no attention instead")
    parser.add_argument("--device", default="", help="cpu, cuda, ...")
    args = parser.parse_args()
    device, config = device_of(args.device), LOCAL if args.local else STABLE_DIFFUSION
    print(f"{args.size} x {args.size} pixels, {device}, {torch.get_num_threads()} threads, {config.norm} norms")
    whole = None
    for tile in (0, *args.tiles):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made = pool.submit(measured, config, args.size, tile, device).result()
        line = f"tile {tile:4}: {made.peak / 2**20:7.0f} MiB, {made.seconds:7.1f} s"
        if whole is None:
            whole = made
            print(f"{line}: whole", flush=True)
            continue
        apart = float(np.abs(made.picture - whole.picture).mean()) * 127.5
        ratios = f"{made.peak / whole.peak:.2f} of the memory, {made.seconds / whole.seconds:.2f} of the time"
        print(f"{line}: {ratios}, {apart:.2f} of 255 levels apart in the mean", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
