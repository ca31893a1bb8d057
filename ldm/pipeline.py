"""Text to image: the one object that ``txt2img.py``, the training loop's samples and any evaluation use.

Legend: B images of one batch, C h w latent, f the autoencoder's factor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.data.latents import Latents
from ldm.diffusion.guidance import GuidanceConfig, classifier_free, clipped
from ldm.diffusion.process import Process
from ldm.samplers import ImageNoise
from ldm.sampling import Sampling
from ldm.types import Batch, Condition, Denoise, Grid, Level, Noise, Prediction, Sampler, TextEncoder
from ldm.unclip import Unclip

MAX_SIDE = 8_192  # pixels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Steer = Callable[[Denoise, list[str]], Denoise]  # what is denoised for these prompts -> what is instead
Walk = Callable[[Sampler, Denoise, Grid, Noise], Tensor]


def from_noise(sampler: Sampler, denoise: Denoise, grid: Grid, noise: Noise) -> Tensor:
    """Clean latents of ``sampler``, from nothing: x at the first level is drawn from N(0, alpha^2 + sigma^2).

    That is what data of unit variance would have there, and N(0, I) where the variance is preserved (DDPM,
    arXiv:2006.11239, alg. 2, line 1), also where a grid begins with some signal left.
    """
    return sampler(denoise, noise() * grid[0].norm, grid, noise)


@dataclass
class TextToImage:
    """A denoiser with all that it takes to draw: call it with prompts."""

    denoiser: nn.Module
    autoencoder: Autoencoder
    text: TextEncoder
    process: Process
    sampling: Sampling = field(default_factory=Sampling)
    size: tuple[int, int] = (64, 64)  # height and width where none are asked for, pixels
    unclip: Unclip | None = None  # where the denoiser is told CLIP's embedding of the picture

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
        sampling: Sampling | None = None,
        precision: str = "fp32",
        progress: Any = None,
        steer: Steer | None = None,
        walk: Walk = from_noise,
    ) -> Iterator[tuple[Tensor, int]]:
        """One image (1, 3, H, W) in [-1, 1] on the CPU for each prompt, with its seed, in order.

        Image i is drawn from the seed ``seed`` + i alone: it does not depend on the batch it is made in. ``negative``
        takes the empty prompt's place in guidance. ``progress`` is called after each denoising step with the number of
        images that it moved. ``steer`` changes what the denoiser says, to a wish besides the prompt (``ldm.steering``);
        ``walk`` is how the sampler is led from noise, or from a picture, to clean latents (``ldm.editing``).

        Raises:
            ValueError: the size does not fit the autoencoder.
        """
        sampling = sampling or self.sampling
        latent_size = self.latent_size(size or self.size)
        if sampling.sample.tile:
            self.autoencoder.tile_side(sampling.sample.tile)  # refuses a tile that is too small before drawing
        shape = (self.autoencoder.channels, *latent_size)
        null = self.condition([negative])
        for first in range(0, len(prompts), sampling.batch):
            part = prompts[first : first + sampling.batch]
            seeds = [seed + first + i for i in range(len(part))]
            noise = ImageNoise(seeds, shape, self.device)
            with self.autocast(precision):
                denoise = self.denoise(part, null.repeat(len(part)), sampling.guidance, seeds)
                if sampling.sample.clip:
                    denoise = clipped(denoise, sampling.sample.clip)
                if steer is not None:
                    denoise = steer(denoise, part)
                grid = sampling.grid(self.process.schedule, sampling.sample.steps)
                latent = walk(sampling.sampler, _counted(denoise, grid, progress), grid, noise)
                images = self.autoencoder.decode(latent, tile=sampling.sample.tile).float().cpu()
            yield from zip(images.split(1), seeds, strict=True)

    @contextmanager
    def autocast(self, precision: str) -> Iterator[None]:
        """Within, networks multiply in ``precision``, one of ``DTYPES``, which the denoiser's weights are meanwhile in.

        Autocast alone would cast them anew at every step.
        """
        if precision == "fp32":
            yield
            return
        with torch.autocast(self.device.type, DTYPES[precision]), _multiplying_in(DTYPES[precision], self.denoiser):
            yield

    @torch.no_grad()
    def encode(self, batch: Batch) -> Latents:
        """The batch as the denoiser learns it: latents (B, C, h, w) with their text, on its device."""
        latent = self.autoencoder.encode(batch.image.to(self.device))
        if self.unclip is None:
            return Latents(latent, self.condition(batch.captions))
        embeddings = self.unclip.of_pictures(batch.image.to(self.device))
        return Latents(latent, replace(self.text(batch.captions).to(self.device), pooled=embeddings))

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent of an image (height, width), or a ValueError that names a size that fits."""
        factor = self.autoencoder.factor * getattr(self.denoiser, "multiple", 1)
        for name, side in zip(("height", "width"), size, strict=True):
            if not 0 < side <= MAX_SIDE or side % factor:
                near = min(max(factor, round(side / factor) * factor), MAX_SIDE // factor * factor)
                raise ValueError(f"{name} {side} is not a multiple of {factor} up to {MAX_SIDE}; try {near}")
        return size[0] // self.autoencoder.factor, size[1] // self.autoencoder.factor

    def condition(self, prompts: list[str], seeds: list[int] | None = None) -> Condition:
        """What the text encoder says of the B ``prompts``: a ``Condition`` of B rows on the model's device.

        With unCLIP the pooled state is an embedding of the picture instead, drawn from the text (``Unclip.told``).
        """
        cond = self.text(prompts).to(self.device)
        return cond if self.unclip is None else self.unclip.told(prompts, cond, self.text([""]).to(self.device), seeds)

    def denoise(
        self, prompts: list[str], null: Condition, guidance: GuidanceConfig, seeds: list[int] | None = None
    ) -> Denoise:
        """The denoiser as ``prompts`` guide it; ``null`` holds the empty or the negative prompt, a row for each."""
        return classifier_free(self.denoiser, self.process, self.condition(prompts, seeds), null, guidance)


def _counted(denoise: Denoise, grid: Grid, progress: Any) -> Denoise:
    """``denoise`` that calls ``progress`` with the number of images as each level of ``grid`` is reached.

    Some samplers look at a level twice, or between two.
    """
    if progress is None:
        return denoise
    reached = 0

    def counted(x: Tensor, level: Level) -> Prediction:
        nonlocal reached
        said = denoise(x, level)
        if reached < len(grid) - 1 and float(level.t) <= float(grid[reached].t):
            reached += 1
            progress(len(x))
        return said

    return counted


@contextmanager
def _multiplying_in(dtype: torch.dtype, network: nn.Module) -> Iterator[None]:
    """Within, others in ``dtype`` stand in for the weights and biases that ``network`` multiplies by.

    Those are left as they are, for they may be in training: DDP would lose its hold of one whose data is exchanged.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    own = [(layer, name, weight) for layer in layers for name, weight in layer.named_parameters(recurse=False)]
    try:
        with torch.inference_mode(False):  # else autograd would refuse them
            for layer, name, weight in own:
                setattr(layer, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
        yield
    finally:
        for layer, name, weight in own:
            setattr(layer, name, weight)
