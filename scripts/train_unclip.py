"""Train unCLIP's prior, which draws CLIP's embedding of a picture from its caption."""

from ldm.cli import run_script
from ldm.stages import train_unclip

if __name__ == "__main__":
    run_script(
        "unclip",
        "train_unclip.py",
        "Train unCLIP's prior: CLIP's embedding of a picture, from its caption. Goes on from its newest checkpoint.",
        train_unclip,
        example="configs/demo_unclip.yaml",
    )
