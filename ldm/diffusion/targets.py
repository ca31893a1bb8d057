"""What the network regresses: F = a x0 + b noise, and the one inversion that serves every choice of (a, b)."""

from torch import Tensor

from ldm.types import Level, Scalar, Schedule, Target


def eps(level: Level) -> tuple[Scalar, Scalar]:
    """The noise, F = noise (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 14)."""
    return 0.0, 1.0


def x0(level: Level) -> tuple[Scalar, Scalar]:
    """The clean latent, F = x0 (Ho et al. 2020, arXiv:2006.11239, Sec. 3.2; Salimans & Ho 2022, arXiv:2202.00512)."""
    return 1.0, 0.0


def v(level: Level) -> tuple[Scalar, Scalar]:
    """Velocity, F = alpha noise - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512, App. D).

    On a straight line, alpha + sigma = 1, this is not ``flow``: there v = (alpha - sigma) x + (alpha^2 + sigma^2) flow.
    """
    return -level.sigma, level.alpha


def flow(level: Level) -> tuple[Scalar, Scalar]:
    """Velocity of the straight line from data to noise, F = noise - x0 (Liu et al. 2022, arXiv:2209.03003, eq. 1)."""
    return -1.0, 1.0


def score(level: Level) -> tuple[Scalar, Scalar]:
    """The score of x given x0, F = -noise / sigma (Song & Ermon 2019, arXiv:1907.05600, Sec. 4.2)."""
    return 0.0, -1 / level.sigma


def edm(level: Level) -> tuple[Scalar, Scalar]:
    """F of EDM's preconditioned denoiser for data of unit variance (Karras et al. 2022, arXiv:2206.00364, eq. 7, 8).

    (x0 - c_skip y) / c_out for y = x / alpha. Where alpha^2 + sigma^2 = 1 it is ``v`` with its sign turned.
    """
    return level.sigma / level.norm, -level.alpha / level.norm


def posterior_mean(schedule: Schedule, steps: int = 1_000) -> Target:
    """The mean of DDPM's posterior one of ``steps`` steps back (Ho et al. 2020, arXiv:2006.11239, eq. 7), as a target.

    What a network regresses that says where the reverse step goes, before it is told apart into x0 and noise. No
    configuration names it: x0 that is told from it has 7,800 times its error at the noisiest of DDPM's steps.
    """

    def target(level: Level) -> tuple[Scalar, Scalar]:
        t = level.t.flatten() if isinstance(level.t, Tensor) else level.t
        to = schedule.level((t - 1 / steps).clamp(min=0) if isinstance(t, Tensor) else max(0.0, t - 1 / steps))
        return to.alpha, to.alpha * to.nsr * (to.nsr / level.nsr)

    return target


TARGETS: dict[str, Target] = {"eps": eps, "x0": x0, "v": v, "flow": flow, "score": score, "edm": edm}


def regressed(target: Target, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """What the network should say, F = a x0 + b noise; all (B, C, H, W)."""
    a, b = target(level)
    return a * clean + b * noise


def to_x0(target: Target, said: Tensor, x: Tensor, level: Level) -> Tensor:
    """x0 from what the network said of ``x``: solve x = alpha x0 + sigma noise and F = a x0 + b noise for x0."""
    a, b = target(level)
    return (b * x - level.sigma * said) / (level.alpha * b - level.sigma * a)


def gain(target: Target, level: Level) -> Scalar:
    """What an error of x0 is multiplied by to give the error of F that makes it, but for the sign."""
    a, b = target(level)
    return (level.alpha * b - level.sigma * a) / level.sigma
