"""The shapes benchmark of a model, or of pictures that any program made: score, ceiling and floor.

Legend: N pictures, S side.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ldm.autoencoders import Autoencoder
from ldm.data.draw import draw
from ldm.data.scene import HELD_OUT, SIDE, TRAINED, Scene, draw_scene
from ldm.data.transforms import IMAGE_SUFFIXES, Transform, from_bytes, read_picture, to_bytes
from ldm.evaluation.prompts import SEED, STREAM, Prompt
from ldm.evaluation.reader import read
from ldm.evaluation.score import Score, Verdict, judge, tally
from ldm.pipeline import Steer, TextToImage
from ldm.sampling import Sampling

LOSSLESS = (".png", ".bmp")
AT_ONCE = 64  # pictures that pass through the autoencoder together

Pictures = NDArray[np.uint8]


@dataclass
class Marked:
    """Pictures (N, S, S, 3), what was read in each, and how that was judged."""

    pictures: Pictures
    scenes: list[Scene]
    verdicts: list[Verdict]
    score: Score


def mark(prompts: list[Prompt], pictures: Pictures) -> Marked:
    """Read the pictures (N, S, S, 3) and judge each by its prompt."""
    scenes = read(pictures)
    verdicts = [judge(prompt.statement, scene) for prompt, scene in zip(prompts, scenes, strict=True)]
    return Marked(pictures, scenes, verdicts, tally(prompts, verdicts))


def drawn_by(
    model: TextToImage,
    prompts: Sequence[Prompt | str],
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    precision: str = "fp32",
    progress: Callable[[int], object] | None = None,
    steer: Steer | None = None,
) -> Pictures:
    """What ``model`` draws for the prompts, or other texts, picture i from ``seed`` + i."""
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    drawn = model(texts, seed=seed, sampling=sampling, precision=precision, progress=progress, steer=steer)
    return np.concatenate([to_bytes(image) for image, _ in drawn])  # of (1, 3, S, S) each


def true_pictures(prompts: list[Prompt], size: int = 64, seed: int = SEED) -> Pictures:
    """A picture (N, S, S, 3) for each prompt, in which it is true; what the prompt leaves free is random."""
    pictures = []
    for index, prompt in enumerate(prompts):
        rng = np.random.default_rng([seed, STREAM, 1_000, index])
        stated = {(thing.shape, thing.color) for thing in prompt.statement.things}
        pairs = HELD_OUT if stated & {*HELD_OUT} else TRAINED
        pictures.append(draw(draw_scene(prompt.statement, rng, pairs), size))
    return np.stack(pictures)


@torch.inference_mode()
def through(autoencoder: Autoencoder, pictures: Pictures, noise: float = 0.0) -> Pictures:
    """The pictures (N, S, S, 3) encoded and decoded, with normal noise of std ``noise`` on the latents between."""
    device, generator = autoencoder.mean.device, torch.Generator().manual_seed(SEED)
    images = from_bytes(torch.from_numpy(pictures).permute(0, 3, 1, 2))  # (N, 3, S, S)
    decoded = []
    for part in images.split(AT_ONCE):
        latent = autoencoder.encode(part.to(device))  # (B, C, h, w)
        wrong = noise * torch.randn(latent.shape, generator=generator)
        decoded.append(autoencoder.decode(latent + wrong.to(device)))
    return to_bytes(torch.cat(decoded))


def ceiling(prompts: list[Prompt], autoencoder: Autoencoder, size: int = 64, noise: float = 0.0) -> Score:
    """The score of true pictures that went through ``autoencoder``: what a perfect denoiser would reach.

    With ``noise``, of a denoiser whose latents are wrong by so much; latents have a standard deviation of about 1.
    """
    return mark(prompts, through(autoencoder, true_pictures(prompts, size), noise)).score


def floor(prompts: list[Prompt], scenes: list[Scene]) -> Score | None:
    """The score when each prompt is judged by the scene of another, random one; None for a single prompt."""
    if len(prompts) < 2:
        return None
    others = shuffled(len(prompts))
    return tally(prompts, [judge(prompt.statement, scenes[others[i]]) for i, prompt in enumerate(prompts)])


def shuffled(count: int) -> list[int]:
    """For each of ``count`` the place of another, at random: one round through all, so that none meets itself."""
    order = np.random.default_rng([SEED, STREAM]).permutation(count)
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [others[i] for i in range(count)]


def read_folder(folder: Path, count: int) -> Pictures:
    """The ``count`` pictures of a folder in the order of their names, 2.png before 10.png, as (N, S, S, 3).

    Raises:
        ValueError: there are not as many; one is not exact (PNG, BMP), cannot be read, is no square or of another size
            than the first, or has less than 64 pixels a side.
    """
    paths = _pictures(folder)
    if lossy := [path for path in paths if path.suffix.lower() not in LOSSLESS]:
        raise ValueError(f"{lossy[0]}: its compression smears colours, and would be taken for a fault; save PNG files")
    if len(paths) != count:
        raise ValueError(f"{folder} holds {len(paths)} pictures for {count} prompts; one picture for each is wanted")
    pictures = [np.array(read_picture(path)) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != (pictures[0].shape[0],) * 2 + (3,):
            height, width = picture.shape[:2]
            raise ValueError(f"{path} has {width} x {height} pixels; all must be squares of one size")
        if len(picture) < SIDE:
            raise ValueError(f"{path} has {len(picture)} pixels a side, too few to read; draw at least {SIDE:g}")
    return np.stack(pictures)


def read_reference(folder: Path, size: int) -> Pictures:
    """The pictures in a folder and those below it, each cut to a square in the middle and scaled: (N, size, size, 3).

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    paths = _pictures(folder, below=True)
    if not paths:
        raise ValueError(f"{folder} holds no pictures; {', '.join(IMAGE_SUFFIXES)} are read")
    cut, unused = Transform(size), np.random.default_rng(0)  # nothing of a cut in the middle is random
    return np.concatenate([to_bytes(cut(read_picture(path), unused)[None]) for path in paths])


def _pictures(folder: Path, *, below: bool = False) -> list[Path]:
    """The files of pictures in ``folder``, and in those ``below`` it where asked for, but for txt2img's sheets."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    found = (path for path in folder.glob("**/*" if below else "*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((path for path in found if not path.stem.startswith("grid-")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key by which numbers in paths count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
