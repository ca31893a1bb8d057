"""Guidance wraps a ``denoise``; a sampler never sees it."""

import torch
from torch import Tensor, nn

from ldm.diffusion.process import denoiser
from ldm.types import Condition, Denoise, Level, Prediction, Target


def classifier_free(network: nn.Module, target: Target, cond: Condition, null: Condition, scale: float) -> Denoise:
    """Denoise towards ``cond`` and away from ``null`` (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    ``scale`` is the common one, 1 + w: x0 = x0_null + scale (x0_cond - x0_null). 1 is no guidance and costs one
    evaluation of the network a step instead of two in one batch. ``null`` holds the empty or the negative prompt, a
    row for each of ``cond``. On x0 or on the noise the combination is the same, for x is the same in both.
    """
    if scale == 1:
        return denoiser(network, target, cond)
    both = denoiser(network, target, Condition.cat([cond, null]))

    def denoise(x: Tensor, level: Level) -> Prediction:
        with_text, without = both(torch.cat([x, x]), level).x0.chunk(2)
        return Prediction(torch.lerp(without, with_text, scale))

    return denoise
