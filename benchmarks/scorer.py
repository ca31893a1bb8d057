"""How many pictures a second the exact benchmark's scorer reads and judges.

    python benchmarks/scorer.py

The pictures are of true scenes drawn anew, in memory already. It prints the median speed of five runs and the share
that was right.
"""

import argparse
import time
from statistics import median

from ldm.cli import one_line_errors
from ldm.evaluation.benchmark import mark, true_pictures
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts-per-category", type=int, default=200, metavar="N", help="200 if left out")
    args = parser.parse_args()
    prompts = prompt_set(args.prompts_per_category, TRAINING_SEED)
    pictures, seconds = true_pictures(prompts), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        score = mark(prompts, pictures).score
        seconds.append(time.perf_counter() - began)
    speed = len(prompts) / median(seconds)
    print(f"{len(prompts)} pictures, {100 * score.overall.value:.2f} % right, {speed:.0f} a second")


if __name__ == "__main__":
    with one_line_errors():
        main()
