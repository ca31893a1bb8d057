"""Other words for a picture: between two Gaussians the way there and back is known in closed form."""

import pytest
import torch

from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.editing import reword
from ldm.editing.image_to_image import first_level


@pytest.mark.parametrize("strength", [0.3, 0.49963, 0.7, 1.0])
def test_a_sample_of_one_gaussian_moves_towards_the_other_by_what_the_noise_has_hidden(strength, white):
    """(x - alpha mean) / sqrt(alpha^2 variance + sigma^2) stays the same along the ODE."""
    other = type(white)(torch.full((16,), -1.2).double(), white.cov, white.shape)
    x, grid = torch.randn(3, 1, 4, 4).double(), uniform(SCHEDULES["linear"]().build(), 1000)
    level = grid[first_level(grid, strength)]
    std = white.cov[0, 0].sqrt()
    hidden = 1 - level.alpha * std / (level.alpha**2 * std**2 + level.sigma**2) ** 0.5
    expected = x + (other.mean - white.mean).view(1, 1, 4, 4) * hidden
    torch.testing.assert_close(
        reword(other, white, grid, x, strength=strength, noise=x.clone), expected, rtol=0, atol=0.03
    )


def test_strength_zero_keeps_the_latent_and_no_other_words_lead_back_to_it(correlated):
    x, errors = torch.randn(3, 1, 2, 4).double(), []
    for steps in (50, 100, 200):
        grid = uniform(SCHEDULES["linear"]().build(), steps)
        errors.append((reword(correlated, correlated, grid, x, strength=1.0, noise=x.clone) - x).square().mean().sqrt())
        assert torch.equal(reword(correlated, correlated, grid, x, strength=0.0, noise=x.clone), x)
    assert errors[0] < 0.2 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_a_strength_that_is_none_is_refused(correlated, grid):
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="strength 1.5 is not in"):
        reword(correlated, correlated, grid, x, strength=1.5, noise=x.clone)


def test_one_step_from_noise_alone_is_refused_for_it_keeps_nothing(correlated):
    x, one = torch.zeros(1, 1, 2, 4).double(), uniform(SCHEDULES["flow"]().build(), 1)
    with pytest.raises(ValueError, match="strength 0.7 in 1 steps leaves one, from noise alone"):
        reword(correlated, correlated, one, x, strength=0.7, noise=x.clone)


def test_one_latent_is_inverted_once_for_many_pictures(correlated, grid):
    x, inverted = torch.randn(1, 1, 2, 4).double(), []

    def shown(x, level):
        inverted.append(len(x))
        return correlated(x, level)

    many = reword(correlated, shown, grid, x, strength=0.5, noise=lambda: x.expand(3, -1, -1, -1))
    one = reword(correlated, correlated, grid, x, strength=0.5, noise=x.clone)
    torch.testing.assert_close(many, one.expand(3, -1, -1, -1))
    assert set(inverted) == {1}
