"""Targets: every one inverts to x0."""

import pytest
import torch

from ldm.diffusion.process import noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, posterior_mean, regressed, to_x0
from ldm.types import Level


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_posterior_mean_of_pure_noise_is_alpha_x0(as_tensor):
    schedule = SCHEDULES["cosine"](zero_snr=True).build()
    level = schedule.level(torch.ones(1) if as_tensor else 1.0)
    assert float(level.alpha) == 0
    a, b = (float(part) for part in posterior_mean(schedule)(level))
    assert (a, b) == (pytest.approx(schedule.level(0.999).alpha, rel=1e-4), 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_inverts_to_x0(target, schedule):
    level = SCHEDULES[schedule]().build().level(torch.tensor([0.05, 0.3, 0.7, 0.9]))
    x0, noise = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    x = noised(x0, noise, level)
    said = regressed(TARGETS[target], x0, noise, level)
    torch.testing.assert_close(to_x0(TARGETS[target], said, x, level), x0, atol=1e-3, rtol=1e-3)


def test_v_is_alpha_noise_minus_sigma_x0():
    level = SCHEDULES["cosine"]().build().level(0.4)
    x0, noise = torch.randn(2, 1, 3, 4, 4)
    expected = level.alpha * noise - level.sigma * x0
    torch.testing.assert_close(regressed(TARGETS["v"], x0, noise, level), expected)


def test_flow_is_noise_minus_x0():
    level = SCHEDULES["cosine"]().build().level(0.4)
    x0, noise = torch.randn(2, 1, 3, 4, 4)
    torch.testing.assert_close(regressed(TARGETS["flow"], x0, noise, level), noise - x0)


def test_flow_is_the_velocity_of_the_straight_line_and_all_targets_tell_the_same_x0():
    """On x = (1 - t) x0 + t noise the velocity dx / dt is noise - x0, and every target tells the same x0."""
    t = 0.3
    level = Level(t, 1 - t, t)
    x0, noise = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    x = noised(x0, noise, level)
    for target in ("flow", "v", "eps", "score", "edm"):
        said = regressed(TARGETS[target], x0, noise, level)
        torch.testing.assert_close(to_x0(TARGETS[target], said, x, level), x0)
    h = 1e-6
    later = noised(x0, noise, Level(t + h, 1 - t - h, t + h))
    torch.testing.assert_close((later - x) / h, regressed(TARGETS["flow"], x0, noise, level), atol=1e-6, rtol=1e-6)


def test_flow_and_v_are_the_same_up_to_scale_and_shift_on_the_straight_line():
    """v = (1 - 2 t) x + (alpha^2 + sigma^2) flow; so each tells the other of any network, whatever it says."""
    level = SCHEDULES["flow"]().build().level(torch.tensor([0.01, 0.3, 0.5, 0.99]).double())
    x0, noise, said = torch.randn(3, 4, 3, 4, 4, dtype=torch.float64)
    x = noised(x0, noise, level)
    shift, scale = 1 - 2 * level.t.view(-1, 1, 1, 1), level.norm**2
    flow = regressed(TARGETS["flow"], x0, noise, level)
    torch.testing.assert_close(regressed(TARGETS["v"], x0, noise, level), shift * x + scale * flow)
    as_v = shift * x + scale * said
    torch.testing.assert_close(to_x0(TARGETS["v"], as_v, x, level), to_x0(TARGETS["flow"], said, x, level))


def test_score_is_the_gradient_of_the_log_density_given_x0():
    level = SCHEDULES["linear"]().build().level(0.4)
    x0, noise = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    x = noised(x0, noise, level).requires_grad_()
    log_density = -((x - level.alpha * x0) ** 2).sum() / (2 * level.sigma**2)
    (gradient,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(gradient, regressed(TARGETS["score"], x0, noise, level))


def test_score_and_noise_prediction_are_the_same_network_scaled():
    level = SCHEDULES["linear"]().build().level(0.6)
    x, said = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        to_x0(TARGETS["score"], -said / level.sigma, x, level), to_x0(TARGETS["eps"], said, x, level)
    )


def test_edm_is_v_with_its_sign_turned_where_the_variance_is_preserved():
    level = SCHEDULES["cosine"]().build().level(torch.tensor([0.1, 0.5, 0.9]))
    x0, noise = torch.randn(2, 3, 3, 4, 4)
    torch.testing.assert_close(
        regressed(TARGETS["edm"], x0, noise, level), -regressed(TARGETS["v"], x0, noise, level), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("nsr", [0.05, 1.0, 40.0])
def test_edm_is_karras_preconditioning_on_levels_whose_signal_is_one(nsr):
    """c_skip, c_out of arXiv:2206.00364, Table 1, with sigma_data = 1."""
    skip, out = 1 / (nsr**2 + 1), nsr / (nsr**2 + 1) ** 0.5
    x0, noise = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    level = Level(0.5, 1.0, nsr)
    expected = (x0 - skip * noised(x0, noise, level)) / out
    torch.testing.assert_close(regressed(TARGETS["edm"], x0, noise, level), expected)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_posterior_mean_is_ddpms(as_tensor):
    schedule = SCHEDULES["linear"]().build()
    now, to = schedule.level(0.4), schedule.level(0.399)
    level = schedule.level(torch.tensor([0.4], dtype=torch.float64)) if as_tensor else now
    beta = 1 - (now.alpha / to.alpha) ** 2
    x0, noise = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    x = noised(x0, noise, now)
    mean = to.alpha * beta / now.sigma**2 * x0 + (1 - beta) ** 0.5 * to.sigma**2 / now.sigma**2 * x  # eq. 7
    target = posterior_mean(schedule)
    said = regressed(target, x0, noise, level)
    torch.testing.assert_close(said, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(to_x0(target, regressed(target, x0, noise, now), x, now), x0)
