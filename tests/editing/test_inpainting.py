"""Holes: what is known is kept, and what is free follows the conditional of a Gaussian.

diffusers' RePaintScheduler draws one noise for the known and the free part of a step; here the known part keeps the
noise that it has, which with eta 1 is the posterior of the forward process.
"""

import pytest
import torch

from ldm.diffusion.grids import uniform
from ldm.diffusion.process import noised
from ldm.editing import Masked, ResamplingConfig, ddnm, keep_known, latent_mask, resampled
from ldm.editing.inpainting import without_hole
from ldm.samplers import SAMPLERS
from ldm.samplers.step import renoised
from ldm.types import Grid, Prediction

MASK = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]).view(1, 1, 2, 4)
KNOWN = torch.tensor([1.5, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0]).double().view(1, 1, 2, 4)


def sample(gaussian, grid, sampler, count):
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(count, *gaussian.shape, generator=generator).double()

    return sampler(keep_known(gaussian, KNOWN.expand(count, -1, -1, -1), MASK), grid[0].sigma * noise(), grid, noise)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "resampled"])
def test_the_known_part_is_kept_exactly(sampler, correlated, grid):
    chosen = ResamplingConfig(times=2) if sampler == "resampled" else SAMPLERS[sampler]()
    x = sample(correlated, grid, chosen, 3)
    kept = (MASK == 0).expand_as(x)
    torch.testing.assert_close(x[kept], KNOWN.expand_as(x)[kept], rtol=0, atol=1e-12)
    assert (x[~kept] != 0).all()


def test_the_free_part_follows_the_conditional_and_closer_with_resampling(correlated, grid):
    free = MASK.flatten() == 1
    seen = torch.eye(8).double()[~free]
    mean, cov = correlated.given(seen, KNOWN.flatten()[~free])

    def errors(times):
        x = sample(correlated, uniform(grid.schedule, 200), ResamplingConfig(5, times), 2_000).flatten(1)[:, free]
        return (x.mean(dim=0) - mean[free]).abs().max(), (x.T.cov() - cov[free][:, free]).abs().max()

    (mean_without, cov_without), (mean_with, cov_with) = errors(1), errors(20)
    assert mean_with < 0.12 and cov_with < 0.1
    assert mean_without > 2.5 * mean_with and cov_without > 1.5 * cov_with


def test_keeping_pixels_is_ddnm_of_a_mask(correlated, grid):
    x, operator = torch.randn(2, 1, 2, 4).double(), Masked(MASK)
    got = keep_known(correlated, KNOWN, MASK)(x, grid[10]).x0
    torch.testing.assert_close(got, ddnm(correlated, operator, operator.apply(KNOWN))(x, grid[10]).x0)


def test_a_hole_takes_the_color_of_the_nearest_known_pixel():
    image = torch.arange(5.0).view(1, 1, 1, 5)
    mask = torch.tensor([0.0, 1.0, 1.0, 0.3, 0.0]).view(1, 1, 1, 5)
    assert without_hole(image, mask).flatten().tolist()[:2] == [0, 0]
    assert without_hole(image, mask).flatten().tolist()[3:] == [4, 4]
    assert not without_hole(image, torch.ones_like(mask)).any()


def test_a_soft_mask_mixes(grid):
    denoise = keep_known(lambda x, level: Prediction(torch.full_like(x, 2.0)), torch.zeros(1, 1, 2, 4), MASK / 4)
    torch.testing.assert_close(denoise(torch.randn(1, 1, 2, 4), grid[3]).x0, MASK / 2)


def test_a_latent_is_free_where_any_of_its_pixels_is():
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 3, 4] = 1
    assert latent_mask(mask, 4).tolist() == [[[[0, 1], [0, 0]]]]


def test_without_jumps_resampling_is_the_sampler(correlated, grid):
    draws = torch.randn(120, 2, 1, 2, 4).double()

    def run(sampler):
        left = iter(draws[1:])
        return sampler(correlated, draws[0], grid, lambda: next(left))

    expected = run(SAMPLERS["ddpm"]())
    torch.testing.assert_close(run(ResamplingConfig(jump=7, times=1)), expected)
    torch.testing.assert_close(run(ResamplingConfig(jump=7, times=1, eta=0.3)), run(SAMPLERS["ddim"](eta=0.3)))
    assert not torch.allclose(run(ResamplingConfig(jump=50, times=2)), expected)


@pytest.mark.parametrize(("jump", "times"), [(1, 3), (4, 2), (10, 5), (99, 2)])
def test_each_step_of_the_grid_is_taken_as_often_as_asked(jump, times, grid):
    grid = Grid(grid[-11:], grid.schedule)
    seen = []

    def denoise(x, level):
        seen.append(level)
        return Prediction(x)

    x = torch.zeros(1, 1, 2, 4)
    resampled(denoise, x, grid, lambda: torch.randn_like(x), jump=jump, times=times)
    assert sorted(seen) == sorted(times * grid[:-1])
    assert seen[-min(jump, 10) :] == grid[-1 - min(jump, 10) : -1]


def test_noising_further_is_noising_from_the_start(grid):
    x0, first, second = torch.randn(3, 200_000).double()
    now, to = grid[25], grid[21]
    x = renoised(noised(x0, first, now), now, to, second)
    for part, size in ((x0, to.alpha), (first, to.alpha * now.nsr)):  # coefficients by independence of the draws
        assert (x * part).mean() == pytest.approx(size, abs=0.01)
    assert (x - to.alpha * x0).std() == pytest.approx(to.sigma, rel=0.01)


@pytest.mark.parametrize("changes", [{"jump": 0}, {"times": 0}, {"eta": -0.5}])
def test_a_resampling_out_of_range_is_named(changes):
    with pytest.raises(ValueError, match="{} {}".format(*next(iter(changes.items())))):
        ResamplingConfig(**changes)
