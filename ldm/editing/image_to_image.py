"""Variations of a picture: noise it part of the way, and denoise.

Legend: B batch, C channels, H W height and width of a latent.
"""

from torch import Tensor

from ldm.diffusion.process import noised
from ldm.types import Denoise, Grid, Noise, Sampler


def image_to_image(
    denoise: Denoise, sampler: Sampler, grid: Grid, latent: Tensor, strength: float, noise: Noise
) -> Tensor:
    """Clean latents (B, C, H, W) like ``latent``, the less so the more ``strength`` (SDEdit, arXiv:2108.01073, alg. 1).

    ``latent`` is (B, C, H, W), or (1, C, H, W) for as many pictures of it as ``noise`` has rows.

    ``sampler`` starts from the noised ``latent`` at the level of ``grid`` whose time is nearest to ``strength``. With
    strength 1 it starts from noise alone, even where the grid's first level keeps a trace of data: that is sampling
    from nothing. Strength 0 returns ``latent``.

    Raises:
        ValueError: the strength is not in [0, 1].
    """
    check_strength(strength)
    draw = noise()
    latent = latent.expand_as(draw)
    start = first_level(grid, strength)
    if start == len(grid) - 1:
        return latent
    rest = Grid(grid[start:], grid.schedule)
    x = noised(latent, draw, rest[0]) if strength < 1 else rest[0].norm * draw
    return sampler(denoise, x, rest, noise)


def first_level(grid: Grid, strength: float) -> int:
    """The place in ``grid`` of the level whose time is nearest to ``strength``."""
    return min(range(len(grid)), key=lambda i: abs(float(grid[i].t) - strength))


def check_strength(strength: float) -> None:
    """Raise ValueError unless ``strength`` is in [0, 1]."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} is not in [0, 1]; try strength=0.6")
