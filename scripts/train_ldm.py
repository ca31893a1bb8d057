"""Train the denoiser in the latent space, with text."""

from ldm.cli import run_script
from ldm.stages import train_ldm

if __name__ == "__main__":
    run_script(
        "ldm",
        "train_ldm.py",
        "Train the denoiser in the latent space, with text. Goes on from its newest checkpoint.",
        train_ldm,
    )
