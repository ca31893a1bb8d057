"""The forward process, the training loss, and the network as a denoiser.

Legend: B batch, C latent channels, H W latent size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.diffusion.targets import TARGETS, regressed, to_x0
from ldm.types import Condition, Denoise, Level, Prediction, Schedule, Target


@dataclass
class ProcessConfig:
    target: str = "v"  # what the network regresses: eps | x0 | v
    text_dropout: float = 0.1  # share of training samples whose text is replaced by the empty prompt

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target '{self.target}' is not one of {', '.join(TARGETS)}")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"text_dropout {self.text_dropout} is not in [0, 1]; try text_dropout=0.1")


def noised(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """x = alpha x0 + sigma noise (DDPM, arXiv:2006.11239, eq. 4)."""
    return level.alpha * x0 + level.sigma * noise


def loss(
    network: nn.Module, target: Target, schedule: Schedule, x0: Tensor, cond: Condition, t: Tensor, noise: Tensor
) -> Tensor:
    """The simple loss of each sample (B,): the mean squared error of F (DDPM, arXiv:2006.11239, eq. 14).

    ``x0`` and ``noise`` are (B, C, H, W), ``t`` (B,) in (0, 1].
    """
    level = schedule.level(t)
    said = network(noised(x0, noise, level), t, cond)  # (B, C, H, W)
    return (said.float() - regressed(target, x0, noise, level)).square().mean(dim=(1, 2, 3))


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


def denoiser(network: nn.Module, target: Target, cond: Condition) -> Denoise:
    """``network`` as x, level -> x0, for fixed text whose keys and values are computed here, once."""
    prepared = network.prepare(cond)  # type: ignore[operator]

    def denoise(x: Tensor, level: Level) -> Prediction:
        t = torch.full((len(x),), float(level.t), device=x.device)  # (B,)
        return Prediction(to_x0(target, network(x, t, prepared).float(), x, level))

    return denoise
