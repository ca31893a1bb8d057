"""Closed forms against the equations that they solve, their differential equations, and the learned schedule."""

from math import exp, log

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler
from scipy.integrate import quad

from ldm.diffusion.learned import LearnedConfig, ListedConfig, fit, on_lines, variance_step
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.sde import drift_and_diffusion
from ldm.diffusion.times import TIMES as DISTRIBUTIONS
from ldm.diffusion.times import evenly_spread
from ldm.samplers import SAMPLERS

TIMES = [0.02, 0.3, 0.5, 0.77, 0.98]


def beta(t):
    return 0.1 + t * 19.9


@pytest.mark.parametrize("t", TIMES)
def test_vp_and_subvp_hold_the_integral_of_beta(t):
    integral = quad(beta, 0, t)[0]
    vp, subvp = SCHEDULES["vp"]().build().level(t), SCHEDULES["subvp"]().build().level(t)
    assert vp.alpha == pytest.approx(exp(-integral / 2)) == subvp.alpha
    assert vp.sigma**2 == pytest.approx(1 - exp(-integral))
    assert subvp.sigma == pytest.approx(1 - exp(-integral))


@pytest.mark.parametrize("t", TIMES)
def test_vp_is_the_limit_of_the_linear_table(t):
    vp, errors = SCHEDULES["vp"]().build().level(t), []
    for steps in (1_000, 10_000):
        table = SCHEDULES["linear"](steps=steps, beta_start=0.1 / steps, beta_end=20 / steps).build()
        errors.append(abs(log(table.level(t).alpha / vp.alpha)))
    assert errors[1] < errors[0] / 8 and errors[0] < 0.05


def test_ve_edm_and_flow_are_diffusers_levels():
    ve, edm = SCHEDULES["ve"]().build(), SCHEDULES["edm"](sigma_min=0.002, sigma_max=80.0).build()
    theirs = ScoreSdeVeScheduler(num_train_timesteps=11, sigma_min=0.01, sigma_max=50.0, sampling_eps=0.0)
    ours = [ve.level(i / 10).sigma for i in range(11)]
    np.testing.assert_allclose(ours, theirs.discrete_sigmas, rtol=1e-5)
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, num_train_timesteps=10)
    np.testing.assert_allclose([edm.level(1 - i / 10).sigma for i in range(11)], theirs.sigmas[:-1], rtol=1e-5)
    for shift in (1.0, 3.0):
        flow = SCHEDULES["flow"](shift=shift).build()
        theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=20, shift=shift).sigmas[:20]
        np.testing.assert_allclose([flow.level(1 - i / 20).sigma for i in range(20)], theirs, rtol=1e-6)


def test_edms_numbers_are_the_papers_for_data_of_unit_variance():
    """Karras et al. 2022 (arXiv:2206.00364), Table 1 and 5: theirs are for data of standard deviation 0.5."""
    schedule, churned, times = SCHEDULES["edm"](), SAMPLERS["edm"](), DISTRIBUTIONS["log_normal"]()
    ours = [schedule.sigma_min, schedule.sigma_max, churned.s_min, churned.s_max]
    assert ours == pytest.approx([0.002 / 0.5, 80 / 0.5, 0.05 / 0.5, 50 / 0.5])
    assert times.mean == pytest.approx(-1.2 - log(0.5), abs=0.01)


def test_flows_shift_multiplies_the_ratio_of_noise_to_signal():
    for t in TIMES:
        assert SCHEDULES["flow"](shift=3.0).build().level(t).nsr == pytest.approx(3 * t / (1 - t))


@pytest.mark.parametrize("t", TIMES)
def test_the_sdes_of_the_closed_forms_are_those_of_their_papers(t):
    def sde(name):
        return drift_and_diffusion(SCHEDULES[name]().build(), t)

    assert sde("vp") == pytest.approx((-beta(t) / 2, beta(t)), rel=1e-6)
    assert sde("subvp") == pytest.approx((-beta(t) / 2, beta(t) * (1 - exp(-2 * quad(beta, 0, t)[0]))), rel=1e-6)
    assert sde("ve") == pytest.approx((0, 2 * log(5_000) * (0.01 * 5_000**t) ** 2), rel=1e-6, abs=1e-12)
    assert sde("flow") == pytest.approx((-1 / (1 - t), 2 * t / (1 - t)), rel=1e-6)


def test_the_sde_of_a_table_has_its_beta():
    betas = np.linspace(1e-4, 0.02, 1_000)
    for n in (0, 123, 999):
        drift, diffusion = drift_and_diffusion(SCHEDULES["linear"]().build(), (n + 0.5) / 1_000)
        rate = -1_000 * log(1 - betas[n])  # of the process that beta_n is one step of
        assert (drift, diffusion) == pytest.approx((-rate / 2, rate), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_walk_along_the_sde_has_the_schedules_marginals(name):
    schedule, rng, steps, end, x0 = SCHEDULES[name]().build(), np.random.default_rng(0), 400, 0.9, 1.5
    start = schedule.level(0.0)
    x = start.alpha * x0 + start.sigma * rng.standard_normal(20_000)
    dt = end / steps
    for i in range(steps):  # Euler-Maruyama
        drift, diffusion = drift_and_diffusion(schedule, (i + 0.5) * dt)
        x = x + drift * x * dt + (diffusion * dt) ** 0.5 * rng.standard_normal(x.shape)
    level = schedule.level(end)
    assert x.mean() == pytest.approx(level.alpha * x0, abs=0.03 * max(level.sigma, 1))
    assert x.std() == pytest.approx(level.sigma, rel=0.03)


def test_the_sde_has_ends_unless_no_signal_is_left():
    assert drift_and_diffusion(SCHEDULES["vp"]().build(), 0.0) == pytest.approx((-0.05, 0.1), rel=1e-3)
    assert drift_and_diffusion(SCHEDULES["vp"]().build(), 1.0) == pytest.approx((-10, 20), rel=1e-3)
    with pytest.raises(ValueError, match=r"t 1.0 is where alpha is 0.*try t=0.999"):
        drift_and_diffusion(SCHEDULES["flow"]().build(), 1.0)


def learned(**values):
    return LearnedConfig(**{"units": 64, **values}).build()


def moved(schedule, size):
    """``schedule`` with random numbers added to its parameters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return schedule


@pytest.mark.parametrize("size", [0.0, 1.0, 3.0])
def test_a_learned_schedule_is_monotone_between_exact_ends_whatever_its_parameters(size):
    schedule = moved(learned(gamma_0=-9.0, gamma_1=4.0), size)
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    with torch.no_grad():
        gamma, rate = schedule.gamma(t), schedule.rate(t)
    assert (gamma[0].item(), gamma[-1].item()) == pytest.approx((-9.0, 4.0), abs=1e-12)
    assert (gamma.diff() > 0).all() and (rate > 0).all()
    levels = [schedule.level(x.item()) for x in t[::50]]
    np.testing.assert_allclose([level.log_snr for level in levels], -gamma[::50], atol=1e-9)
    np.testing.assert_allclose([level.alpha**2 + level.sigma**2 for level in levels], 1, atol=1e-12)
    for x, level in zip(t[::50], levels, strict=True):
        assert schedule.t_at(level.nsr) == pytest.approx(x.item(), abs=1e-7)
    assert schedule.t_at(0.0) == 0 and schedule.t_at(1e9) == pytest.approx(1) and schedule.t_at(float("inf")) == 1


def test_a_learned_schedules_rate_is_its_derivative():
    schedule = moved(learned(), 0.5)
    t = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(schedule.gamma(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t), expected)


def test_levels_of_tensors_move_every_parameter_of_a_learned_schedule():
    schedule = learned()
    level = schedule.level(torch.tensor([0.2, 0.7]))
    assert level.alpha.shape == (2, 1, 1, 1)
    (level.alpha + 2 * level.sigma).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in schedule.parameters())


def test_fitting_makes_the_loss_nearly_the_same_at_every_time():
    other = torch.nn.Parameter(torch.ones(()))  # stands for the network, which must not be moved along

    def integrand(level):
        return other * (torch.exp(-((level.log_snr - 2) ** 2) / 8) + 0.05).flatten()

    def losses():
        t = torch.linspace(0, 1, 501)
        with torch.no_grad():
            return integrand(schedule.level(t)) * schedule.rate(t)

    schedule, generator = learned(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.03)
    before = losses()
    told = [variance_step(schedule, optimizer, integrand, evenly_spread(64, generator)) for _ in range(300)]
    after = losses()
    assert before.std() / before.mean() > 1
    assert after.std() / after.mean() < 0.25
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=0.01)  # what the bound is does not change
    assert told[0] == pytest.approx(before.square().mean().item(), rel=0.05)
    assert told[-1] == pytest.approx(after.square().mean().item(), rel=0.05)
    assert other.grad is None


def test_a_fitted_schedule_passes_by_as_fast_as_the_loss_is_small():
    schedule = learned(gamma_0=-4.0, gamma_1=4.0)

    def size(level):
        return 1 / (1 + torch.exp(-level.log_snr)).flatten()  # large where little noise is

    before, after = fit(schedule, size)
    gamma = torch.linspace(-4, 4, 10_001)
    mean = torch.trapezoid(1 / (1 + gamma.exp()), gamma).item()  # of size * rate over times, whatever the schedule
    assert after == pytest.approx(mean**2, rel=0.05)  # so it is even: a mean square is at least the mean's square
    assert before > 1.4 * after


def test_a_listed_schedule_goes_through_its_values_on_straight_lines():
    schedule = ListedConfig([-6.0, -5.0, 1.0, 4.0]).build()
    log_snr = [schedule.level(t).log_snr for t in (0.0, 1 / 3, 2 / 3, 1.0, 0.5, 5 / 6)]
    assert log_snr == pytest.approx([6, 5, -1, -4, 2, -2.5])
    assert schedule.level(0.7).alpha ** 2 + schedule.level(0.7).sigma ** 2 == pytest.approx(1)
    for t in (0.1, 0.5, 0.9):
        assert schedule.t_at(schedule.level(t).nsr) == pytest.approx(t)
    lines = on_lines(torch.tensor([-1.0, 0.25, 2.0]), torch.tensor([1.0, 2.0, 4.0]))
    assert lines.tolist() == [1.0, 1.5, 4.0]


@pytest.mark.parametrize("gamma", [[], [1.0], [1.0, 1.0], [2.0, 1.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_a_list_that_does_not_rise_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma .* is not two or more rising numbers; try gamma=\[-13.3,5\]"):
        ListedConfig(gamma)


@pytest.mark.parametrize("values", [{"gamma_0": 5.0}, {"gamma_1": float("nan")}, {"units": 0}])
def test_impossible_learned_schedules_are_refused(values):
    with pytest.raises(ValueError, match="gamma_0 .* is not below|units 0"):
        LearnedConfig(**values)
