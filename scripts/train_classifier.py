"""Train a classifier of noised latents, for classifier guidance."""

from ldm.cli import run_script
from ldm.stages import train_classifier

if __name__ == "__main__":
    run_script(
        "classifier",
        "train_classifier.py",
        "Train a classifier of noised latents, for classifier guidance. Goes on from its newest checkpoint.",
        train_classifier,
        example="configs/demo.yaml",
    )
