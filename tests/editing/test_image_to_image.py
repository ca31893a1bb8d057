"""Variations: strength from the picture itself to a sample that knows nothing of it."""

import pytest
import torch

from ldm.diffusion.grids import GRIDS
from ldm.diffusion.schedules import SCHEDULES
from ldm.editing import image_to_image
from ldm.samplers import SAMPLERS
from ldm.samplers.ddim import ddim
from ldm.types import Prediction


def noise_of(x):
    generator = torch.Generator().manual_seed(3)
    return lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_strength_zero_is_the_latent_itself(correlated, grid):
    latent = torch.randn(2, 1, 2, 4).double()
    kept = image_to_image(correlated, ddim, grid, latent[:1], 0.0, noise=lambda: torch.full_like(latent, float("nan")))
    assert torch.equal(kept, latent[:1].expand(2, -1, -1, -1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_one_is_a_sample_from_noise_alone(name, correlated, grid):
    latent, sampler = torch.randn(2, 1, 2, 4).double(), SAMPLERS[name]()
    noise = noise_of(latent)
    expected = sampler(correlated, grid[0].norm * noise(), grid, noise)
    got = image_to_image(correlated, sampler, grid, latent, 1.0, noise_of(latent))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.79, 0.98])
def test_sampling_starts_from_the_noised_latent_at_the_nearest_level(strength, grid):
    latent, seen = torch.randn(2, 1, 2, 4), []

    def denoise(x, level):
        seen.append((x, level))
        return Prediction(latent)

    image_to_image(denoise, ddim, grid, latent, strength, noise_of(latent))
    x, level = seen[0]
    assert abs(level.t - strength) == min(abs(level.t - strength) for level in grid)
    assert [level for _, level in seen] == grid[grid.index(level) : -1]
    torch.testing.assert_close(x, level.alpha * latent + level.sigma * noise_of(latent)())


def test_a_grid_that_starts_below_time_one_forgets_nothing_until_strength_one():
    schedule, latent, seen = SCHEDULES["flow"]().build(), torch.full((1, 1, 2, 4), 2.0), []

    def denoise(x, level):
        seen.append(x)
        return Prediction(latent)

    grid = GRIDS["leading"]()(schedule, 4)  # from t = 0.751
    image_to_image(denoise, ddim, grid, latent, 0.9, noise_of(latent))
    torch.testing.assert_close(seen[0], grid[0].alpha * latent + grid[0].sigma * noise_of(latent)())
    seen.clear()
    image_to_image(denoise, ddim, grid, latent, 1.0, noise_of(latent))
    torch.testing.assert_close(seen[0], grid[0].norm * noise_of(latent)())


def test_the_more_strength_the_less_is_kept(correlated, grid):
    latent = torch.full((500, 1, 2, 4), 4.0).double()
    kept = [image_to_image(correlated, ddim, grid, latent, s, noise_of(latent)).mean() for s in (0.1, 0.3, 0.6, 1.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 3.5 and abs(kept[-1]) < 0.2


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_named(strength, correlated, grid):
    with pytest.raises(ValueError, match=f"strength {strength}"):
        image_to_image(correlated, ddim, grid, torch.zeros(1, 1, 2, 4), strength, lambda: None)
