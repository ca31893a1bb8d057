"""Train a small CLIP text encoder from scratch on image-caption pairs."""

from ldm.cli import run_script
from ldm.stages import train_clip

if __name__ == "__main__":
    run_script(
        "clip",
        "train_clip.py",
        "Train a small CLIP text encoder from scratch on image-caption pairs. Goes on from its newest checkpoint.",
        train_clip,
        example="configs/demo.yaml",
    )
