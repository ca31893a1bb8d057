"""The training loss of a denoiser, over any schedule, target, weight and distribution of times.

Legend: B batch, C latent channels, H W latent size.
"""

from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.few_steps import Example, Examples
from ldm.diffusion.posterior import step_back
from ldm.diffusion.process import NetworkOutput, Process, noised
from ldm.diffusion.targets import regressed, to_x0
from ldm.diffusion.times import TimeSampler
from ldm.diffusion.vlb import vlb_term
from ldm.diffusion.weights import PlainConfig, Weight, rate
from ldm.types import Level, Prediction

VLB_STEPS = 1_000  # of the bound that a learned variance is trained by
VLB_SHARE = 1e-3  # lambda of L_simple + lambda L_vlb, which is in bits per dimension


def loss(network: nn.Module, process: Process, x0: Tensor, cond: Any, t: Tensor, noise: Tensor) -> Tensor:
    """The plain loss of each sample (B,): the mean squared error of F (DDPM, arXiv:2006.11239, eq. 14).

    ``x0`` and ``noise`` are (B, C, H, W), ``t`` (B,) in (0, 1]; ``cond`` is what ``network`` is told.
    """
    level = process.schedule.level(t)
    said = process.said(network, noised(x0, noise, level), level, cond)
    return _squared_error(process, said, x0, noise, level).mean(dim=(1, 2, 3))


def _squared_error(process: Process, said: NetworkOutput, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """That of F (B, C, H, W)."""
    return (said.f - regressed(process.target, x0, noise, level)).square()


@dataclass
class DenoisingLoss:
    """What is minimised: the loss of ``process`` weighted, at times that ``times`` draws.

    Where a variance is learned, iDDPM's hybrid (arXiv:2102.09672, Sec. 3.1). ``examples`` may ask for another x0 than
    that of the data (``ldm.diffusion.few_steps``). With ``huber`` c the weighted square d counts as sqrt(d + c^2) - c.
    """

    process: Process
    times: TimeSampler
    weight: Weight = field(default_factory=PlainConfig)
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    examples: Examples | None = None
    huber: float = 0.0

    @property
    def learned(self) -> nn.Module:
        """What is learned besides the network."""
        return self.times if self.examples is None else nn.ModuleDict({"times": self.times, "examples": self.examples})

    def __call__(self, network: nn.Module, x0: Tensor, cond: Any, generator: torch.Generator, step: int = 0) -> Tensor:
        """The weighted loss of each sample (B,) of latents ``x0`` (B, C, H, W), in optimizer step ``step``.

        ``cond`` is what ``network`` is told; every draw is ``generator``'s.
        """
        t, importance = (part.to(x0.device) for part in self.times(len(x0), generator))  # 2 (B,)
        example = self._example(x0, t, cond, generator, step)
        process, level = self.process, example.level
        said = process.said(network, example.x, level, cond)
        error = _squared_error(process, said, example.x0, example.noise, level)  # (B, C, H, W)
        at = torch.as_tensor(level.t).flatten()  # (B,), t itself but where ``examples`` has steps
        passing = rate(process.schedule, at) if self.weight.by_rate else torch.full_like(at, nan).view(-1, 1, 1, 1)
        each = (self.weight.on_f(process.target, level, passing) * error).mean(dim=(1, 2, 3))  # (B,)
        if self.huber:
            each = (each + self.huber**2).sqrt() - self.huber
        if said.variance is not None:
            each = each + self._bound(said, x0, example.x, level, at)
        self.times.observe(t, each)
        return importance * each

    def _example(self, x0: Tensor, t: Tensor, cond: Any, generator: torch.Generator, step: int) -> Example:
        """What the network is shown of ``x0`` at times ``t`` (B,), and what it should say of that."""
        noise = torch.randn(x0.shape, generator=generator)
        if self.offset_noise:  # so that the mean of a channel is noised as much as the rest of it (Guttenberg 2023)
            noise = noise + self.offset_noise * torch.randn(*x0.shape[:2], 1, 1, generator=generator)
        seen = noise
        if self.input_perturbation:  # DDPM-IP (Ning et al. 2023, arXiv:2301.11706, alg. 1): errors met when sampling
            seen = noise + self.input_perturbation * torch.randn(x0.shape, generator=generator)
        noise, seen = noise.to(x0.device), seen.to(x0.device)
        if self.examples is not None:
            made: Example = self.examples(x0, noise, t, cond, step)
            return made
        level = self.process.schedule.level(t)
        return Example(noised(x0, seen, level), level, x0, noise)

    def _bound(self, said: NetworkOutput, x0: Tensor, x: Tensor, level: Level, t: Tensor) -> Tensor:
        """The hybrid's share of L_vlb (B,), which trains the variance alone (arXiv:2102.09672, eq. 16)."""
        prediction = Prediction(to_x0(self.process.target, said.f, x, level), variance=said.variance)
        to = step_back(self.process.schedule, t, VLB_STEPS)
        return VLB_SHARE * VLB_STEPS * vlb_term(prediction, x0, x, level, to)
