"""Train a prior over the codes of a first stage that has some: vq, vq2 or fsq."""

from ldm.cli import run_script
from ldm.stages import train_prior

if __name__ == "__main__":
    run_script(
        "prior",
        "train_prior.py",
        "Train a prior over the codes of a first stage that has some. Goes on from its newest checkpoint.",
        train_prior,
        example="configs/folder256_vq.yaml data.path=~/pictures",
    )
