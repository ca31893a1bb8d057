"""Show what a first stage makes of pictures and draws by itself, as a grid in one PNG.

reconstructions  rows of pictures, and below each row what comes back
samples          of N(0, I) where the bottleneck is a KL, of the trained prior where it has codes (train_prior.py)
interpolations   a row from each first picture to each second
traversals       a picture with one latent from -3 to 3 of the prior's standard deviations, a row for each of the
                 latents that say most of the run's held-out pictures by their KL
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.bottlenecks import Gaussian
from ldm.autoencoders.codes import decode_codes, map_sizes, quantizers
from ldm.autoencoders.walks import PATHS, informative, traversals
from ldm.cli import DEVICE_HELP, check_seed, check_sides, device_of, one_line_errors
from ldm.data import pictures_of
from ldm.data.loader import first_batches
from ldm.data.transforms import Transform, read_picture
from ldm.files import make_writable, nearest_there
from ldm.folders import first_stage_in, load_autoencoder, load_prior, shipped_model
from ldm.metadata import next_number, save_numbered
from ldm.pictures import above, grid
from ldm.run import Run
from ldm.samplers import ImageNoise

COUNTS = {"reconstructions": 16, "samples": 16, "interpolations": 4, "traversals": 8}
COLUMNS = 8
AT_ONCE = 16  # pictures
REACH = 3.0  # standard deviations of N(0, 1), to either side
MEASURED = 64  # held-out pictures over which a latent's KL is taken


@dataclass(frozen=True)
class Stage:
    """A trained first stage, and what is asked of it."""

    autoencoder: Autoencoder
    run: Run
    prior: Path  # where its prior would be
    args: argparse.Namespace

    def pictures(self, count: int) -> Tensor:
        """The pictures (B, 3, S, S) of --images, or else the first ``count`` held-out ones of the run."""
        if not self.args.images:
            return self.held_out(count)
        image = torch.stack([read(path, self.size) for path in self.args.images])
        return image.to(self.autoencoder.mean.device)

    def held_out(self, count: int) -> Tensor:
        """The first ``count`` held-out pictures (B, 3, S, S) of the run."""
        try:
            data = pictures_of(replace(self.run.data, size=self.size), "val")
        except (ValueError, OSError) as error:
            if self.args.what == "traversals":
                way_out = "what each latent says is measured on them; put them where data.path says"
            else:
                way_out = "give --images"
            raise ValueError(f"the run's own pictures are not here ({error}); {way_out}") from error
        image = torch.cat([batch.image for batch in first_batches(data, AT_ONCE, count)])
        return image.to(self.autoencoder.mean.device)

    @property
    def size(self) -> int:
        """Pixels a side of the pictures."""
        asked: int = self.run.data.size if self.args.size is None else self.args.size
        return asked

    def encode(self, image: Tensor) -> Tensor:
        """The bottleneck's own latents (B, C, h, w), whose prior is N(0, I) where it is a KL."""
        parts = [self.autoencoder.encode(part, tile=self.args.tile) for part in image.split(AT_ONCE)]
        return torch.cat(parts) * self.autoencoder.std + self.autoencoder.mean

    def decode(self, z: Tensor) -> Tensor:
        """The images of such latents."""
        latent = (z - self.autoencoder.mean) / self.autoencoder.std
        return torch.cat([self.autoencoder.decode(part, tile=self.args.tile) for part in latent.split(AT_ONCE)])

    def gaussian(self, wish: str) -> Gaussian:
        if not isinstance(self.autoencoder.bottleneck, Gaussian):
            kind = type(self.autoencoder.bottleneck).__name__
            raise ValueError(f"--what {self.args.what}: a {kind} bottleneck has no {wish}; take one of bottleneck=kl")
        return self.autoencoder.bottleneck


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model, run or autoencoder folder; the shipped model's")
    parser.add_argument("--what", choices=sorted(COUNTS), default="reconstructions", help="reconstructions if left out")
    parser.add_argument("--count", type=int, help="of pictures or rows; 16 and 16, 4 and 8 if left out")
    parser.add_argument("--images", nargs="+", type=Path, metavar="FILE", help="pictures; the run's held-out ones else")
    parser.add_argument("--size", type=int, help="of the pictures, pixels a side; that of the run if left out")
    parser.add_argument("--path", choices=sorted(PATHS), help="of interpolations; slerp for a KL, linear for others")
    parser.add_argument("--seed", type=int, help="of the first sample, 0 if left out; the next count up by 1")
    parser.add_argument("--temperature", type=float, help="of samples, 1 if left out; less is more usual")
    parser.add_argument("--tile", type=int, default=0, help="pixels a side of what is coded at once; 0 is all")
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    parser.add_argument("--outdir", "--out", type=Path, default=Path("outputs"), help="folder; outputs if left out")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse()
    if args.images and args.what == "samples":
        raise ValueError("--images are not for --what samples, which come from the prior; leave them out")
    if args.images and args.count is not None and args.what != "traversals":
        raise ValueError(f"--images are shown as they are given; leave out --count {args.count}")
    if args.images and args.what == "interpolations" and len(args.images) % 2:
        raise ValueError(
            f"--images: {len(args.images)} pictures make no pairs, and --what interpolations goes from each first to "
            "each second; give an even number of them"
        )
    if args.images and args.what == "traversals" and len(args.images) > 1:
        raise ValueError(f"--images: --what traversals is of one picture, not of {len(args.images)}; give one")
    for option, of in (("path", "interpolations"), ("temperature", "samples"), ("seed", "samples")):
        if getattr(args, option) is not None and args.what != of:
            raise ValueError(f"--{option} is of --what {of}; leave it out with --what {args.what}")
    args.temperature = 1.0 if args.temperature is None else args.temperature
    args.seed = 0 if args.seed is None else args.seed
    args.count = COUNTS[args.what] if args.count is None else args.count
    if args.count < 1:
        raise ValueError(f"--count {args.count} is not at least 1")
    if args.size is not None and args.size < 1:
        raise ValueError(f"--size {args.size} is not at least 1; leave it out for that of the run")
    check_seed(args.seed, args.count)
    make_writable(nearest_there(args.outdir))  # the folder itself is made when there is something for it
    folder = first_stage_in(args.model or shipped_model())
    autoencoder, run = load_autoencoder(folder, device_of(args.device))
    beside = [place / "prior" for place in (folder.parent, folder.parent.parent)]  # of a run, of a run's model
    if args.tile:
        autoencoder.tile_side(args.tile)
    stage = Stage(autoencoder, run, next((path for path in beside if path.is_dir()), beside[0]), args)
    check_sides(stage.size, autoencoder.factor)
    show = {
        "reconstructions": reconstructions,
        "samples": samples,
        "interpolations": interpolations,
        "traversals": traversed,
    }[args.what]
    sheet = grid(torch.cat([row.cpu() for row in show(stage)]), columns=COLUMNS)
    args.outdir.mkdir(parents=True, exist_ok=True)
    path, _ = save_numbered(sheet, args.outdir, next_number(args.outdir))
    print(f"{args.what}: {path}")


def reconstructions(stage: Stage) -> Iterator[Tensor]:
    """A row of pictures, a row of what comes back, and so on."""
    image = stage.pictures(stage.args.count)
    yield above(image, stage.decode(stage.encode(image)), COLUMNS)


def samples(stage: Stage) -> Iterator[Tensor]:
    """Pictures of the seeds that count up from the first."""
    args, size = stage.args, stage.size // stage.autoencoder.factor
    seeds = list(range(args.seed, args.seed + args.count))
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature {args.temperature} is not a finite number of at least 0; try 0.8")
    if not quantizers(stage.autoencoder.bottleneck):
        stage.gaussian("prior to draw from")
        for i in range(0, len(seeds), AT_ONCE):
            shape = (stage.autoencoder.channels, size, size)
            noise = ImageNoise(seeds[i : i + AT_ONCE], shape, stage.autoencoder.mean.device)
            yield stage.decode(args.temperature * noise())
        return
    if not stage.prior.is_dir():
        raise ValueError(f"{stage.prior} is not there: train a prior of the codes with scripts/train_prior.py")
    prior = load_prior(stage.prior, stage.autoencoder)
    sizes = map_sizes(stage.autoencoder.bottleneck, size, size)
    for i in range(0, len(seeds), AT_ONCE):
        maps = prior.draw(sizes, seeds[i : i + AT_ONCE], temperature=args.temperature)
        yield decode_codes(stage.autoencoder, maps, tile=args.tile)


def interpolations(stage: Stage) -> Iterator[Tensor]:
    """Rows of steps along the way from one picture's latent to another's."""
    z = stage.encode(stage.pictures(2 * stage.args.count))
    if len(z) < 2:
        raise ValueError("one held-out picture has none to go to; give --images, two or more")
    way = stage.args.path or ("slerp" if isinstance(stage.autoencoder.bottleneck, Gaussian) else "linear")
    print(f"along {'an arc' if way == 'slerp' else 'a line'} ({way})")
    for a, b in zip(z[0::2].split(1), z[1::2].split(1), strict=False):
        yield stage.decode(torch.cat([PATHS[way](a, b, i / (COLUMNS - 1)) for i in range(COLUMNS)]))


def traversed(stage: Stage) -> Iterator[Tensor]:
    """Rows of one picture with one latent changed, the most informative first."""
    bottleneck = stage.gaussian("KL to find its informative latents by")
    held_out = stage.held_out(MEASURED)
    shown = stage.pictures(1) if stage.args.images else held_out[:1]
    h = torch.cat([stage.autoencoder.features(part, tile=stage.args.tile) for part in held_out.split(AT_ONCE)])
    latents = informative(bottleneck, h, stage.args.count)
    for number, latent in enumerate(latents, start=1):
        where = f"channel {latent.channel}, row {latent.row}, column {latent.column}"
        print(f"{number:3}: {where}: {latent.kl:.2f} nats a picture")
    yield stage.decode(traversals(stage.encode(shown), latents, torch.linspace(-REACH, REACH, COLUMNS)))


def read(path: Path, size: int) -> Tensor:
    """The picture (3, S, S) in [-1, 1]: a square of its middle, scaled."""
    return Transform(size)(read_picture(path), np.random.default_rng(0))


if __name__ == "__main__":
    with one_line_errors():
        main()
