"""Samplers with exact denoisers: DDPM's posterior, the Gaussian that they must recover, diffusers' trajectories."""

from math import sqrt

import pytest
import torch
from diffusers import DDIMScheduler

from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, to_x0
from ldm.samplers import SAMPLERS, ImageNoise
from ldm.samplers.ddim import ddim
from ldm.types import Grid, Prediction

SCHEDULE = SCHEDULES["linear"]().build()
MEAN, STD = 0.6, 0.5


def gaussian(x, level):
    """The exact denoiser of N(MEAN, STD^2): the posterior mean of x0."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return Prediction(MEAN + level.alpha * STD**2 / variance * (x - level.alpha * MEAN))


def test_ddim_with_eta_one_is_the_ddpm_posterior():
    grid = uniform(SCHEDULE, 1000)
    now, to = grid[400], grid[401]
    x, x0, noise = torch.randn(3, 1, 1, 8, 8, dtype=torch.float64)
    beta = 1 - (now.alpha / to.alpha) ** 2
    bar, previous = now.alpha**2, to.alpha**2
    mean = sqrt(previous) * beta / (1 - bar) * x0 + sqrt(1 - beta) * (1 - previous) / (1 - bar) * x  # eq. 7
    std = sqrt((1 - previous) / (1 - bar) * beta)
    got = ddim(lambda *_: Prediction(x0), x, Grid([now, to], SCHEDULE), lambda: noise, eta=1.0)
    torch.testing.assert_close(got, mean + std * noise)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_trajectory_is_that_of_diffusers(eta):
    theirs = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(20)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs.alphas_cumprod = (1 - betas).cumprod(0)  # which diffusers keeps in float32
    network = torch.nn.Conv2d(3, 3, 3, padding=1).double()
    noises = torch.randn(20, 2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        x = start = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        for n, noise in zip(theirs.timesteps, noises, strict=True):
            x = theirs.step(network(x), n, x, eta=eta, variance_noise=noise).prev_sample
        draws = iter(noises)
        got = ddim(
            lambda x, level: Prediction(to_x0(TARGETS["eps"], network(x), x, level)),
            start,
            uniform(SCHEDULE, 20),
            lambda: next(draws),
            eta=eta,
        )
    torch.testing.assert_close(got, x, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_a_gaussian_given_its_exact_denoiser(name):
    noise = ImageNoise([0], (1, 200, 200))
    x = SAMPLERS[name]()(gaussian, noise(), uniform(SCHEDULE, 500), noise)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_does_not_edit_what_it_is_given(name):
    noise = ImageNoise([0], (1, 4, 4))
    x = noise()
    before = x.clone()
    SAMPLERS[name]()(gaussian, x, uniform(SCHEDULE, 5), noise)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_an_images_draws_depend_on_its_seed_alone():
    alone, batch = ImageNoise([7], (2, 4, 4)), ImageNoise([5, 6, 7], (2, 4, 4))
    for _ in range(3):
        assert torch.equal(alone()[0], batch()[2])


def test_a_grid_goes_from_noise_to_exactly_clean():
    grid = uniform(SCHEDULE, 10)
    assert len(grid) == 11
    assert grid[0].t == 1.0
    assert tuple(grid[-1]) == (0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="steps 0"):
        uniform(SCHEDULE, 0)
