"""Guidance wraps a ``denoise``; a sampler never sees it.

All of it is done on x0. Plain guidance is a sum whose weights make 1, and so the same as on the noise, the velocity or
the score: x is the same in every prediction.

Legend: B batch, C channels, H W latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import torch
from torch import Tensor, nn

from ldm.diffusion.process import Process
from ldm.gradients import differentiable
from ldm.types import Condition, Denoise, Grid, Level, Prediction

Combine = Callable[[Tensor, Tensor, Tensor, Level], Tensor]  # x0_cond, x0_null, x, level -> x0, each (B, C, H, W)
Pair = Callable[[Tensor, Level], Sequence[Prediction]]  # x, level -> two: what cond and what null say of x
IMAGE = (1, 2, 3)  # the dimensions of one image


@dataclass
class GuidanceConfig:
    """How what the prompt says of x0 is driven away from what the null says. The parts go together in any choice."""

    scale: float = 4.0  # 1 + w of arXiv:2207.12598, so x0_null + scale (x0_cond - x0_null); 1 is no guidance
    interval: list[float] = field(default_factory=lambda: [0.0, 1.0])  # times t that are guided (arXiv:2404.07724)
    rescale: float = 0.0  # phi: share of x0 given back the standard deviation of x0_cond; 0 is off
    threshold: float = 0.0  # quantile of |x0| above which values are cut, 0.995 say; 0 is off
    parallel: float = 1.0  # eta of APG: how much of the guidance along x0_cond is kept
    norm: float = 0.0  # r of APG: greatest length of x0_cond - x0_null over an image; 0 is off
    momentum: float = 0.0  # beta of APG: how much of the last guidance is added; below 0 it is taken away

    def __post_init__(self) -> None:
        if not abs(self.scale) < inf:
            raise ValueError(f"scale {self.scale} is not a finite number; try scale=4")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(
                f"interval {list(self.interval)} is not two rising times in [0, 1]; try interval=[0.0,1.0]"
            )
        for name, value in (("rescale", self.rescale), ("threshold", self.threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value} is not in [0, 1]; 0 is off")
        if not abs(self.parallel) < inf:
            raise ValueError(f"parallel {self.parallel} is not a finite number; 1 is plain guidance, 0 is APG's")
        if not 0 <= self.norm < inf:
            raise ValueError(f"norm {self.norm} is not a number from 0; 0 is off")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum {self.momentum} is not between -1 and 1; try momentum=-0.5")

    def applies(self, level: Level) -> bool:
        """Whether ``level`` is guided at all; where not, what the null says is not asked for."""
        return self.scale != 1 and self.interval[0] <= float(level.t) <= self.interval[1]

    def build(self) -> Combine:
        """The guided x0 of one run of a sampler: with momentum it remembers, so each run needs its own.

        x0_cond + (scale - 1) update, where update = x0_cond - x0_null but for adaptive projected guidance (Sadat et
        al. 2024, arXiv:2410.02416), which adds momentum, bounds its length and weakens its part along x0_cond.
        """
        momentum: Tensor | float = 0.0

        def combine(x0_cond: Tensor, x0_null: Tensor, x: Tensor, level: Level) -> Tensor:
            nonlocal momentum
            update = x0_cond - x0_null
            if self.momentum:
                update = update + self.momentum * momentum
                momentum = update.detach()  # a graph of one call alone, where gradients are taken
            if self.norm:
                length = update.square().sum(dim=IMAGE, keepdim=True).sqrt()  # (B, 1, 1, 1)
                update = update * (self.norm / length.clamp(min=self.norm))
            if self.parallel != 1:
                update = update + (self.parallel - 1) * parallel_part(update, x0_cond)
            x0 = x0_cond + (self.scale - 1) * update
            if self.rescale:
                x0 = rescaled(x0, x0_cond, self.rescale)
            return thresholded(x0, x0_cond, self.threshold) if self.threshold else x0

        return combine


def parallel_part(update: Tensor, axis: Tensor) -> Tensor:
    """The part of ``update`` that is parallel to ``axis``, image by image; both (B, C, H, W)."""
    share = (update * axis).sum(dim=IMAGE, keepdim=True) / axis.square().sum(dim=IMAGE, keepdim=True).clamp(min=1e-12)
    return share * axis


def rescaled(x0: Tensor, x0_cond: Tensor, share: float) -> Tensor:
    """``x0``, a ``share`` of it with x0_cond's standard deviation (Lin et al. 2023, arXiv:2305.08891, eq. 14 to 16).

    The paper does this to what the network says, a velocity; at pure noise that is x0 with its sign turned.
    """
    ratio = x0_cond.std(dim=IMAGE, keepdim=True) / x0.std(dim=IMAGE, keepdim=True).clamp(min=1e-12)  # (B, 1, 1, 1)
    return x0 * (share * ratio + 1 - share)


def thresholded(x0: Tensor, x0_cond: Tensor, quantile: float) -> Tensor:
    """``x0`` cut at the ``quantile`` of its absolute values and shrunk to where ``x0_cond`` has it, image by image.

    Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, Sec. 2.3) shrinks to [-1, 1], where pixels belong.
    Latents of unit variance reach further, so the limit here is x0_cond's own quantile, or 1 if that is more: where
    x0_cond keeps to [-1, 1] it is the paper's.
    """
    limit = x0_cond.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    reach = torch.maximum(x0.abs().flatten(1).quantile(quantile, dim=1).view(-1, 1, 1, 1), limit)
    return x0.clamp(-reach, reach) * (limit / reach)


def clipped(denoise: Denoise, limit: float) -> Denoise:
    """``denoise`` whose x0 is cut to [-``limit``, ``limit``], as DDPM's code does with pixels of [-1, 1]."""

    def cut(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        return said._replace(x0=said.x0.clamp(-limit, limit))

    return cut


def guided(alone: Denoise, pair: Pair, guidance: float | GuidanceConfig) -> Denoise:
    """Denoise as ``guidance``, a scale or a config, makes of a ``pair`` of predictions.

    ``alone`` gives the first of the pair only. It is all that is asked at levels that are not guided, which so cost one
    prediction instead of two. A learned variance is the first one's. With momentum it serves one run of a sampler.
    """
    config = guidance if isinstance(guidance, GuidanceConfig) else GuidanceConfig(scale=guidance)
    combine = config.build()

    def denoise(x: Tensor, level: Level) -> Prediction:
        if not config.applies(level):
            return alone(x, level)
        told, null = pair(x, level)
        return told._replace(x0=combine(told.x0, null.x0, x, level))

    return denoise


def classifier_free(
    network: nn.Module, process: Process, cond: Condition, null: Condition, scale: float | GuidanceConfig
) -> Denoise:
    """Denoise towards ``cond`` and away from ``null`` (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    ``null`` holds the empty or the negative prompt, a row for each of ``cond``. A guided level costs an evaluation of
    the network in a batch of 2 B, any other one in a batch of B, and all are such at scale 1.
    """
    return guided(process.denoiser(network, cond), _together(network, process, [cond, null]), scale)


def composed(
    denoise: Denoise,
    network: nn.Module,
    process: Process,
    conds: Sequence[Condition],
    weights: Sequence[float],
    null: Condition,
) -> Denoise:
    """``denoise`` drawn towards N further ``conds`` (Liu et al. 2022, arXiv:2206.01714).

    x0 + sum of weight_i (x0_i - x0_null), at every level: a weight is what ``scale`` is for the prompt; below 0 it
    drives away. ``conds`` and ``null``, the empty prompt, have a row for each image. It costs an evaluation in a batch
    of (N + 1) B besides those of ``denoise``.

    Raises:
        ValueError: there are no conditions, or not as many weights.
    """
    if not conds or len(conds) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(conds)} prompts; give each of one or more prompts a weight")
    everything = _together(network, process, [*conds, null])

    def drawn(x: Tensor, level: Level) -> Prediction:
        *told, without = everything(x, level)
        said = denoise(x, level)
        updates = (weight * (one.x0 - without.x0) for weight, one in zip(weights, told, strict=True))
        return said._replace(x0=sum(updates, start=said.x0))

    return drawn


def perpendicular(
    denoise: Denoise,
    network: nn.Module,
    process: Process,
    cond: Condition,
    negative: Condition,
    null: Condition,
    weight: float,
) -> Denoise:
    """``denoise`` driven away from the part of ``negative`` that is perpendicular to ``cond``.

    Perp-Neg (Armandpour et al. 2023, arXiv:2304.04968): x0 - weight perp, where perp is the part of
    x0_negative - x0_null that is perpendicular to x0_cond - x0_null. All three have a row for each image; ``null`` is
    the empty prompt. The paper's weight is ours / scale. It costs an evaluation in a batch of 3 B besides those of
    ``denoise``.
    """
    three = _together(network, process, [cond, negative, null])

    def driven(x: Tensor, level: Level) -> Prediction:
        told, unwanted, without = three(x, level)
        said, away = denoise(x, level), unwanted.x0 - without.x0
        return said._replace(x0=said.x0 - weight * (away - parallel_part(away, told.x0 - without.x0)))

    return driven


def autoguidance(denoise: Denoise, worse: Denoise, scale: float | GuidanceConfig) -> Denoise:
    """Denoise away from a ``worse`` model: a smaller or earlier one (Karras et al. 2024, arXiv:2406.02507)."""
    return guided(denoise, lambda x, level: (denoise(x, level), worse(x, level)), scale)


def classifier_guidance(
    denoise: Denoise, log_prob: Callable[[Tensor, Level], Tensor], scale: float = 1.0, grid: Grid | None = None
) -> Denoise:
    """Denoise towards x of which a classifier is sure (Dhariwal & Nichol 2021, arXiv:2105.05233, alg. 2).

    x0 + scale (sigma^2 / alpha) grad log p(y | x), from ``log_prob`` of x (B, C, H, W) and its level, (B,) and
    differentiable: Bayes' rule for the score. Where x is noise alone it says nothing of y, and nothing is added.

    With the ``grid`` that is walked over it is alg. 1: sigma^2 / alpha are those of the level after, which adds scale
    times the posterior's variance times the gradient to the mean of a step of `ddpm`. Without, such a step's mean moves
    by scale beta / sqrt(1 - beta) times the gradient: the same for small steps. ValueError for a level not in ``grid``.
    """
    after = dict(pairwise(grid)) if grid else {}

    def guide(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        if level.blank:
            return said
        if grid and level not in after:
            raise ValueError(f"t={level.t} is no level of the {len(grid)} of the grid; give that of the sampler")
        to = after[level] if grid else level
        with differentiable():
            leaf = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(leaf, level).sum(), leaf)
        return said._replace(x0=said.x0 + scale * to.sigma**2 / to.alpha * slope)

    return guide


def _together(
    network: nn.Module, process: Process, conds: Sequence[Condition]
) -> Callable[[Tensor, Level], list[Prediction]]:
    """What the network says of the same x under each of N ``conds``, evaluated in one batch of N B."""
    denoise = process.denoiser(network, Condition.cat(list(conds)))

    def said(x: Tensor, level: Level) -> list[Prediction]:
        both = denoise(x.repeat(len(conds), 1, 1, 1), level)  # (N B, C, H, W)
        fields = [len(conds) * [None] if part is None else part.chunk(len(conds)) for part in both]
        return [Prediction(*parts) for parts in zip(*fields, strict=True)]

    return said
