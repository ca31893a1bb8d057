"""From stored bytes to a training sample: what all the data sets made of picture files have in common.

A picture is decoded to upright RGB, cut to a square and scaled; its captions are cleaned and one is picked; what cannot
be read is counted and passed over. Everything random is drawn from one generator seeded with (seed, epoch, index).

Legend: B batch, H W height and width, S side of the square.
"""

import io
import json
import logging
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

log = logging.getLogger(__name__)

VERSION = 2  # rises when the same file would give another tensor, or samples come in another order
CROPS = ("center", "random")
SPLITS = ("train", "val")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class BrokenSample(ValueError):
    """A stored sample that cannot be used: corrupt, cut off, of another format, too large to decode, or captionless."""


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, upright.

    EXIF rotation is applied; transparency is laid over white; 16-bit grey ("I;16", and "I", which is taken as 16-bit)
    is divided by 257, so that full white stays white; CMYK and the other modes go through Pillow. Of an animation the
    current frame is taken; colour profiles are ignored.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64).clip(0, 65_535) / 257  # (H, W)
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(source: Path | bytes) -> Image.Image:
    """The stored picture as upright RGB (see ``to_rgb``); raises BrokenSample where there is none to be had."""
    with opened_image(source) as image:
        return to_rgb(image)


@contextmanager
def opened_image(source: Path | bytes) -> Iterator[Image.Image]:
    """The stored picture as Pillow has it; what fails until it is closed again is raised as BrokenSample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # the list of formats keeps out those whose readers start other programs (EPS runs Ghostscript)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:  # its own words name a file again, or an address in memory
        raise BrokenSample(f"not one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's readers raise nearly anything on corrupt bytes
        raise BrokenSample(f"{type(error).__name__}: {error}") from error


def to_tensor(image: Image.Image | np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """An 8-bit RGB picture (H, W, 3) as float32 (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image))  # (H, W, 3)
    return from_bytes(rearrange(pixels, "h w c -> c h w").contiguous())


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 values of any shape as float32 in [-1, 1]; ``to_bytes`` gives them back."""
    return pixels.float() / 127.5 - 1


def read_picture(path: Path) -> Image.Image:
    """The RGB picture in a file that a user has named.

    Raises:
        ValueError: it is none, or damaged.
    """
    try:
        return read_image(path)
    except BrokenSample as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def to_bytes(x: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images (B, 3, H, W), clamped to [-1, 1] and rounded to 8 bits, as (B, H, W, 3)."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "b c h w -> b h w c").cpu().numpy()


def to_images(x: Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W), clamped to [-1, 1] and rounded to 8 bits, as B pictures."""
    return [Image.fromarray(array) for array in to_bytes(x)]


@dataclass(frozen=True)
class Transform:
    """Cuts a square as wide as the picture's shorter side, scales it to ``size`` (Lanczos), and perhaps mirrors it."""

    size: int
    crop: str = "center"
    flip: bool = False

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """An RGB ``image`` as float32 (3, S, S) in [-1, 1]; ``rng`` is drawn from twice, whatever the settings."""
        across, mirrored = rng.random(2)
        where = across if self.crop == "random" else 0.5
        side = min(image.size)
        left, top = (int(where * (length - side + 1)) for length in image.size)
        # cut before scaling: a picture of 1 x 50,000 pixels scaled first would not fit in memory
        box = (left, top, left + side, top + side)
        square = image.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box)
        return to_tensor(ImageOps.mirror(square) if self.flip and mirrored < 0.5 else square)


@dataclass
class ImageOptions:
    """What every data set of picture files can be asked for."""

    size: int = 256  # pixels, the side of the square images
    crop: str = "center"  # "center" or "random", where the square is cut in training; validation always cuts the centre
    flip: bool = False  # mirror half of the training images; off, because captions may say left or right
    seed: int = 0  # of crops, flips and the choice among several captions
    max_broken: float = 0.1  # share of the samples read that may be unreadable before the run stops

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ValueError(f"size {self.size} is not between 8 and 4096 pixels; try size=256")
        if self.crop not in CROPS:
            raise ValueError(f"crop '{self.crop}' is not known; try crop={' or crop='.join(CROPS)}")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; try seed={-self.seed}")
        if not 0 <= self.max_broken < 1:
            raise ValueError(f"max_broken {self.max_broken} is not a share in [0, 1); try max_broken=0.1")

    def transform(self, split: str) -> Transform:
        """The transform of ``split``: as configured for "train", centred and never mirrored for "val"."""
        if split not in SPLITS:
            raise ValueError(f"split '{split}' is not known; try {' or '.join(SPLITS)}")
        return Transform(self.size, self.crop, self.flip) if split == "train" else Transform(self.size)


def name_hash(name: str) -> int:
    """A 64-bit number that depends on ``name`` alone, the same in every process."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def clean_captions(text: bytes | str) -> list[str]:
    """The captions in ``text``, one a line, without empty ones.

    A byte order mark, bytes that are not UTF-8 and control characters are dropped; runs of white space become a space.
    """
    if isinstance(text, bytes):
        text = text.decode(encoding_of(text), errors="ignore")
    lines = (" ".join("".join(c for c in line if c.isprintable() or c.isspace()).split()) for line in text.splitlines())
    return [line for line in lines if line]


def encoding_of(text: bytes) -> str:
    """The name of the encoding that a caption's bytes are read in: UTF-16 where its mark says so, or else UTF-8."""
    return "utf-16" if text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"


def captions_of(node: object) -> list[str]:
    """The cleaned captions of a JSON object: a string, or a list of strings, under "caption" or "text"."""
    value = (node.get("caption") or node.get("text")) if isinstance(node, dict) else None
    texts = value if isinstance(value, list) else [value]
    return [caption for text in texts if isinstance(text, str) for caption in clean_captions(text)]


def parse_captions(data: bytes, kind: str) -> list[str]:
    """The captions in a "txt" or "json" member of an archive; raises BrokenSample where there are none."""
    try:
        captions = clean_captions(data) if kind == "txt" else captions_of(json.loads(data))
    except (ValueError, RecursionError) as error:  # the latter from JSON that is nested too deep
        raise BrokenSample(f"its {kind} is not readable: {error}") from error
    if not captions:
        raise BrokenSample(f"no caption in its {kind}")
    return captions


def leads_out(name: str) -> bool:
    """Whether ``name`` is absolute or climbs out of its folder by ``..``."""
    path = PureWindowsPath(name)  # reads both kinds of slash
    return bool(path.anchor) or ".." in path.parts


def refuse_outside(name: str, where: Path | str) -> None:
    """Raise ValueError where ``name``, an entry of ``where``, is absolute or climbs out of its folder by ``..``."""
    if leads_out(name):
        raise ValueError(f"{where}: entry '{name}' leads out of the data set; rename or remove it")


@dataclass
class Tally:
    """How many ``what`` were read and how many of them were broken, in this process."""

    what: str
    max_broken: float  # share
    floor: int = 100  # a share is taken of at least so many, so that one early fault is not all there is
    read: int = 0
    broken: int = 0

    def count_broken(self, name: str, reason: Exception | str) -> None:
        """Count a broken one and go on; ValueError where they have become too many. The first is named in a warning."""
        self.read += 1
        self.broken += 1
        if self.broken > self.max_broken * max(self.read, self.floor):
            raise ValueError(
                f"{self.broken} of {self.read} {self.what} are broken, more than max_broken={self.max_broken}; "
                f"the last is {name} ({reason})"
            )
        if self.broken == 1:
            log.warning("%s cannot be used (%s); broken %s are passed over and counted", name, reason, self.what)
