"""Text to image: the one object that ``txt2img.py``, the training loop's samples and any evaluation use.

Legend: B images of one batch, C h w latent, f the autoencoder's factor.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.data.latents import Latents
from ldm.diffusion.grids import uniform
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.process import ProcessConfig
from ldm.diffusion.targets import TARGETS
from ldm.samplers import SAMPLERS, ImageNoise
from ldm.types import Batch, Condition, Noise, Sampler, Schedule, TextEncoder

MAX_SIDE = 8_192  # pixels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class SampleConfig:
    """How images are drawn where nothing else is asked for."""

    sampler: str = "ddim"
    steps: int = 50  # levels of the grid
    scale: float = 4.0  # classifier-free guidance; 1 is none
    eta: float = 0.0  # ddim only: 0 deterministic, 1 is ddpm
    batch: int = 16  # images drawn at once

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler '{self.sampler}' is not one of {', '.join(SAMPLERS)}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps {self.steps} and batch {self.batch} must be at least 1")
        if not abs(self.scale) < float("inf"):
            raise ValueError(f"scale {self.scale} is not a finite number; try scale=4")
        self.build()

    def build(self) -> Sampler:
        kind = SAMPLERS[self.sampler]
        return kind(eta=self.eta) if self.sampler == "ddim" else kind()


@dataclass
class TextToImage:
    """A denoiser with all that it takes to draw: call it with prompts."""

    denoiser: nn.Module
    autoencoder: Autoencoder
    text: TextEncoder
    schedule: Schedule
    process: ProcessConfig
    sampling: SampleConfig = field(default_factory=SampleConfig)
    size: tuple[int, int] = (64, 64)  # height and width where none are asked for, pixels

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> "TextToImage":
        """The model in ``folder``, ready on ``device``. Needs nothing but the folder."""
        from ldm.folders import load_model  # which imports this module

        return load_model(Path(folder), device)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.inference_mode()
    def __call__(
        self,
        prompts: list[str],
        *,
        negative: str = "",
        seed: int = 0,
        size: tuple[int, int] | None = None,
        sampling: SampleConfig | None = None,
        precision: str = "fp32",
        progress: Any = None,
    ) -> Iterator[tuple[Tensor, int]]:
        """One image (1, 3, H, W) in [-1, 1] on the CPU for each prompt, with its seed, in order.

        Image i is drawn from the seed ``seed`` + i alone: it does not depend on the batch it is made in. ``negative``
        takes the empty prompt's place in guidance. ``progress`` is called after each denoising step with the number of
        images that it moved.

        Raises:
            ValueError: the size does not fit the autoencoder.
        """
        sampling = sampling or self.sampling
        latent_size = self.latent_size(size or self.size)
        shape = (self.autoencoder.channels, *latent_size)
        null = self._text([negative])
        for first in range(0, len(prompts), sampling.batch):
            part = prompts[first : first + sampling.batch]
            seeds = [seed + first + i for i in range(len(part))]
            noise = ImageNoise(seeds, shape, self.device)
            autocast = torch.autocast(self.device.type, DTYPES[precision]) if precision != "fp32" else nullcontext()
            with autocast:
                latent = self._sample(self._text(part), null.repeat(len(part)), noise, sampling, progress)
                images = self.autoencoder.decode(latent).float().cpu()
            yield from zip(images.split(1), seeds, strict=True)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Latents:
        """The batch as the denoiser learns it: latents (B, C, h, w) with their text, on its device."""
        latent = self.autoencoder.encode(batch.image.to(self.device))
        return Latents(latent, self._text(batch.captions))

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent of an image (height, width), or a ValueError that names a size that fits."""
        factor = self.autoencoder.factor * getattr(self.denoiser, "multiple", 1)
        for name, side in zip(("height", "width"), size, strict=True):
            if not 0 < side <= MAX_SIDE or side % factor:
                near = min(max(factor, round(side / factor) * factor), MAX_SIDE // factor * factor)
                raise ValueError(f"{name} {side} is not a multiple of {factor} up to {MAX_SIDE}; try {near}")
        return size[0] // self.autoencoder.factor, size[1] // self.autoencoder.factor

    def _text(self, prompts: list[str]) -> Condition:
        return self.text(prompts).to(self.device)

    def _sample(self, cond: Condition, null: Condition, noise: Noise, sampling: SampleConfig, progress: Any) -> Tensor:
        denoise = classifier_free(self.denoiser, TARGETS[self.process.target], cond, null, sampling.scale)
        grid = uniform(self.schedule, sampling.steps)
        if progress is None:
            return sampling.build()(denoise, noise() * grid[0].sigma, grid, noise)

        def counted(x: Tensor, level: Any) -> Any:
            said = denoise(x, level)
            progress(len(x))
            return said

        return sampling.build()(counted, noise() * grid[0].sigma, grid, noise)
