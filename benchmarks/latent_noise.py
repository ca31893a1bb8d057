"""How exact a denoiser must be: the benchmark's ceiling of autoencoders by noise on their latents, as a Markdown table.

    python benchmarks/latent_noise.py ldm/assets/shapes64/autoencoder runs/shapes/autoencoder

True pictures are encoded; their latents, whose standard deviation is about 1, get normal noise and are decoded.
Where little noise ruins the score, every small error of a denoiser shows in its pictures.
"""

import argparse
from pathlib import Path

from ldm.cli import device_of, one_line_errors
from ldm.evaluation.benchmark import ceiling
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import load_autoencoder

NOISES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoders", type=Path, nargs="+", metavar="FOLDER", help="a trained autoencoder's folder")
    parser.add_argument("--prompts-per-category", type=int, default=50, metavar="N", help="50 if left out")
    args = parser.parse_args()
    prompts = prompt_set(args.prompts_per_category, TRAINING_SEED)
    print(f"| std of the noise | {' | '.join(map(str, NOISES))} |\n|{' --- |' * (len(NOISES) + 1)}")
    for folder in args.autoencoders:
        autoencoder, run = load_autoencoder(folder, device_of())
        scores = [ceiling(prompts, autoencoder, run.data.size, noise).overall.value for noise in NOISES]
        print(f"| {folder} | {' | '.join(f'{100 * score:.1f} %' for score in scores)} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
