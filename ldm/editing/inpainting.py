"""Filling a hole in a picture, in a way that fits what is around it.

A mask is 1 where latents are free, 0 where they are known, and may be between the two at a soft edge.

Legend: B batch, C channels, H W image size, h w latent size, f the autoencoder's factor.
"""

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from ldm.types import Denoise, Level, Prediction


def keep_known(denoise: Denoise, latent: Tensor, mask: Tensor) -> Denoise:
    """Denoise with x0 replaced by ``latent`` (B, C, h, w) where ``mask`` (B or 1, 1, h, w) is 0.

    Any sampler then carries the known part of x along the noise that lies between x and ``latent``, which is the
    forward process from ``latent``, and ends in ``latent`` itself there. RePaint (Lugmayr et al. 2022,
    arXiv:2201.09865, alg. 1) draws that noise anew at each level; with ``eta`` 1 x has the same law at each level. Use
    ``resampled`` as the sampler for the rest of that algorithm, which is what makes the free part fit. The decoded
    image differs a little from the original where the mask is 0: paste the original's pixels there.
    """

    def denoise_rest(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        return said._replace(x0=torch.lerp(latent, said.x0, mask.to(said.x0)))

    return denoise_rest


def without_hole(image: Tensor, mask: Tensor) -> Tensor:
    """``image`` (1, C, H, W) with the nearest known pixel's colour wherever ``mask`` (1, 1, H, W) is above 0.

    An encoder looks at pixels around each place: of this image its latents say nothing of what the mask hides. It is
    zero all over where nothing is known.
    """
    hidden = mask[0, 0].cpu().numpy() > 0  # (H, W)
    if hidden.all():
        return torch.zeros_like(image)
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return image[..., torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """The mask of latents (B, 1, H / f, W / f) of an image's ``mask`` (B, 1, H, W): free where any pixel is."""
    return nn.functional.max_pool2d(mask, factor)
