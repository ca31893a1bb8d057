"""Schedules against diffusers' tables, and against the identities that every VP schedule keeps."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ldm.diffusion.schedules import SCHEDULES

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_table_is_diffusers_table(name):
    config = SCHEDULES[name]()
    betas = {} if name == "cosine" else {"beta_start": config.beta_start, "beta_end": config.beta_end}
    theirs = DDPMScheduler(num_train_timesteps=config.steps, beta_schedule=NAMES[name], **betas).alphas_cumprod
    ours = np.array([config.build().level((n + 1) / config.steps).alpha ** 2 for n in range(config.steps)])
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_variance_is_preserved_and_signal_falls_from_data_to_noise(name):
    schedule = SCHEDULES[name]().build()
    levels = [schedule.level(float(t)) for t in np.linspace(0, 1, 333)]
    assert levels[0][1:] == (1.0, 0.0)
    np.testing.assert_allclose([level.alpha**2 + level.sigma**2 for level in levels], 1, atol=1e-12)
    assert (np.diff([level.alpha for level in levels]) < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_tensor_times_give_what_float_times_give(name):
    schedule = SCHEDULES[name]().build()
    times = torch.tensor([0.0, 0.0003, 0.1, 0.5, 0.99999, 1.0])
    level = schedule.level(times)
    assert level.alpha.shape == (6, 1, 1, 1)
    singles = [schedule.level(float(t)) for t in times]
    np.testing.assert_allclose(level.alpha.flatten(), [one.alpha for one in singles], atol=1e-6)
    np.testing.assert_allclose(level.sigma.flatten(), [one.sigma for one in singles], atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_t_at_inverts_level(name):
    schedule = SCHEDULES[name]().build()
    for t in (1e-5, 0.01, 0.37, 0.9, 0.999):
        assert schedule.t_at(schedule.level(t).nsr) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_multiplies_the_ratio_of_noise_to_signal(shift):
    plain, shifted = SCHEDULES["cosine"]().build(), SCHEDULES["cosine"](shift=shift).build()
    for t in (0.001, 0.1, 0.5, 0.9, 0.99):
        assert shifted.level(t).nsr == pytest.approx(shift * plain.level(t).nsr)


@pytest.mark.parametrize("shift", [0.0, -1.0, 1e-3, 1e3, float("nan"), float("inf")])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ValueError, match=r"shift .* is not a number from 0.01 to 100; try shift=1"):
        SCHEDULES["cosine"](shift=shift)


@pytest.mark.parametrize("values", [{"steps": 0}, {"beta_end": 1.5}, {"beta_start": 0.0}])
def test_impossible_tables_are_refused(values):
    with pytest.raises(ValueError, match="beta|steps"):
        SCHEDULES["linear"](**values)
