"""Write the latents and text states of a data set once, for train_ldm.py to read."""

from pathlib import Path

import torch

from ldm.caching import cache_a_few, cache_latents
from ldm.cli import run_script
from ldm.run import Run
from ldm.stages.frozen import frozen_stages
from ldm.training.start import Start


def cache(run: Run, device: torch.device, start: Start) -> Path:
    run, autoencoder, text = frozen_stages(run, device, stand_in=start.scratch is not None)
    data = run.data.build("train")
    if start.scratch:
        return cache_a_few(run, autoencoder, text, data, start.scratch).folder
    return cache_latents(run, autoencoder, text, data).folder


if __name__ == "__main__":
    run_script(
        "ldm",
        "cache_latents.py",
        "Encode every training image and caption once, into <out>/cache. train_ldm.py does this itself where it pays.",
        cache,
        resumes=False,
    )
