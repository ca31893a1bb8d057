"""The same picture with other words: back along the ODE towards noise, and forth again with another prompt.

Legend: B batch, C channels, H W height and width of a latent.
"""

from torch import Tensor

from ldm.editing.image_to_image import check_strength, first_level
from ldm.samplers.ddim import ddim, ddim_inversion
from ldm.types import Denoise, Grid, Noise


def reword(denoise: Denoise, shown: Denoise, grid: Grid, latent: Tensor, *, strength: float, noise: Noise) -> Tensor:
    """Clean latents (B, C, H, W) of what ``denoise`` is told, as like to ``latent`` as their words allow.

    ``shown`` is told what ``latent`` shows, which is (B, C, H, W), or (1, C, H, W) for as many pictures of it as
    ``noise`` has rows. With ``shown`` the ODE of DDIM is run from ``latent`` up to the level of ``grid`` whose time is
    nearest to ``strength`` (Song et al. 2021, arXiv:2010.02502, Sec. 4.3), and with ``denoise`` back down: DiffEdit
    (Couairon et al. 2022, arXiv:2210.11427, Sec. 3.2) without its mask. Where both are told the same, that ends in
    ``latent`` but for the error of the steps. No noise is added. Strength 0 returns ``latent``.

    Raises:
        ValueError: the strength is not in [0, 1]; or it leaves one step, from a level without data, which no inversion
            can tell from any other.
    """
    check_strength(strength)
    rest = Grid(grid[first_level(grid, strength) :], grid.schedule)
    rows = noise()
    if strength == 0 or len(rest) == 1:
        return latent.expand_as(rows)
    if len(rest) == 2 and rest[0].blank:
        raise ValueError(f"strength {strength} in {len(grid) - 1} steps leaves one, from noise alone; take more steps")
    return ddim(denoise, ddim_inversion(shown, latent, rest).expand_as(rows), rest, noise)
