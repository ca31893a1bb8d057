"""Write a model or a first stage alone for diffusers, or read one of its pipelines or AutoencoderKLs as ours.

python scripts/convert.py export runs/shapes_sd/model --out runs/shapes_sd/diffusers
python scripts/convert.py export runs/shapes_sd/autoencoder --out runs/shapes_sd/vae
python scripts/convert.py import stable-diffusion-v1-5 --out runs/sd15
python scripts/convert.py import sd-vae-ft-mse --out runs/sd_vae

The last writes runs/sd_vae/autoencoder, which trainings with out=runs/sd_vae build on.
What goes either way is Stable Diffusion 1's layout, and in from there 2's too: docs/diffusers.md.
"""

import argparse
from pathlib import Path

import torch

from ldm.cli import one_line_errors
from ldm.files import check_ours, check_outside, make_writable, settled
from ldm.folders import lone_autoencoder
from ldm.interchange import autoencoder_from_diffusers, autoencoder_to_diffusers, from_diffusers, to_diffusers
from ldm.interchange.parts import SETTINGS
from ldm.interchange.pipeline import INDEX


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    export = ways.add_parser("export", help="write a model or an autoencoder folder for diffusers' from_pretrained")
    export.add_argument("source", type=Path, metavar="MODEL", help="a model folder, or an autoencoder's")
    export.add_argument("--half", action="store_true", help="half precision, half the size; single if left out")
    importing = ways.add_parser("import", help="read a StableDiffusionPipeline or an AutoencoderKL from its folder")
    importing.add_argument(
        "source", type=Path, metavar="FOLDER", help=f"with {INDEX}, or {SETTINGS} of an AutoencoderKL; safetensors"
    )
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of what is written")
    importing.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the model; of an AutoencoderKL autoencoder/ in it"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    if not settled(args.source):
        raise ValueError(
            f"there is no folder {args.source}; nothing is downloaded here: hf download NAME --local-dir FOLDER does it"
        )
    make_writable(args.out.parent)
    if args.way == "export":
        write(args.source, args.out, torch.float16 if args.half else torch.float32)
    else:
        read(args.source, args.out)


def write(source: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the model or the autoencoder in ``source`` to ``out`` for diffusers."""
    check_place(source, out)
    alone = lone_autoencoder(source)
    if alone == source:
        autoencoder_to_diffusers(source, out, dtype)
    elif alone:
        raise ValueError(f"{source} has a first stage and no model; give {alone} to export it alone")
    else:
        to_diffusers(source, out, dtype)
    print(f"written to {out}")


def read(source: Path, out: Path) -> None:
    """Write diffusers' pipeline in ``source`` to ``out``, or its AutoencoderKL to the autoencoder folder there."""
    pipeline = (source / INDEX).is_file()
    if not pipeline and not (source / SETTINGS).is_file():
        raise ValueError(f"{source} has no {INDEX}, nor {SETTINGS}; give the folder of a pipeline or an AutoencoderKL")
    folder, training = out if pipeline else out / "autoencoder", out / "training" / "autoencoder"
    check_place(source, folder)
    if pipeline:
        from_diffusers(source, folder)
    elif training.is_dir():
        raise ValueError(f"{folder} is what {training} made, and would be replaced; give another --out")
    else:
        autoencoder_from_diffusers(source, folder)
    print(f"written to {folder}")


def check_place(source: Path, folder: Path) -> None:
    """Raise ValueError where writing ``folder`` would harm ``source`` or another folder that is there."""
    read, written = source.resolve(), folder.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise ValueError(f"--out: {folder} lies in {source}, or the other way round; name another place")
    check_outside(folder)
    check_ours(folder)


if __name__ == "__main__":
    with one_line_errors():
        main()
