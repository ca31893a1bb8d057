"""What the network regresses: F = a x0 + b noise, and the one inversion that serves every choice of (a, b)."""

from torch import Tensor

from ldm.types import Level, Scalar, Target


def eps(level: Level) -> tuple[Scalar, Scalar]:
    """The noise, F = noise (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 14)."""
    return 0.0, 1.0


def x0(level: Level) -> tuple[Scalar, Scalar]:
    """The clean latent, F = x0."""
    return 1.0, 0.0


def v(level: Level) -> tuple[Scalar, Scalar]:
    """Velocity, F = alpha noise - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512, App. D)."""
    return -level.sigma, level.alpha


TARGETS: dict[str, Target] = {"eps": eps, "x0": x0, "v": v}


def regressed(target: Target, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """What the network should say, F = a x0 + b noise; all (B, C, H, W)."""
    a, b = target(level)
    return a * clean + b * noise


def to_x0(target: Target, said: Tensor, x: Tensor, level: Level) -> Tensor:
    """x0 from what the network said of ``x``: solve x = alpha x0 + sigma noise and F = a x0 + b noise for x0."""
    a, b = target(level)
    return (b * x - level.sigma * said) / (level.alpha * b - level.sigma * a)
