"""The process that a network learns to reverse, and the network as a denoiser of it.

Legend: B batch, C latent channels, H W latent size.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.diffusion.targets import TARGETS, Target, to_x0
from ldm.types import Condition, Denoise, Level, Prediction, Schedule

MAX_SEEN = 3.0  # standard deviation of what a network sees, for x0 of 1
MIN_LAST = 2.0  # least sigma / alpha at t = 1


@dataclass
class ProcessConfig:
    """What the network sees and says, which is a part of the model; and what its training does to what it sees."""

    target: str = "flow"  # what the network regresses: eps | x0 | v | flow | score | edm
    unit_input: bool = False  # it sees x / sqrt(alpha^2 + sigma^2): for schedules that let x grow, such as ve
    learned_variance: bool = False  # it also says how large the variance of a step back is, on as many channels again
    text_dropout: float = 0.1  # share of training samples whose text is replaced by the empty prompt
    offset_noise: float = 0.0  # size of a part of the training noise that is the same at all places of a channel
    input_perturbation: float = 0.0  # size of more noise that the network sees and is not asked for (training)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target '{self.target}' is not one of {', '.join(TARGETS)}")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"text_dropout {self.text_dropout} is not in [0, 1]; try text_dropout=0.1")
        for name in ("offset_noise", "input_perturbation"):
            if not 0 <= getattr(self, name) < 10:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 10); try {name}=0.1")

    def check(self, schedule: Schedule) -> None:
        """A ValueError, before a training, where ``schedule`` lets x grow and the network would see it so.

        Or where it hides so little that drawing, which starts from noise alone, would start from what was never seen.
        """
        if (last := schedule.level(1.0)).nsr < MIN_LAST:
            raise ValueError(
                f"at t = 1 this schedule has sigma / alpha = {last.nsr:.2g}, and drawing starts from noise alone, as "
                f"it looks from {MIN_LAST:g} on; raise its end (beta_max, sigma_max, the last gamma), "
                "or of a table give schedule.zero_snr=true"
            )
        if (most := schedule.level(1.0).norm) > MAX_SEEN and not self.unit_input:
            raise ValueError(
                f"with this schedule the network sees values of {most:.0f}, and it learns from those of 1; "
                "use process.unit_input=true process.target=edm"
            )

    def build(self, schedule: Schedule) -> "Process":
        return Process(schedule, TARGETS[self.target], self.unit_input, self.learned_variance)


class NetworkOutput(NamedTuple):
    """What a network says, float32: F, and where it learns one a variance as a place between the least and the most."""

    f: Tensor  # (B, C, H, W)
    variance: Tensor | None  # (B, C, H, W), about in [-1, 1]


@dataclass(frozen=True)
class Process:
    """A schedule, and what a network that reverses it sees and says."""

    schedule: Schedule
    target: Target = TARGETS["flow"]
    unit_input: bool = False
    learned_variance: bool = False

    def said(self, network: nn.Module, x: Tensor, level: Level, cond: Any) -> NetworkOutput:
        """What ``network`` says of ``x`` (B, C, H, W) at ``level``, told ``cond`` or what it prepared of that."""
        t = level.t.flatten() if isinstance(level.t, Tensor) else torch.full((len(x),), level.t, device=x.device)
        said = network(unit(x, level) if self.unit_input else x, t, cond).float()  # (B, C or 2 C, H, W)
        if not self.learned_variance:
            return NetworkOutput(said, None)
        f, variance = said.chunk(2, dim=1)  # 2 (B, C, H, W)
        return NetworkOutput(f, variance)

    def denoiser(self, network: nn.Module, cond: Condition) -> Denoise:
        """``network`` as x, level -> x0, for fixed text whose keys and values are computed here, once."""
        prepared = network.prepare(cond)  # type: ignore[operator]

        def denoise(x: Tensor, level: Level) -> Prediction:
            f, variance = self.said(network, x, level, prepared)
            return Prediction(to_x0(self.target, f, x, level), variance=variance)

        return denoise


def unit(x: Tensor, level: Level) -> Tensor:
    """``x`` over its standard deviation at ``level``, where x0's is 1 (EDM's c_in, arXiv:2206.00364, Table 1)."""
    return x / level.norm


def noised(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """x = alpha x0 + sigma noise (DDPM, arXiv:2006.11239, eq. 4)."""
    return level.alpha * x0 + level.sigma * noise


def drop_words(cond: Condition, null: Condition, share: float, generator: torch.Generator) -> Condition:
    """``cond`` with the words of a random ``share`` of its rows those of ``null``; what is pooled stays (unCLIP)."""
    return replace(drop_text(cond, null, share, generator), pooled=cond.pooled)


def drop_text(cond: Condition, null: Condition, share: float, generator: torch.Generator) -> Condition:
    """``cond`` with a random ``share`` of its rows replaced by the one row of ``null`` (Ho & Salimans 2022, alg. 1)."""
    dropped = torch.rand(len(cond), generator=generator) < share  # (B,)
    length = max(cond.tokens.shape[1], null.tokens.shape[1])
    cond, null = cond.pad(length), null.pad(length)
    rows = dropped.to(cond.tokens.device)
    return Condition(
        torch.where(rows[:, None, None], null.tokens, cond.tokens),
        torch.where(rows[:, None], null.pooled, cond.pooled),
        torch.where(rows[:, None], null.mask, cond.mask),
    )
