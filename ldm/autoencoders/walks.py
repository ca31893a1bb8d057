"""Ways through the latents of a first stage: from one picture to another, and along a single latent.

All are of the bottleneck's own latents, before they are scaled for a denoiser: there a KL's prior is N(0, I).

Legend: B batch, C latent channels, h w latent size, M latents that are walked along, S steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.autoencoders.bottlenecks import Gaussian, gaussian_kl

PARALLEL = 1e-4  # radians, below which an arc is a line


def linear(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b."""
    return torch.lerp(a, b, share)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The latents (B, C, h, w) at ``share`` of the arc from ``a`` to ``b``, each taken as one vector.

    (sin((1 - share) w) a + sin(share w) b) / sin w, w the angle between them (Shoemake 1985, Animating rotation). Draws
    of N(0, I) in many dimensions all lie near a sphere, and the middle of a line between two of them far inside of it,
    where a decoder has seen nothing (White 2016, arXiv:1609.04468).
    """
    one, other = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (a, b))
    angle = (one * other).sum(dim=1).clamp(-1, 1).acos().view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle).abs() < PARALLEL, linear(a, b, share), arc)


PATHS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"linear": linear, "slerp": slerp}


class Latent(NamedTuple):
    """One of the C h w numbers that a picture is coded as, and how many nats it says of a picture on average."""

    channel: int
    row: int
    column: int
    kl: float


def informative(bottleneck: Gaussian, h: Tensor, count: int) -> list[Latent]:
    """The ``count`` latents of the largest KL from N(0, 1), a mean over features ``h`` (B, 2 C, h, w), in order."""
    mean, log_variance = bottleneck.moments(h)
    kl = gaussian_kl(mean.reshape(-1, 1), log_variance.reshape(-1, 1)).view_as(mean).mean(dim=0)  # (C, h, w)
    found = []
    for place in kl.flatten().topk(min(count, kl.numel())).indices:
        channel, row, column = (int(i) for i in torch.unravel_index(place, kl.shape))
        found.append(Latent(channel, row, column, kl[channel, row, column].item()))
    return found


def traversals(z: Tensor, latents: list[Latent], values: Tensor) -> Tensor:
    """``z`` (1, C, h, w) with one latent set to each of ``values`` (S,), for each of M latents: (M S, C, h, w)."""
    walked = z.repeat(len(latents) * len(values), 1, 1, 1)
    for i, latent in enumerate(latents):
        walked[i * len(values) : (i + 1) * len(values), latent.channel, latent.row, latent.column] = values.to(z)
    return walked
