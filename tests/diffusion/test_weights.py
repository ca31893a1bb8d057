"""Weights in closed form, across all targets; and the times that a batch is trained at."""

from math import log

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from ldm.diffusion.grids import CLEAN
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, gain, regressed, to_x0
from ldm.diffusion.times import TIMES, ImportanceConfig, evenly_spread
from ldm.diffusion.vlb import continuous_bound
from ldm.diffusion.weights import WEIGHTS, MinSNRConfig, P2Config, rate
from ldm.types import Grid, Level, Prediction

SCHEDULE = SCHEDULES["cosine"]().build()
T = torch.tensor([0.05, 0.3, 0.6, 0.9])
LEVEL = SCHEDULE.level(T)
SNR = (LEVEL.alpha / LEVEL.sigma) ** 2
RATE = rate(SCHEDULE, T)


@pytest.mark.parametrize("target", TARGETS)
def test_gain_turns_errors_of_x0_into_errors_of_f(target):
    x0, wrong, noise = torch.randn(3, 4, 1, 2, 2, dtype=torch.float64)
    x = LEVEL.alpha * x0 + LEVEL.sigma * noise
    said = regressed(TARGETS[target], wrong, (x - LEVEL.alpha * wrong) / LEVEL.sigma, LEVEL)
    error = said - regressed(TARGETS[target], x0, noise, LEVEL)
    torch.testing.assert_close(to_x0(TARGETS[target], said, x, LEVEL), wrong, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(error.abs(), (gain(TARGETS[target], LEVEL) * (wrong - x0)).abs(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("x0", lambda snr, gamma: snr.clamp(max=gamma)),
        ("eps", lambda snr, gamma: (gamma / snr).clamp(max=1)),
        ("v", lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1)),
        ("edm", lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1)),
        ("score", lambda snr, gamma: (gamma / snr).clamp(max=1) * LEVEL.sigma**2),
        ("flow", lambda snr, gamma: snr.clamp(max=gamma) / (snr.sqrt() + 1) ** 2),
    ],
)
def test_min_snr_in_closed_form_for_every_target(target, expected):
    got = MinSNRConfig(gamma=5.0).on_f(TARGETS[target], LEVEL, RATE)
    torch.testing.assert_close(got, expected(SNR, 5.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", sorted(WEIGHTS.keys() - {"plain"}))
@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_means_the_same_whatever_the_target(weight, target):
    """The weighted squared error of one and the same wrong x0 does not depend on what the network regresses."""
    x0, wrong, noise = torch.randn(3, 4, 1, 2, 2, dtype=torch.float64)
    x = LEVEL.alpha * x0 + LEVEL.sigma * noise
    implied = (x - LEVEL.alpha * wrong) / LEVEL.sigma
    error = regressed(TARGETS[target], wrong, implied, LEVEL) - regressed(TARGETS[target], x0, noise, LEVEL)
    got = WEIGHTS[weight]().on_f(TARGETS[target], LEVEL, RATE) * error**2
    torch.testing.assert_close(got, WEIGHTS[weight]().on_x0(SNR, RATE) * (wrong - x0) ** 2, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("weight", "target"), [("simple", "eps"), ("edm", "edm"), ("plain", "x0"), ("plain", "flow")])
def test_the_own_target_of_a_weight_is_weighted_by_one(weight, target):
    got = torch.as_tensor(WEIGHTS[weight]().on_f(TARGETS[target], LEVEL, RATE)).expand(4, 1, 1, 1)
    torch.testing.assert_close(got, torch.ones(4, 1, 1, 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("gamma", "k"), [(1.0, 1.0), (0.5, 2.0)])
def test_p2_in_closed_form(gamma, k):
    """Choi et al. 2022 (arXiv:2204.00227), eq. 8: beside the simple loss, whose weight on the noise is 1."""
    got = WEIGHTS["p2"](gamma=gamma, k=k).on_f(TARGETS["eps"], LEVEL, RATE)
    torch.testing.assert_close(got, 1 / (k + SNR) ** gamma, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_sigmoid_in_closed_form_on_the_cosine(bias):
    """Half of sigmoid(bias - log snr) -d log snr / dt on the noise, where snr = 1 / tan^2(pi t / 2).

    Kingma & Gao 2023 (arXiv:2303.00848), Sec. 4.
    """
    half = torch.pi * T / 2
    expected = 0.5 * 2 * torch.pi / torch.sin(2 * half) / (1 + torch.exp(torch.tensor(-bias)) / torch.tan(half) ** 2)
    schedule = SCHEDULES["cosine"](offset=1e-6).build()
    got = WEIGHTS["sigmoid"](bias=bias).on_f(TARGETS["eps"], schedule.level(T), rate(schedule, T))
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-2, atol=0)


def test_vlb_in_closed_form_on_the_straight_line():
    """Half of -d snr / dt on x0 (Kingma et al. 2021, arXiv:2107.00630, eq. 17), where snr = (1 / t - 1)^2."""
    schedule = SCHEDULES["flow"]().build()
    got = WEIGHTS["vlb"]().on_f(TARGETS["x0"], schedule.level(T), rate(schedule, T))
    torch.testing.assert_close(got.flatten(), (1 - T) / T**3, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["flow", "cosine", "ve"])
def test_the_loss_weighted_by_vlb_is_the_continuous_bound_on_every_schedule(kind):
    """Its mean over t, of an error of x0 that depends on the level: half of log(1 + snr), from one end to the other."""
    schedule, x0 = SCHEDULES[kind]().build(), torch.zeros(1, 1, 2, 2)
    first, last = 0.95, 0.05
    grid = Grid([schedule.level(first), schedule.level(last), CLEAN], schedule)

    def error(level):
        return level.sigma / level.norm

    def denoise(x, level):
        return Prediction(x0 + error(level))

    generator = torch.Generator().manual_seed(0)
    bound = continuous_bound(denoise, x0, grid, lambda: x0, generator, evaluations=2_000).steps.sum()
    t = last + (first - last) * (torch.arange(4_000) + 0.5) / 4_000
    level = schedule.level(t)
    weighted = WEIGHTS["vlb"]().on_f(TARGETS["x0"], level, rate(schedule, t)) * error(level) ** 2
    snrs = [1 / grid[i].nsr ** 2 for i in (0, 1)]
    expected = 0.5 * log((1 + snrs[1]) / (1 + snrs[0]))
    assert float((first - last) * weighted.mean()) == pytest.approx(expected, rel=5e-3)
    assert float(bound) * log(2) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("weight", sorted(WEIGHTS.keys() - {"plain"}))
def test_a_weight_looks_at_the_rate_where_it_says_so_and_nowhere_else(weight):
    made = WEIGHTS[weight]()
    slow, fast = (torch.as_tensor(made.on_x0(SNR, passing)) for passing in (RATE, 2 * RATE))
    assert torch.equal(slow, fast) == (not made.by_rate)


def test_p2_without_gamma_is_the_simple_loss():
    got = P2Config(gamma=0.0).on_f(TARGETS["v"], LEVEL, RATE)
    torch.testing.assert_close(got, WEIGHTS["simple"]().on_f(TARGETS["v"], LEVEL, RATE))


def test_the_rate_is_that_of_the_cosine_in_closed_form():
    """log snr = -2 log tan(pi t / 2) but for the offset, whose derivative is -2 pi / sin(pi t)."""
    schedule = SCHEDULES["cosine"](offset=1e-6).build()
    expected = 2 * torch.pi / torch.sin(torch.pi * T)
    torch.testing.assert_close(rate(schedule, T).flatten(), expected, rtol=5e-3, atol=0)


def test_the_rate_is_right_next_to_the_data():
    t = torch.tensor([1e-4, 3e-4, 1e-3, 1e-2])
    low, high = 0.1, 20.0
    fall = (low + (high - low) * t.double()) / -(-(low * t.double() + 0.5 * (high - low) * t.double() ** 2)).expm1()
    torch.testing.assert_close(rate(SCHEDULES["vp"]().build(), t).flatten().double(), fall, rtol=0.02, atol=0)


def vp_rate(t, low=0.1, high=20.0):
    return (low + (high - low) * t) / -np.expm1(-(low * t + 0.5 * (high - low) * t**2))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (SCHEDULES["flow"](), lambda t: 2 / (t * (1 - t))),
        (SCHEDULES["vp"](), vp_rate),
        (SCHEDULES["ve"](), lambda t: 2 * np.log(5_000) + 0 * t),
        (SCHEDULES["edm"](), lambda t: 14 / (t + 0.004 ** (1 / 7) / (160 ** (1 / 7) - 0.004 ** (1 / 7)))),
        (SCHEDULES["listed"](gamma=[-13.0, 5.0, 5.01]), lambda t: 0.02 + 0 * t),
    ],
    ids=["flow", "vp", "ve", "edm", "listed"],
)
def test_the_rate_is_right_next_to_the_noise(schedule, expected):
    """After 0.999 it is that of 0.999, for the straight line's is without bound."""
    t = torch.tensor([0.9, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0])
    got = rate(schedule.build(), t).flatten().numpy()
    np.testing.assert_allclose(got, expected(t.double().clamp(max=0.999).numpy()), rtol=1e-3)


def test_weights_are_finite_where_a_schedule_hides_everything_long_before_its_end():
    schedule, t = SCHEDULES["vp"](beta_max=5_000.0).build(), torch.tensor([0.5, 0.9, 1.0])
    assert schedule.level(t).alpha[1] == 0
    for name in ("vlb", "sigmoid"):
        got = WEIGHTS[name]().on_f(TARGETS["v"], schedule.level(t), rate(schedule, t))
        assert got.isfinite().all() and (got >= 0).all(), name


def test_weights_are_finite_where_no_signal_is_left():
    level = Level(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    for name, weight in WEIGHTS.items():
        got = torch.as_tensor(weight().on_f(TARGETS["v"], level, torch.ones(1, 1, 1, 1)))
        assert got.isfinite().all() and (got >= 0).all(), name


@pytest.mark.parametrize("change", [{"gamma": 0.0}, {"gamma": float("nan")}])
def test_an_impossible_gamma_is_refused(change):
    with pytest.raises(ValueError, match="gamma"):
        MinSNRConfig(**change)


def test_evenly_spread_numbers_are_uniform_and_one_in_each_part():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([evenly_spread(16, generator) for _ in range(400)])
    assert ((drawn > 0) & (drawn <= 1)).all()
    assert ((drawn.sort(dim=1).values * 16).ceil() - 1 == torch.arange(16)).float().mean() > 0.999
    assert kstest(drawn[:, 0].numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("name", TIMES)
def test_times_lie_in_their_range_and_follow_the_generator(name):
    sampler = TIMES[name]().build(SCHEDULE)
    first = sampler(256, torch.Generator().manual_seed(1))
    again = sampler(256, torch.Generator().manual_seed(1))
    assert torch.equal(first.t, again.t) and first.t.shape == first.weight.shape == (256,)
    assert ((first.t > 0) & (first.t <= 1)).all() and (first.weight > 0).all()


def test_logit_normal_times_are_normal_through_the_logit():
    sampler = TIMES["logit_normal"](mean=0.5, std=0.8).build(SCHEDULE)
    t = sampler(4000, torch.Generator().manual_seed(0)).t.double()
    assert kstest(torch.logit(t).numpy(), norm(0.5, 0.8).cdf).pvalue > 0.01


def test_log_normal_times_have_normal_log_ratios():
    sampler = TIMES["log_normal"](mean=-0.5, std=0.7).build(SCHEDULE)
    t = sampler(2000, torch.Generator().manual_seed(0)).t
    ratios = [SCHEDULE.level(float(one)).nsr for one in t]
    assert kstest(torch.tensor(ratios).log().numpy(), norm(-0.5, 0.7).cdf).pvalue > 0.01


def test_importance_prefers_large_losses_and_keeps_the_mean():
    sampler = ImportanceConfig(bands=4, history=2).build(SCHEDULE)
    size = torch.tensor([1.0, 2.0, 3.0, 10.0])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(sampler.shares(), torch.full((4,), 0.25))
    for _ in range(4):
        t = sampler(8, generator).t
        sampler.observe(t, size[(t * 4).ceil().long() - 1])
    torch.testing.assert_close(sampler.shares(), size / size.sum(), atol=2e-3, rtol=0)
    times = sampler(4000, generator)
    losses = size[(times.t * 4).ceil().long() - 1]
    assert (times.weight * losses).mean() == pytest.approx(float(size.mean()), rel=0.01)
    assert (times.weight * losses).std() < 0.05, "weighted by 1 / p, every loss counts alike"


def test_importance_goes_by_the_root_of_the_mean_square_of_the_last_losses():
    """iDDPM, eq. 18: not by their mean, which is 2 in both bands here."""
    sampler = ImportanceConfig(bands=2, history=2, uniform=1e-9).build(SCHEDULE)
    sampler.observe(torch.tensor([0.2, 0.3, 0.7, 0.8]), torch.tensor([1.0, 3.0, 2.0, 2.0]))
    sizes = torch.tensor([5**0.5, 2.0])
    torch.testing.assert_close(sampler.shares(), sizes / sizes.sum())


def test_importance_learns_nothing_from_losses_that_are_not_finite():
    """Fault 19."""
    sampler = ImportanceConfig(bands=4, history=1).build(SCHEDULE)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    sampler.observe(t, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    before = sampler.shares()
    sampler.observe(t, torch.tensor([float("nan"), float("inf"), 3.0, float("nan")]))
    assert torch.equal(sampler.shares(), before)


def test_importance_goes_on_from_its_state():
    sampler = ImportanceConfig(bands=4, history=2).build(SCHEDULE)
    sampler.observe(torch.linspace(0.01, 1, 64), torch.rand(64))
    other = ImportanceConfig(bands=4, history=2).build(SCHEDULE)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other(32, torch.Generator().manual_seed(3)).t, sampler(32, torch.Generator().manual_seed(3)).t)
