"""Write the latents and text states of a data set once, for train_ldm.py to read."""

from pathlib import Path

import torch

from ldm.cli import run_script
from ldm.run import Run
from ldm.stages import cache_latents, frozen_stages


def cache(run: Run, device: torch.device) -> Path:
    run, autoencoder, text = frozen_stages(run, device)
    return cache_latents(run, autoencoder, text, run.data.build("train")).folder


if __name__ == "__main__":
    run_script(
        "ldm",
        "cache_latents.py",
        "Encode every training image and caption once, into <out>/cache. train_ldm.py does this itself where it pays.",
        cache,
    )
