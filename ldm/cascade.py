"""Cascades: one model draws a small picture, another a large one that is told of it.

Ho et al. 2021 (arXiv:2106.15282). The second is any model of large pictures whose U-Net a ControlNet tells of the small
one, with noise on it: what the first has wrong is drawn anew rather than copied.

Legend: B pictures of a batch, h w small size, H W large size, k how much larger.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.hints import HINTS
from ldm.denoisers.control import ControlConfig, Controlled, ControlNet
from ldm.folders import load_control, unet_of
from ldm.pipeline import TextToImage
from ldm.samplers import ImageNoise
from ldm.sampling import Sampling

# By what an enlarger moves a picture's seed for its own draws, of the latent and (times 2) of the hint's noise; it is
# times more at each further place in a cascade. Seeds are told apart by their low 32 bits alone: torch's generator on a
# CPU takes no others.
APART = 2**28
PLACES = 7


@dataclass
class Enlarger:
    """Draws large pictures (1, 3, H, W) that a ControlNet tells of small ones (1, 3, h, w): H = k h, W = k w."""

    model: TextToImage
    control: ControlNet
    config: ControlConfig
    noise_level: float = 0.0  # s, how much noise is put on the small picture, and the network told
    place: int = 1  # among the enlargers of a cascade: each draws noise of its own

    def __post_init__(self) -> None:
        if self.factor == 1:
            smaller = ", ".join(name for name, hint in HINTS.items() if hint.factor > 1)
            raise ValueError(f"a ControlNet of {self.config.hint} enlarges nothing; give one of {smaller}")
        if not 0 <= self.noise_level <= self.config.noise_level:
            raise ValueError(
                f"noise level {self.noise_level} on what is enlarged: this ControlNet has learned from 0 to "
                f"{self.config.noise_level:g}"
            )
        if not 1 <= self.place <= PLACES:
            raise ValueError(f"place {self.place} in a cascade is not one of 1 to {PLACES}")
        if self.model.unclip is not None:
            raise ValueError(
                "the model that enlarges would draw an embedding of its own, unlike the small picture's; give one that "
                "goes without CLIP's embedding (unclip.decoder=false)"
            )

    @staticmethod
    def load(control: Path, model: TextToImage, noise_level: float | None = None) -> "Enlarger":
        """The ControlNet in the folder ``control`` with the ``model`` that it is of; half of its noise if left out.

        Raises:
            BrokenFile: a file is missing or damaged.
            ValueError: they do not go together, it follows no smaller picture, or has not learned so much noise.
        """
        network, run = load_control(control, model)
        half = run.control.noise_level / 2
        return Enlarger(model, network, run.control, half if noise_level is None else noise_level)

    @property
    def factor(self) -> int:
        """k."""
        return HINTS[self.config.hint].factor

    def size(self, small: tuple[int, int]) -> tuple[int, int]:
        """(H, W) for a small picture of (h, w); ValueError where the model draws none of that size."""
        size = (small[0] * self.factor, small[1] * self.factor)
        try:
            self.model.latent_size(size)
        except ValueError as error:
            raise ValueError(f"a picture of {small[1]} x {small[0]}, {self.factor} times as large: {error}") from error
        return size

    def shown(self, small: Tensor, seeds: list[int]) -> Tensor:
        """What the ControlNet is told of pictures ``small`` (B, 3, h, w), with noise of their ``seeds``."""
        count, channels, height, width = small.shape
        noise = ImageNoise([seed + 2 * self.place * APART for seed in seeds], (channels, height, width))()
        noise_level = torch.full((count,), self.noise_level)
        return self.config.shown(small, self.size((height, width)), noise_level, noise).to(self.model.device)

    def __call__(
        self,
        small: Iterable[tuple[Tensor, int]],
        prompts: list[str],
        *,
        negative: str = "",
        sampling: Sampling | None = None,
        precision: str = "fp32",
        progress: Any = None,
    ) -> Iterator[tuple[Tensor, int]]:
        """One image (1, 3, H, W) for each prompt, with the seed of its small picture.

        ``small`` are such pictures with their seeds as ``TextToImage`` draws them: of one size, with seeds that count
        up. They are taken as they come, a batch at a time.

        Raises:
            ValueError: there are not as many as prompts, or the model draws none of their size.
        """
        sampling, pictures = sampling or self.model.sampling, iter(small)
        for first in range(0, len(prompts), sampling.batch):
            asked = prompts[first : first + sampling.batch]
            part = [*islice(pictures, len(asked))]
            if len(part) < len(asked):
                raise ValueError(f"{first + len(part)} pictures for {len(prompts)} prompts; give one for each")
            images, seeds = zip(*part, strict=True)
            assert [*seeds] == [*range(seeds[0], seeds[0] + len(seeds))]
            together = torch.cat(images)  # (B, 3, h, w)
            hint = self.shown(together, [*seeds])  # (B, K, H, W)
            drawn = replace(self.model, denoiser=Controlled(unet_of(self.model), self.control, hint))(
                asked,
                negative=negative,
                seed=seeds[0] + (2 * self.place - 1) * APART,
                size=self.size((together.shape[2], together.shape[3])),
                sampling=sampling,
                precision=precision,
                progress=progress,
            )
            yield from zip((image for image, _ in drawn), seeds, strict=True)
        if next(pictures, None) is not None:
            raise ValueError(f"there are more pictures than the {len(prompts)} prompts; give a prompt for each")
