"""Images that say how they were made: numbered files, and settings inside each PNG that draw it again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.config import from_dict
from ldm.pipeline import DTYPES
from ldm.sampling import Sampling

CHUNK = "ldm"  # the PNG text chunk with the settings as JSON; "parameters" holds them as A1111's web UI writes them


@dataclass(frozen=True)
class Settings:
    """All that it takes to draw one image again, given the model."""

    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    sampling: dict[str, Any]  # as ``ldm.config.to_dict`` gives it
    precision: str
    model: str  # the model folder's name
    model_hash: str  # of the model folder's manifest
    steering: str = ""  # what else steered it, in words
    enlarger: str = ""  # what drew it again, larger, in words
    factor: int = 1  # how much larger than height and width

    def parameters(self) -> str:
        """The settings in the text form of A1111's web UI, which image browsers read."""
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        sampler = self.sampling["sampler"]
        width, height = self.width * self.factor, self.height * self.factor
        eta = f", Eta: {sampler['eta']:g}" if "eta" in sampler else ""
        return (
            f"{self.prompt}{negative}\nSteps: {self.sampling['sample']['steps']}, Sampler: {sampler['name'].upper()}, "
            f"CFG scale: {self.sampling['guidance']['scale']:g}, Seed: {self.seed}, Size: {width}x{height}, "
            f"Model hash: {self.model_hash}, Model: {self.model}{eta}"
        )


def save_image(image: Image.Image, settings: Settings, folder: Path, number: int) -> tuple[Path, int]:
    """Write ``image`` with its settings as ``save_numbered`` does; returns the path and the number."""
    info = PngInfo()
    info.add_itxt("parameters", settings.parameters())
    info.add_itxt(CHUNK, json.dumps(asdict(settings), ensure_ascii=False))
    return save_numbered(image, folder, number, info)


def save_numbered(image: Image.Image, folder: Path, number: int, info: PngInfo | None = None) -> tuple[Path, int]:
    """Write ``image`` under the first free number from ``number`` on; returns the path and that number.

    The file is made exclusively, so an image that another program writes meanwhile is not overwritten.
    """
    while True:
        path = folder / f"{number:05d}.png"
        try:
            file = path.open("xb")
        except FileExistsError:
            number += 1
            continue
        try:
            with file:
                image.save(file, format="PNG", pnginfo=info)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, number


def next_number(folder: Path) -> int:
    """One more than the highest number among the folder's images."""
    numbers = [int(path.stem) for path in folder.glob("*.png") if path.stem.isascii() and path.stem.isdigit()]
    return max(numbers, default=-1) + 1


def read_settings(path: Path) -> Settings:
    """The settings inside an image that this program wrote.

    Raises:
        ValueError: the file is no image, or holds no such settings.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:  # no other reader is let near a stranger's file
            image.load()  # text chunks may follow the pixels
            text = getattr(image, "text", {}).get(CHUNK)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable PNG image ({error})") from error
    if text is None:
        raise ValueError(f"{path} holds no settings of this program; only images that txt2img.py wrote do")
    try:
        return _checked(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the settings in it are damaged ({error})") from error


def _checked(values: dict[str, Any]) -> Settings:
    settings = Settings(**values)
    for name, kind in get_type_hints(Settings).items():
        value = getattr(settings, name)
        if not isinstance(value, get_origin(kind) or kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    if settings.precision not in DTYPES:
        raise ValueError(f"precision is {settings.precision!r}, none of {', '.join(sorted(DTYPES))}")
    from_dict(Sampling, settings.sampling)
    return settings
