"""Of an evaluation's pictures the share that is right of prompts by whose texts nothing was chosen.

    python scripts/evaluate.py --prompt-seed 2026 --prompts-per-category 100
    python benchmarks/unseen_prompts.py outputs/evaluation/report.json

Some categories have few texts ("a star"), so that another seed draws many of the same. Left out are the texts of the
sets by which the shipped model, its trainings and its settings were chosen: the benchmark's own, the one that trainings
are scored on, and those of docs/recipes.md and docs/samplers.md.
"""

import argparse
import json
from pathlib import Path

from ldm.cli import one_line_errors
from ldm.evaluation.prompts import CATEGORIES, SEED, TRAINING_SEED, prompt_set
from ldm.evaluation.score import Share

CHOSEN_BY = {SEED: 50, TRAINING_SEED: 50, 1: 100, 2: 100, 5: 20, 6: 40}  # seed: prompts of each category


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="FILE", help="report.json of evaluate.py")
    args = parser.parse_args()
    try:
        marked = [
            (one["category"], one["prompt"], one["right"]) for one in json.loads(args.report.read_text())["pictures"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{args.report} is no report of evaluate.py; give its report.json") from error
    known = {prompt.text for seed, count in CHOSEN_BY.items() for prompt in prompt_set(count, seed)}
    for title, names in (*((name, [name]) for name in CATEGORIES), ("all", [*CATEGORIES])):
        right = [hit for category, text, hit in marked if category in names and text not in known]
        of = sum(category in names for category, _, _ in marked)
        share = Share(sum(right), len(right))
        low, high = share.interval
        found = f"{100 * share.value:.1f} % right ({100 * low:.1f} to {100 * high:.1f})" if right else ""
        print(f"{title:>18} {share.total} of {of} texts are in no set before; {found}")


if __name__ == "__main__":
    with one_line_errors():
        main()
