"""Train a ControlNet: a network that makes a trained model follow the edges of a picture, or something else of it."""

from ldm.cli import run_script
from ldm.stages import train_control

if __name__ == "__main__":
    run_script(
        "control",
        "train_control.py",
        "Train a ControlNet of a trained model, to follow a picture's edges. Goes on from its newest checkpoint.",
        train_control,
        example="configs/demo.yaml",
    )
