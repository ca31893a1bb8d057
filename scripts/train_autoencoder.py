"""Train the first stage, which compresses images to latents."""

from ldm.cli import run_script
from ldm.stages import train_autoencoder

if __name__ == "__main__":
    run_script(
        "autoencoder",
        "train_autoencoder.py",
        "Train the first stage, which compresses images to latents. Goes on from its newest checkpoint.",
        train_autoencoder,
    )
