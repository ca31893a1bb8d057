"""The search for noise levels, on a problem whose exact answer is known."""

import pytest
import torch

from ldm.diffusion.grids import ListedConfig, uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.evaluation.grid_search import optimised_times
from ldm.samplers import SAMPLERS
from ldm.types import Prediction

SCHEDULE = SCHEDULES["linear"]().build()
STD = 0.2
START = [float(level.t) for level in uniform(SCHEDULE, 5)[:-1]]


def gaussian(x, level):
    """The exact denoiser of N(0, STD^2)."""
    return Prediction(level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) * x)


def draw(times):
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SAMPLERS["euler"]()(gaussian, noise, ListedConfig(times)(SCHEDULE, len(times)), lambda: noise)


def exact():
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SAMPLERS["heun"]()(gaussian, noise, uniform(SCHEDULE, 300), lambda: noise)


def test_the_search_finds_better_levels_than_even_ones():
    found = optimised_times(draw, exact(), START, evaluations=120)
    assert found.error < 0.6 * found.error_before
    assert found.error == pytest.approx(float((draw(found.times) - exact()).square().mean().sqrt()))
    assert len(found.times) == 5 and found.times[0] == 1.0
    assert all(now > to > 0 for now, to in zip(found.times, [*found.times[1:], 1e-9], strict=True))


def test_the_search_never_returns_what_is_worse_than_its_start():
    found = optimised_times(draw, draw(START), START, evaluations=30)
    assert found.error <= 1e-6 and found.times == pytest.approx(START, abs=5e-3)


@pytest.mark.parametrize("times", [[], [0.5, 0.7], [1.0, 0.0]])
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="do not fall"):
        optimised_times(draw, exact(), times)
