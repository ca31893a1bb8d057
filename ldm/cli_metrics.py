"""The options of the scripts that measure by other networks: where those of FID, LPIPS and the CLIP score come from."""

import argparse
from pathlib import Path
from typing import Any

from ldm.evaluation.general import Sources
from ldm.evaluation.weights import DOWNLOAD


def add_sources(parser: Any) -> None:
    parser.add_argument("--inception", type=Path, metavar="FILE", help=f"weights of FID's Inception, or {DOWNLOAD}")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help=f"weights of LPIPS' AlexNet, or {DOWNLOAD}")
    parser.add_argument("--clip", default="", metavar="NAME[:TAG]", help="open_clip's model of the CLIP score")
    parser.add_argument("--clip-weights", type=Path, metavar="FILE", help="its weights, in place of the tag's")
    parser.add_argument("--clip-run", type=Path, metavar="RUN", help="a run whose own CLIP gives the CLIP score")


def sources_asked(args: argparse.Namespace) -> bool:
    """Whether any of these options was given."""
    return any((args.inception, args.lpips, args.clip, args.clip_weights, args.clip_run))


def read_sources(args: argparse.Namespace) -> Sources:
    """Where the networks come from.

    Raises:
        ValueError: an option stands beside one that makes it void, or a file that was named is not there.
    """
    if args.clip and args.clip_run:
        raise ValueError("--clip and --clip-run name a CLIP each, and the score is of one; leave one out")
    if args.clip_weights and not args.clip:
        raise ValueError("--clip-weights are of the model that --clip names; give --clip ViT-B-32 or another")
    for option in ("inception", "lpips", "clip_weights", "clip_run", "reference"):
        path, fetched = getattr(args, option), option in ("inception", "lpips")
        if path is not None and not path.exists() and not (fetched and path == Path(DOWNLOAD)):
            raise ValueError(f"--{option.replace('_', '-')} {path} is not there")
    return Sources(args.inception, args.lpips, args.clip, args.clip_weights, args.clip_run)
