"""What holds of every sampler in the table, and what some of them are of one another."""

import importlib.util
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from ldm.diffusion.grids import GRIDS, uniform
from ldm.diffusion.posterior import posterior
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers import SAMPLERS, ImageNoise
from ldm.samplers.ddim import ddim, ddim_inversion
from ldm.samplers.dpm_solver import multistep
from ldm.samplers.step import move, renewed
from ldm.types import Grid, Level, Prediction

SPEC = importlib.util.spec_from_file_location(
    "solver_order", Path(__file__).parents[2] / "benchmarks" / "solver_order.py"
)
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)
MIXTURE = BENCHMARK.Mixture()
LINEAR = SCHEDULES["linear"]().build()
STEPS = 100
# Langevin dynamics has no right answer in finitely many steps: shorter steps and more of them than the defaults.
OPTIONS = {"annealed_langevin": {"repeats": 15, "step": 0.15}}
TOLERANCE = {"annealed_langevin": 0.045}
MORE = [  # what a sampler's options make another method of; the shipped model draws with the first
    ("dpm_solver_pp", {"order": 2, "eta": 2.5}),
    ("dpm_solver_pp", {"order": 2, "eta": 1.0}),
    ("ddpm", {"variance": "beta"}),
    ("dpm_solver", {"multistep": True}),
    ("dpm_solver_pp", {"multistep": False, "order": 3}),
    ("dpm_solver_pp", {"order": 3, "eta": 0.0}),
    ("dpm_solver_pp", {"order": 3, "eta": 1.0}),
]


def sampler(name):
    return SAMPLERS[name](**OPTIONS.get(name, {}))


def draws(count, shape):
    generator = torch.Generator().manual_seed(1)
    made = iter(torch.randn(count, *shape, dtype=torch.float64, generator=generator))
    return lambda: next(made)


def distance(x):
    """Kolmogorov and Smirnov's statistic of points (1, 2, H, W) against the mixture: the worst of four directions."""
    assert x.isfinite().all()
    points = x[0].flatten(1).double().numpy()
    worst = 0.0
    for angle in np.linspace(0, np.pi, 4, endpoint=False):
        direction = np.array([np.cos(angle), np.sin(angle)])
        z = np.sort(direction @ points)
        cdf = sum(
            weight * norm.cdf((z - direction @ mean) / std)
            for weight, mean, std in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True)
        )
        steps = np.arange(len(z) + 1) / len(z)
        worst = max(worst, abs(cdf - steps[1:]).max(), abs(cdf - steps[:-1]).max())
    return worst


@pytest.mark.parametrize("schedule", ["vp", "ve", "flow", "cosine"])
@pytest.mark.parametrize(("name", "options"), [*((name, OPTIONS.get(name, {})) for name in SAMPLERS), *MORE], ids=str)
def test_every_sampler_samples_a_mixture_given_its_exact_denoiser(name, options, schedule):
    """6,400 points of the right mixture are 0.02 from it at worst, but for 1 in 100."""
    noise = ImageNoise([0], (2, 80, 80))
    grid = uniform(SCHEDULES[schedule]().build(), STEPS)
    x = SAMPLERS[name](**options)(MIXTURE, noise() * grid[0].sigma, grid, noise)
    assert distance(x) < TOLERANCE.get(name, 0.03)


@pytest.mark.parametrize("eta", [1.0, 1.5, 3.0])
def test_the_noise_of_two_steps_is_that_of_one_over_both(eta):
    """Of an SDE, as eta makes one from 1 on: what is kept of the noise multiplies, and sigma is the level's."""
    first, middle, last = (LINEAR.level(t) for t in (0.9, 0.6, 0.2))

    def kept(now, to):
        level, fresh = renewed(now, to, eta)
        assert level.sigma**2 + fresh**2 == pytest.approx(to.sigma**2)
        return level.sigma / now.sigma

    assert kept(first, middle) * kept(middle, last) == pytest.approx(kept(first, last))


def test_less_of_the_noise_is_kept_the_larger_eta_is():
    etas = (0.0, 0.5, 0.99999, 1.0, 1.00001, 2.0)
    kept = [renewed(LINEAR.level(0.9), LINEAR.level(0.8), eta)[0].sigma for eta in etas]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[2] == pytest.approx(kept[4], rel=0.01)


@pytest.mark.parametrize("eta", [1e6, 1e200])
def test_all_noise_is_drawn_anew_where_eta_is_huge(eta):
    now, to = LINEAR.level(0.9), LINEAR.level(0.6)
    kept, fresh = renewed(now, to, eta)
    assert (kept.sigma, fresh) == (0, pytest.approx(to.sigma))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_step_that_keeps_no_noise_is_finite(order):
    noise = ImageNoise([0], (2, 80, 80))
    grid = uniform(SCHEDULES["vp"]().build(), STEPS)
    assert multistep(MIXTURE, noise() * grid[0].sigma, grid, noise, order=order, eta=1e6).isfinite().all()


def test_the_distance_tells_a_mixture_that_is_a_little_too_narrow_apart():
    noise = ImageNoise([0], (2, 80, 80))
    grid = uniform(SCHEDULES["vp"]().build(), STEPS)
    x = SAMPLERS["heun"]()(MIXTURE, noise() * grid[0].sigma, grid, noise)
    assert distance(x) < 0.03 < distance(0.93 * x)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("schedule", [SCHEDULES["linear"](zero_snr=True), SCHEDULES["flow"](), SCHEDULES["subvp"]()])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_starts_where_no_signal_is_left_and_takes_few_steps(name, schedule, steps):
    """A denoiser that knows of one point only leads there, from alpha = 0 as from elsewhere."""
    grid = uniform(schedule.build(), steps)
    x0 = torch.full((1, 2, 4, 4), 0.7)
    noise = ImageNoise([0], (2, 4, 4))
    x = SAMPLERS[name]()(lambda x, level: Prediction(x0), noise() * grid[0].sigma, grid, noise)
    torch.testing.assert_close(x, x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULES["ve"](sigma_min=1e-5), SCHEDULES["flow"](), SCHEDULES["subvp"]()],
    ids=["ve", "flow", "subvp"],
)
@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"deis", "ddpm", "euler_maruyama", "predictor_corrector"}))
def test_samplers_written_in_scaled_variables_do_not_see_the_schedule(name, schedule):
    """With the same sigma / alpha, x / alpha is the same on every schedule, new noise included.

    Not so by definition: DEIS' polynomial in t, and steps of the SDE in t. Of ddpm, see ``ddim``. ``ve`` ends with as
    little noise as ``ode`` follows, which goes no further than a schedule does.
    """
    ends = []
    made = SAMPLERS["edm"](s_min=0.09) if name == "edm" else sampler(name)  # its own is that of the last level
    start = draws(1, (1, 2, 3, 3))()
    for config in (SCHEDULES["vp"](), schedule):
        built = config.build()
        grid = Grid([*BENCHMARK.even(built, 12), Level(0.0, 1.0, 0.0)], built)
        ends.append(made(MIXTURE, start * grid[0].sigma, grid, draws(300, (1, 2, 3, 3))))
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_does_not_edit_what_it_is_given(name):
    noise = ImageNoise([0], (2, 4, 4))
    x = noise()
    before = x.clone()
    SAMPLERS[name]()(MIXTURE, x, uniform(LINEAR, 5), noise)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    """But for ``ode``, whose steps are as long for all: there by no more than a few times its tolerance."""
    grid = uniform(LINEAR, 8)
    options = {"rtol": 1e-6, "atol": 1e-6} if name == "ode" else {}

    def sampled(seeds):
        noise = ImageNoise(seeds, (2, 4, 4))
        points = noise()

        def denoise(x, level):
            return Prediction(torch.cat([MIXTURE(one, level).x0 for one in x.split(1)]))

        return SAMPLERS[name](**options)(denoise, points * grid[0].sigma, grid, noise)

    torch.testing.assert_close(sampled([7, 8])[:1], sampled([7]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "calls"),
    [
        ("ddim", {}, 10),
        ("ddpm", {}, 10),
        ("euler", {}, 10),
        ("heun", {}, 19),
        ("edm", {}, 19),
        ("plms", {}, 11),
        ("ipndm", {}, 10),
        ("deis", {}, 10),
        ("dpm_solver", {"order": 3}, 28),
        ("dpm_solver_pp", {"order": 3}, 10),
        ("dpm_solver_pp", {"multistep": False}, 19),
        ("unipc", {}, 10),
        ("euler_maruyama", {}, 10),
        ("predictor_corrector", {}, 19),
        ("annealed_langevin", {"repeats": 3}, 31),
    ],
)
def test_ten_steps_call_the_network_so_often(name, options, calls):
    counted = []

    def denoise(x, level):
        counted.append(level)
        return MIXTURE(x, level)

    noise = ImageNoise([0], (2, 4, 4))
    SAMPLERS[name](**options)(denoise, noise(), uniform(LINEAR, 10), noise)
    assert len(counted) == calls


SAME = {
    "ddpm": (("ddpm", {}), ("ddim", {"eta": 1.0})),
    "edm without churn": (("edm", {"churn": 0.0}), ("heun", {})),
    "edm where nothing is churned": (("edm", {"s_min": 1e4, "s_max": 1e5}), ("heun", {})),
    "first order of x0": (("dpm_solver_pp", {"order": 1}), ("ddim", {})),
    "first order of the noise": (("dpm_solver", {"order": 1}), ("ddim", {})),
    "first order of deis": (("deis", {"order": 1}), ("ddim", {})),
    "first order of the sde": (("dpm_solver_pp", {"order": 1, "eta": 1.0}), ("ddpm", {})),
}


@pytest.mark.parametrize("case", SAME)
def test_two_samplers_that_are_the_same_go_the_same_way(case):
    ends = []
    for name, options in SAME[case]:
        noise = draws(40, (1, 2, 4, 4))
        ends.append(SAMPLERS[name](**options)(MIXTURE, noise(), uniform(LINEAR, 12), noise))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-9, rtol=1e-9)


def test_ddim_with_eta_one_is_the_ddpm_posterior():
    grid = uniform(LINEAR, 1000)
    now, to = grid[400], grid[401]
    x, x0, noise = torch.randn(3, 1, 1, 8, 8, dtype=torch.float64)
    beta = 1 - (now.alpha / to.alpha) ** 2
    bar, previous = now.alpha**2, to.alpha**2
    mean = sqrt(previous) * beta / (1 - bar) * x0 + sqrt(1 - beta) * (1 - previous) / (1 - bar) * x  # eq. 7
    std = sqrt((1 - previous) / (1 - bar) * beta)
    got = ddim(lambda *_: Prediction(x0), x, Grid([now, to], LINEAR), lambda: noise, eta=1.0)
    torch.testing.assert_close(got, mean + std * noise)
    torch.testing.assert_close(posterior(x, x0, now, to)[0], mean)


def test_euler_maruyamas_step_of_the_reverse_sde_approaches_ddpms_ancestral_step():
    """With the same draws they end apart by what halves when the steps are doubled."""
    schedule, apart = SCHEDULES["vp"]().build(), []
    for steps in (50, 100, 200):
        grid = Grid([schedule.level(float(t)) for t in np.linspace(0.9, 0.2, steps + 1)], schedule)
        ends = []
        for name in ("euler_maruyama", "ddpm"):
            noise = draws(steps + 1, (1, 2, 40, 40))
            ends.append(SAMPLERS[name]()(MIXTURE, noise(), grid, noise))
        apart.append(float((ends[0] - ends[1]).square().mean().sqrt()))
    assert apart[1] / apart[0] == pytest.approx(0.5, abs=0.1) == apart[2] / apart[1]


def test_the_variance_beta_keeps_a_unit_normal_whatever_the_stride():
    """For x0 of N(0, 1), x stays so where variance is preserved: the posterior's is too small for that."""
    steps = Grid(uniform(LINEAR, 10)[:-1], LINEAR)
    ends = {}
    for variance in ("posterior", "beta"):
        noise = ImageNoise([0], (1, 200, 200))

        def denoise(x, level):
            return Prediction(level.alpha * x)

        ends[variance] = SAMPLERS["ddpm"](variance=variance)(denoise, noise(), steps, noise).std()
    assert ends["beta"] == pytest.approx(1, abs=0.01)
    assert ends["posterior"] < 0.95


@pytest.mark.parametrize(("place", "variance"), [(-1.0, "posterior"), (1.0, "beta")])
def test_a_learned_variance_at_an_end_of_its_range_is_that_end(place, variance):
    ends = []
    for said in ("learned", variance):
        noise = draws(40, (1, 2, 4, 4))

        def denoise(x, level):
            return MIXTURE(x, level)._replace(variance=torch.full_like(x, place))

        ends.append(SAMPLERS["ddpm"](variance=said)(denoise, noise(), uniform(LINEAR, 30), noise))
    torch.testing.assert_close(ends[0], ends[1])


def test_a_learned_variance_that_the_model_does_not_say_is_asked_for_in_vain():
    noise = ImageNoise([0], (2, 4, 4))
    with pytest.raises(ValueError, match="learned"):
        SAMPLERS["ddpm"](variance="learned")(MIXTURE, noise(), uniform(LINEAR, 5), noise)


@pytest.mark.parametrize("schedule", ["vp", "flow"])
def test_inversion_leads_to_noise_and_ddim_from_there_back_to_the_start(schedule):
    """With an error that halves when the steps are doubled; on ``flow`` the noise is at alpha = 0."""
    built = SCHEDULES[schedule]().build()
    noise = ImageNoise([0], (2, 20, 20))
    x0 = SAMPLERS["unipc"]()(MIXTURE, noise().double(), uniform(built, STEPS), noise)
    errors = []
    for steps in (100, 200, 400):
        grid = uniform(built, steps)
        x = ddim_inversion(MIXTURE, x0, grid)
        assert x.std() == pytest.approx(1, abs=0.05)
        errors.append((ddim(MIXTURE, x, grid, noise) - x0).square().mean().sqrt())
    assert errors[0] < 0.05
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_the_adaptive_solver_is_as_exact_as_it_is_asked_to_be(tolerance):
    schedule = SCHEDULES["vp"]().build()
    x, exact = BENCHMARK.problem(schedule)
    sampled = SAMPLERS["ode"](rtol=tolerance, atol=tolerance)(MIXTURE, x, BENCHMARK.even(schedule, 1), None)
    assert 0 < (sampled - exact).square().mean().sqrt() < 10 * tolerance


@pytest.mark.parametrize("schedule", ["vp", "ve", "flow", "cosine"])
def test_the_adaptive_solver_steps_over_no_picture_however_lax_it_is(schedule):
    """Where noise hides all, nothing changes and steps grow: none may be so long that it ends beyond what matters."""
    noise = ImageNoise([0], (2, 80, 80))
    grid = uniform(SCHEDULES[schedule]().build(), STEPS)
    x = SAMPLERS["ode"](rtol=0.3, atol=0.3)(MIXTURE, noise() * grid[0].sigma, grid, noise)
    assert distance(x) < 0.04


@pytest.mark.parametrize("kind", ["flow", "linear", "ve", "edm"])
def test_the_adaptive_solver_becomes_exact_however_few_levels_its_grid_has(kind):
    """A point of a normal keeps its place in it. ``ve`` and ``edm`` end with noise, which one step takes out."""
    mean, std = 0.6, 0.1
    schedule = SCHEDULES[kind]().build()
    grid = Grid([schedule.level(0.9), Level(0.0, 1.0, 0.0)], schedule)

    def normal(x, level):
        variance = level.alpha**2 * std**2 + level.sigma**2
        return Prediction(mean + level.alpha * std**2 / variance * (x - level.alpha * mean))

    x = grid[0].sigma * draws(1, (1, 2, 8, 8))()
    variances = [std**2 + level.nsr**2 for level in (grid[0], schedule.level(0.0))]
    exact = mean + std**2 / sqrt(variances[0] * variances[1]) * (x / grid[0].alpha - mean)
    for tolerance in (1e-4, 1e-5, 1e-6):
        sampled = SAMPLERS["ode"](rtol=tolerance, atol=tolerance)(normal, x, grid, None)
        assert 0 < (sampled - exact).square().mean().sqrt() < tolerance


def test_the_adaptive_solver_takes_no_step_that_is_not_exact_enough():
    """x0 jumps from 0 to 1 where nsr is 2; before, steps have grown long."""
    schedule = SCHEDULES["ve"]().build()
    start, end = schedule.level(schedule.t_at(20.0)), schedule.level(schedule.t_at(0.5))
    x = torch.full((1, 1, 2, 2), 30.0, dtype=torch.float64)

    def denoise(x, level):
        return Prediction(torch.full_like(x, float(level.nsr < 2)))

    got = SAMPLERS["ode"](rtol=1e-6, atol=1e-6)(denoise, x, Grid([start, end], schedule), None)
    torch.testing.assert_close(got, torch.full_like(x, 1 + (3 - 1) * 0.5 / 2), atol=1e-3, rtol=0)


def test_the_adaptive_solver_ends_when_the_network_says_no_number():
    noise = ImageNoise([0], (2, 4, 4))
    with pytest.raises(ValueError, match="not a number at sigma / alpha"):
        SAMPLERS["ode"]()(lambda x, level: Prediction(x * float("nan")), noise(), uniform(LINEAR, 5), noise)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edm", {"s_max": float("inf")}),
        ("dpm_solver", {"multistep": True, "order": 3, "lower_order_final": False}),
        ("dpm_solver_pp", {"order": 3, "lower_order_final": False}),
        ("dpm_solver_pp", {"order": 3, "lower_order_final": False, "eta": 1.0}),
        ("unipc", {"order": 3, "variant": "bh1", "lower_order_final": False}),
        ("deis", {"order": 4, "variable": "log_rho", "lower_order_final": False}),
    ],
)
def test_no_option_breaks_steps_from_no_signal_or_to_no_noise(name, options):
    noise = ImageNoise([0], (2, 40, 40))
    grid = uniform(SCHEDULES["flow"]().build(), 30)
    x = SAMPLERS[name](**options)(MIXTURE, noise(), grid, noise)
    assert distance(x) < 0.08


@pytest.mark.parametrize(
    ("of_noise", "eta"), [(False, 0.0), (False, 0.5), (False, 1.0), (True, 0.0)], ids=["x0", "half", "sde", "noise"]
)
def test_a_third_order_step_is_exact_for_a_prediction_quadratic_in_log_snr(of_noise, eta):
    """Beside scipy's quadrature of the integral that the step is: of the variance that is kept, for the SDE."""
    schedule = SCHEDULES["ve"]().build()
    grid = Grid([schedule.level(schedule.t_at(nsr)) for nsr in (9.0, 5.0, 2.0, 1.2)], schedule)

    def says(place):
        return 0.3 + 0.8 * place - 0.5 * place**2

    def denoise(x, level):
        said = says(level.log_snr / 2)
        return Prediction(x - level.sigma * said if of_noise else torch.full_like(x, said))

    seen = []

    def watched(x, level):
        seen.append(x)
        return denoise(x, level)

    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    options = {"order": 3, "of_noise": of_noise, "eta": eta, "lower_order_final": False}
    end = multistep(watched, x, grid, lambda: torch.zeros_like(x), **options)
    now, to = grid[2], grid[3]
    if of_noise:  # dx / d sigma = noise, where alpha is 1
        expected = seen[2] + quad(lambda sigma: says(-np.log(sigma)), now.sigma, to.sigma)[0]
    else:
        start, length = -np.log(now.sigma), np.log(now.sigma / to.sigma)
        kept, _ = renewed(now, to, eta)
        tilt = np.log(now.sigma / kept.sigma)
        mean = quad(lambda u: says(start + u * length) * tilt * np.exp(tilt * (u - 1)), 0, 1)[0] / -np.expm1(-tilt)
        expected = move(seen[2], mean, now, kept)
    torch.testing.assert_close(end, torch.as_tensor(expected).expand_as(end), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": -0.5}),
        ("ddpm", {"variance": "small"}),
        ("euler_ancestral", {"eta": -0.1}),
        ("edm", {"churn": -1.0}),
        ("edm", {"s_min": 2.0, "s_max": 1.0}),
        ("edm", {"s_noise": 0.0}),
        ("deis", {"order": 5}),
        ("deis", {"variable": "s"}),
        ("dpm_solver", {"order": 4}),
        ("dpm_solver_pp", {"order": 0}),
        ("dpm_solver_pp", {"eta": float("inf")}),
        ("dpm_solver_pp", {"eta": 2.5, "order": 3}),
        ("dpm_solver_pp", {"eta": 1.0, "multistep": False}),
        ("unipc", {"order": 4}),
        ("unipc", {"variant": "bh3"}),
        ("predictor_corrector", {"corrections": -1}),
        ("predictor_corrector", {"snr": 0.0}),
        ("annealed_langevin", {"repeats": 0}),
        ("annealed_langevin", {"step": 4.0}),
        ("ode", {"rtol": 0.0}),
        ("ode", {"atol": 1.0}),
    ],
)
def test_impossible_options_are_refused_by_value(name, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        SAMPLERS[name](**options)


@pytest.mark.parametrize(("name", "options"), [("dpm_solver", {}), ("dpm_solver_pp", {"multistep": False})])
def test_a_singlestep_solver_refuses_what_is_of_multistep_ones(name, options):
    with pytest.raises(ValueError, match="lower_order_final=false is for multistep solvers only; try multistep=true"):
        SAMPLERS[name](**options, lower_order_final=False)
    assert not SAMPLERS[name](multistep=True, lower_order_final=False).lower_order_final


def test_an_images_draws_depend_on_its_seed_alone():
    alone, batch = ImageNoise([7], (2, 4, 4)), ImageNoise([5, 6, 7], (2, 4, 4))
    for _ in range(3):
        assert torch.equal(alone()[0], batch()[2])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [16, 60])
def test_every_sampler_starts_well_where_next_to_no_signal_is_left(name, steps):
    """The cosine table ends at a sigma / alpha of 20,000, and its grid goes on at 16 or 62."""
    noise = ImageNoise([0], (2, 40, 40))
    grid = uniform(SCHEDULES["cosine"]().build(), steps)
    x = SAMPLERS[name]()(MIXTURE, noise(), grid, noise)
    assert distance(x) < 0.15


@pytest.mark.parametrize("name", ["euler_maruyama", "predictor_corrector"])
@pytest.mark.parametrize("schedule", ["ve", "edm", "subvp", "cosine"])
@pytest.mark.parametrize("grid", ["uniform", "leading", "karras"])
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_few_steps_of_the_reverse_sde_do_not_leave_the_data(name, schedule, grid, steps):
    noise = ImageNoise([0], (2, 40, 40))
    levels = GRIDS[grid]()(SCHEDULES[schedule]().build(), steps)
    x = SAMPLERS[name]()(MIXTURE, levels[0].sigma * noise(), levels, noise)
    assert x.abs().max() < 10
