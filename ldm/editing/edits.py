"""Edits of pictures for ``TextToImage``: each a ``Walk`` of its sampler, a ``Steer`` of its denoiser, or both.

    model([prompt], walk=varied(model, image, 0.6))
    model([prompt], walk=reworded(model, image, caption, 0.7))
    steer, walk = filled(model, image, mask, ResamplingConfig())
    model([prompt], steer=steer, walk=walk)
    model([prompt], steer=restored(model, operator, y))
    resembling(model, image)([prompt])

Legend: H W image size, f the autoencoder's factor, m number of measurements.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ldm.editing.image_to_image import check_strength, image_to_image
from ldm.editing.inpainting import keep_known, latent_mask, without_hole
from ldm.editing.inversion import reword
from ldm.editing.operators import Operator
from ldm.editing.posterior import ddnm, dps
from ldm.editing.resampling import ResamplingConfig
from ldm.pipeline import Steer, TextToImage, Walk, from_noise
from ldm.types import Batch, Denoise, Grid, Noise, Sampler


def varied(model: TextToImage, image: Tensor, strength: float) -> Walk:
    """A walk to pictures like ``image`` (1, 3, H, W) in [-1, 1]; ``strength`` 0 keeps it, 1 forgets it."""
    check_strength(strength)
    latent = _encoded(model, image)

    def walk(sampler: Sampler, denoise: Denoise, grid: Grid, noise: Noise) -> Tensor:
        return image_to_image(denoise, sampler, grid, latent, strength, noise)

    return walk


def reworded(model: TextToImage, image: Tensor, caption: str, strength: float) -> Walk:
    """A walk to ``image`` (1, 3, H, W) in [-1, 1] with other words than ``caption``, which says what it shows.

    It takes steps of ``ddim`` in place of the model's sampler. ``strength`` is how far towards noise it goes back: with
    0 the picture stays, and the higher it is the more the words may move.
    """
    check_strength(strength)
    latent, told = model.encode(Batch(image, [caption]))

    def walk(sampler: Sampler, denoise: Denoise, grid: Grid, noise: Noise) -> Tensor:
        shown = model.process.denoiser(model.denoiser, told)
        return reword(denoise, shown, grid, latent, strength=strength, noise=noise)

    return walk


def filled(
    model: TextToImage, image: Tensor, mask: Tensor, resampling: ResamplingConfig | None = None
) -> tuple[Steer, Walk]:
    """How ``image`` (1, 3, H, W) is drawn anew where ``mask`` (1, 1, H, W) is 1, with what is around it.

    With ``resampling`` that takes the place of the model's sampler and is given more time to make both fit. What
    ``image`` shows where the mask is above 0 has no say.
    """
    latent = _encoded(model, without_hole(image, mask))
    free = latent_mask(mask, model.autoencoder.factor).to(model.device)

    def walk(sampler: Sampler, denoise: Denoise, grid: Grid, noise: Noise) -> Tensor:
        return from_noise(resampling or sampler, denoise, grid, noise)

    return lambda denoise, prompts: keep_known(denoise, latent, free), walk


def restored(model: TextToImage, operator: Operator, y: Tensor, *, passes: int = 3) -> Steer:
    """Towards pictures of which ``operator`` measures ``y`` (1, ...), free of noise: ``ddnm`` on the decoded image."""
    y, autoencoder = y.to(model.device), model.autoencoder

    def decode(latent: Tensor) -> Tensor:
        return autoencoder.decode(latent).float()

    def encode(image: Tensor) -> Tensor:
        return autoencoder.encode(image.clamp(-1, 1))

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        each = y.expand(len(prompts), *y.shape[1:])
        return ddnm(denoise, operator, each, decode=decode, encode=encode, passes=passes)

    return steer


def followed(model: TextToImage, operator: Operator, y: Tensor, *, zeta: float = 1.0, std: float = 0.0) -> Steer:
    """The same by the gradient through denoiser and decoder, ``dps``, which allows for noise of ``std`` in ``y``."""
    y = y.to(model.device)

    def measure(latent: Tensor) -> Tensor:
        image = model.autoencoder.decode(latent, clamp=False).float()
        with torch.autocast(model.device.type, enabled=False):
            return operator.apply(image)

    return lambda denoise, prompts: dps(denoise, measure, y.expand(len(prompts), *y.shape[1:]), zeta=zeta, std=std)


def resembling(model: TextToImage, image: Tensor) -> TextToImage:
    """``model`` that draws pictures with CLIP's embedding of ``image`` (1, 3, H, W) in [-1, 1], whatever their prompt.

    The variations of unCLIP (Ramesh et al. 2022, arXiv:2204.06125, Sec. 3.1).

    Raises:
        ValueError: the model's denoiser is told no embedding, or the picture is of another size than CLIP knows.
    """
    if model.unclip is None:
        raise ValueError("the model's denoiser is told no embedding of a picture; give one of unclip.decoder=true")
    embedding = model.unclip.of_pictures(image.to(model.device))
    return replace(model, unclip=model.unclip._replace(given=embedding))


def _encoded(model: TextToImage, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.autoencoder.encode(image.to(model.device))
