"""Of an evaluation's pictures the share that is right of prompts by whose texts nothing was chosen.

    python scripts/evaluate.py --prompt-seed 2026 --prompts-per-category 100
    python benchmarks/unseen_prompts.py outputs/evaluation/report.json

Some categories have few texts ("a star"), so that another seed draws many of the same. Left out are the texts of the
sets by which the shipped model, its trainings and its settings were chosen: the benchmark's own, the one that trainings
are scored on, and those of docs/recipes.md and docs/samplers.md, as far as they have a seed.
"""

import argparse
import json
from collections.abc import Set
from pathlib import Path

from ldm.cli import one_line_errors
from ldm.evaluation.prompts import CATEGORIES, SEED, TRAINING_SEED, prompt_set
from ldm.evaluation.score import Share

ALL = "all"
CHOSEN_BY = {SEED: 50, TRAINING_SEED: 50, 1: 100, 2: 100, 5: 20, 6: 40}  # seed: prompts of each category


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="FILE", help="report.json of evaluate.py")
    args = parser.parse_args()
    try:
        pictures = json.loads(args.report.read_text(encoding="utf-8"))["pictures"]
        marked = [(one["category"], one["prompt"], bool(one["right"])) for one in pictures]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{args.report} is no report of evaluate.py; give its report.json") from error
    known = {prompt.text for seed, count in CHOSEN_BY.items() for prompt in prompt_set(count, seed)}
    for name, share in unseen(marked, known).items():
        found = f"{share.percent()} right" if share.total else "none"
        print(f"{name:>18} {share.total:4} of {sum(name in (one[0], ALL) for one in marked):4}: {found}")


def unseen(marked: list[tuple[str, str, bool]], known: Set[str]) -> dict[str, Share]:
    """Of pictures (category, prompt, right) the share that is right of those whose prompt is not ``known``."""
    shares = {}
    for name in (*CATEGORIES, ALL):
        right = [hit for category, text, hit in marked if name in (category, ALL) and text not in known]
        shares[name] = Share(sum(right), len(right))
    return shares


if __name__ == "__main__":
    with one_line_errors():
        main()
