"""Write a model for diffusers, or read one of its pipelines as a model of ours.

python scripts/convert.py export runs/shapes_sd/model --out runs/shapes_sd/diffusers
python scripts/convert.py import stable-diffusion-v1-5 --out runs/sd15

What goes either way is Stable Diffusion 1's layout, and in from there 2's too: docs/diffusers.md.
"""

import argparse
from pathlib import Path

import torch

from ldm.cli import one_line_errors
from ldm.files import check_ours, make_writable
from ldm.interchange import from_diffusers, to_diffusers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    export = ways.add_parser("export", help="write a model folder for StableDiffusionPipeline.from_pretrained")
    export.add_argument("source", type=Path, metavar="MODEL", help="a model folder")
    export.add_argument("--half", action="store_true", help="half precision, half the size; single if left out")
    importing = ways.add_parser("import", help="read a StableDiffusionPipeline's folder; nothing is downloaded")
    importing.add_argument("source", type=Path, metavar="FOLDER", help="with model_index.json and safetensors files")
    for way in (export, importing):
        way.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of what is written")
    args = parser.parse_args()
    source, out = args.source.resolve(), args.out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise ValueError(f"--out {args.out} lies in {args.source}, or the other way round; name another place")
    check_ours(args.out)
    make_writable(args.out.parent)
    if args.way == "export":
        to_diffusers(args.source, args.out, torch.float16 if args.half else torch.float32)
    else:
        from_diffusers(args.source, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
