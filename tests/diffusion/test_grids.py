"""Grids: what all of them keep on every schedule, and diffusers' levels where both define the same."""

from itertools import pairwise
from math import inf, isfinite

import numpy as np
import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from ldm.diffusion.grids import CLEAN, GRIDS, ListedConfig, uniform
from ldm.diffusion.learned import LearnedConfig
from ldm.diffusion.schedules import SCHEDULES

ENDLESS = {"flow": SCHEDULES["flow"](), "cosine-zero_snr": SCHEDULES["cosine"](zero_snr=True)}
EVERY = {name: kind() for name, kind in SCHEDULES.items()} | ENDLESS | {"learned": LearnedConfig(units=8)}
LDM = SCHEDULES["scaled_linear"]().build()
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = 10  # as many as are listed by default


def nsrs(grid):
    """sigma / alpha of every level, the clean one's too."""
    return [level.nsr for level in grid]


def sigmas(steps, **options):
    """diffusers' sigma / alpha, which ends with 0 as ours do."""
    scheduler = EulerDiscreteScheduler(**THEIRS, **options)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", EVERY)
def test_every_grid_falls_from_noise_to_exactly_clean(schedule, name):
    schedule = EVERY[schedule].build()
    grid = GRIDS[name]()(schedule, STEPS)
    assert len(grid) == STEPS + 1 and grid.schedule is schedule
    assert tuple(grid[-1]) == (0.0, 1.0, 0.0)
    assert all(now.nsr > to.nsr and now.t > to.t for now, to in pairwise(grid))
    assert all(type(part) is float for level in grid for part in level)
    if name != "leading":
        assert grid[0] == schedule.level(1.0)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", EVERY)
def test_every_level_of_a_grid_is_the_schedules_own(schedule, name):
    schedule = EVERY[schedule].build()
    for level in GRIDS[name]()(schedule, STEPS)[:-1]:
        assert schedule.level(level.t) == level
        assert schedule.t_at(level.nsr) == pytest.approx(level.t, abs=1e-9)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_grid_may_have_one_step_or_many_but_not_none(name):
    for steps in (1, 2, 333):
        assert len(GRIDS[name]()(LDM, steps)) == steps + 1
    with pytest.raises(ValueError, match=r"steps 0 is not at least 1; try steps=50"):
        GRIDS[name]()(LDM, 0)


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("endless", ENDLESS)
def test_grids_in_noise_start_without_signal_and_then_at_finite_noise(endless, name):
    schedule = ENDLESS[endless].build()
    for steps in (2, 10, 100):
        grid = GRIDS[name]()(schedule, steps)
        assert (grid[0].t, grid[0].nsr) == (1.0, inf)
        assert all(isfinite(nsr) for nsr in nsrs(grid)[1:])
        assert nsrs(grid)[1] < schedule.level(0.999).nsr
        assert grid[-2].t == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_levels_are_not_spent_on_noise_alone(name, schedule):
    grid = nsrs(GRIDS[name]()(SCHEDULES[schedule]().build(), 20))
    assert sum(nsr > 100 for nsr in grid) <= 4  # karras has three by SEEN, and t = 1


def test_karras_levels_are_diffusers():
    np.testing.assert_allclose(nsrs(GRIDS["karras"]()(LDM, 13)), sigmas(13, use_karras_sigmas=True), rtol=2e-5)


def test_log_snr_levels_are_diffusers_exponential_ones():
    np.testing.assert_allclose(nsrs(GRIDS["log_snr"]()(LDM, 13)), sigmas(13, use_exponential_sigmas=True), rtol=2e-5)


def test_karras_levels_between_edms_ends_are_edms():
    edm = SCHEDULES["edm"](sigma_min=0.002, sigma_max=80.0).build()
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(18)
    np.testing.assert_allclose(nsrs(GRIDS["karras"](t_min=0.0)(edm, 18)), theirs.sigmas, rtol=1e-5, atol=1e-7)
    assert [level.t for level in GRIDS["karras"](t_min=0.0)(edm, 18)[:-1]] == pytest.approx(np.linspace(1, 0, 18))


def test_log_snr_levels_are_evenly_spaced():
    falls = np.diff([level.log_snr for level in GRIDS["log_snr"]()(LDM, 20)[:-1]])
    np.testing.assert_allclose(falls, falls[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "spacing"), [("uniform", "trailing"), ("leading", "leading"), ("linspace", "linspace")]
)
@pytest.mark.parametrize("steps", [28, 50, 30, 7])
def test_time_grids_are_diffusers_spacings_but_for_its_rounding(name, spacing, steps):
    theirs = DDIMScheduler(**THEIRS, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    ours = [1_000 * level.t - 1 for level in GRIDS[name]()(LDM, steps)[:-1]]  # its steps count from 0
    np.testing.assert_allclose(ours, theirs.timesteps, atol=1e-9 if name == "leading" else 0.5 + 1e-9)


def test_linspace_levels_are_diffusers_where_it_meets_the_table():
    np.testing.assert_allclose(nsrs(GRIDS["linspace"]()(LDM, 28)), sigmas(28, timestep_spacing="linspace"), rtol=2e-5)


def test_quadratic_times_are_ddims():
    times = [level.t for level in GRIDS["quadratic"]()(LDM, 10)]
    assert times == pytest.approx([(i / 10) ** 2 for i in range(10, -1, -1)])


def test_leading_counts_in_the_steps_of_the_schedules_own_table():
    short = SCHEDULES["linear"](steps=8).build()
    assert [level.t for level in GRIDS["leading"]()(short, 3)] == [5 / 8, 3 / 8, 1 / 8, 0]
    with pytest.raises(ValueError, match=r"steps 9 are more than the 8 of the table; try steps=8"):
        GRIDS["leading"]()(short, 9)


def test_listed_times_are_visited_and_the_usual_ones_are_those_that_diffusers_lists():
    grid = ListedConfig(times=[0.9, 0.2])(LDM, 2)
    assert grid == [LDM.level(0.9), LDM.level(0.2), CLEAN]
    ours = [1_000 * t - 1 for t in ListedConfig().times]
    assert ours == pytest.approx(AysSchedules["StableDiffusionTimesteps"])


def test_other_numbers_of_steps_lie_between_the_listed_times():
    times = [level.t for level in ListedConfig(times=[1.0, 0.5, 0.2])(LDM, 5)]
    assert times == pytest.approx([1.0, 0.75, 0.5, 0.35, 0.2, 0.0])
    assert [level.t for level in ListedConfig(times=[1.0, 0.5])(LDM, 1)] == [1.0, 0.0]


@pytest.mark.parametrize("times", [[], [0.5, 0.5], [0.2, 0.5], [1.1, 0.5], [0.5, 0.0], [0.5, float("nan")]])
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match=r"times .* do not fall within 1 and 0; write e.g. times="):
        ListedConfig(times=times)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [("karras", {"rho": 0.0}, "rho 0.0"), ("karras", {"t_min": 0.5}, "t_min 0.5"), ("log_snr", {"t_min": -1}, "t_min")],
)
def test_impossible_grids_are_refused(name, values, says):
    with pytest.raises(ValueError, match=f"{says}.*; try "):
        GRIDS[name](**values)


@pytest.mark.parametrize("name", ["karras", "log_snr"])
def test_a_grid_in_noise_cannot_reach_a_time_without_any(name):
    with pytest.raises(ValueError, match=r"t_min 0.0 of this schedule has no noise.*; try t_min=0.001"):
        GRIDS[name](t_min=0.0)(LDM, 10)


def test_the_function_uniform_is_the_grid_of_that_name():
    assert uniform(LDM, 9) == GRIDS["uniform"]()(LDM, 9)
