"""Schedules: what all of them keep, and the tables against diffusers'."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ldm.diffusion.continuous import SubVPConfig
from ldm.diffusion.schedules import SCHEDULES, TableConfig, VPTable

TABLES = [name for name, kind in SCHEDULES.items() if issubclass(kind, TableConfig)]
THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
EVERY = [
    *(pytest.param(kind(), id=name) for name, kind in SCHEDULES.items()),
    *(pytest.param(SCHEDULES[name](zero_snr=True), id=f"{name}-zero_snr") for name in TABLES),
    *(pytest.param(SCHEDULES[name](steps=7), id=f"{name}-7") for name in TABLES),
    *(pytest.param(SCHEDULES[name](shift=3.0), id=f"{name}-shift") for name in ("linear", "cosine", "flow")),
]


def at_steps(config):
    """alpha squared at the times n / N, n from 1 to N."""
    schedule = config.build()
    return np.array([schedule.level((n + 1) / config.steps).alpha ** 2 for n in range(config.steps)])


def product(scheduler):
    """alpha_bar of diffusers' betas, in float64: it keeps the product itself in float32."""
    return (1 - scheduler.betas.double()).cumprod(0).numpy()


@pytest.mark.parametrize("config", EVERY)
def test_noise_rises_from_data_to_noise(config):
    schedule = config.build()
    levels = [schedule.level(float(t)) for t in np.linspace(0, 1, 333)]
    assert [level.t for level in levels] == np.linspace(0, 1, 333).tolist()
    assert levels[0].alpha == pytest.approx(1, abs=1e-6) and levels[0].nsr < 0.02
    assert (np.diff([level.nsr for level in levels]) > 0).all()
    assert (np.diff([level.log_snr for level in levels]) < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_little_signal_is_left_at_the_end_by_default(name):
    assert SCHEDULES[name]().build().level(1.0).nsr > 6


@pytest.mark.parametrize("config", EVERY)
def test_variance_is_preserved_where_it_should_be(config):
    levels = [config.build().level(float(t)) for t in np.linspace(0, 1, 77)]
    alpha, sigma = np.array([level[1:] for level in levels]).T
    if isinstance(config, SubVPConfig):
        np.testing.assert_allclose(alpha**2 + sigma, 1, atol=1e-12)
    elif config in (SCHEDULES["ve"](), SCHEDULES["edm"]()):
        assert (alpha == 1).all()
    elif isinstance(config, SCHEDULES["flow"]):
        np.testing.assert_allclose(alpha + sigma, 1, atol=1e-12)
    else:
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-12)
        if not isinstance(config, SCHEDULES["listed"]):  # which keeps the noise that it lists first
            assert levels[0][1:] == (1.0, 0.0)


@pytest.mark.parametrize("config", EVERY)
def test_tensor_times_give_what_float_times_give(config):
    schedule = config.build()
    times = torch.tensor([0.0, 0.0003, 0.1, 0.5, 0.99999, 1.0])
    level = schedule.level(times)
    singles = [schedule.level(float(t)) for t in times]
    for name in ("t", "alpha", "sigma"):
        part = getattr(level, name)
        assert part.shape == (6, 1, 1, 1) and part.dtype == torch.float32
        np.testing.assert_allclose(part.flatten(), [getattr(one, name) for one in singles], rtol=1e-6)


@pytest.mark.parametrize("config", EVERY)
def test_t_at_inverts_level_and_stays_in_the_schedule(config):
    schedule = config.build()
    for t in (1e-5, 0.01, 0.37, 0.9, 0.9993, 1.0):
        assert schedule.t_at(schedule.level(t).nsr) == pytest.approx(t, abs=1e-8)
    assert [schedule.t_at(nsr) for nsr in (0.0, 1e-30, 1e30, float("inf"))] == [0, pytest.approx(0, abs=1e-20), 1, 1]
    with pytest.raises(AssertionError, match="no number"):
        schedule.t_at(float("nan"))


@pytest.mark.parametrize("name", THEIRS)
def test_a_table_is_diffusers_table(name):
    config = SCHEDULES[name]()
    ends = {} if name == "cosine" else {"beta_start": config.beta_start, "beta_end": config.beta_end}
    theirs = DDPMScheduler(num_train_timesteps=config.steps, beta_schedule=THEIRS[name], **ends)
    np.testing.assert_allclose(at_steps(config), product(theirs), atol=1e-6)


@pytest.mark.parametrize("steps", [50, 400, 4_000])
def test_scaled_betas_end_with_as_much_noise_whatever_the_length(steps):
    """iDDPM's linear betas, 1000 / N times those of a thousand (its code, which cuts none: none here reaches 0.999)."""
    scaled = SCHEDULES["linear"](steps=steps, scaled=True)
    betas = np.linspace(0.1 / steps, 20 / steps, steps)
    np.testing.assert_allclose(at_steps(scaled), np.cumprod(1 - betas), rtol=1e-9)
    assert scaled.build().level(1.0).alpha < 0.01 < SCHEDULES["linear"](steps=50).build().level(1.0).alpha


def test_scaled_betas_of_a_few_steps_are_cut():
    assert SCHEDULES["linear"](steps=10, scaled=True).build().level(1.0).alpha > 0


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_a_table_that_ends_without_signal_is_diffusers(name):
    config = SCHEDULES[name](zero_snr=True)
    ends = {} if name == "cosine" else {"beta_start": config.beta_start, "beta_end": config.beta_end}
    theirs = DDIMScheduler(beta_schedule=THEIRS[name], rescale_betas_zero_snr=True, **ends)
    np.testing.assert_allclose(at_steps(config), product(theirs), atol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_zero_snr_ends_without_signal_and_keeps_the_first_step(name):
    plain, zero = SCHEDULES[name]().build(), SCHEDULES[name](zero_snr=True).build()
    assert zero.level(1.0) == (1.0, 0.0, 1.0)
    assert zero.level(torch.ones(2)).alpha.tolist() == torch.zeros(2, 1, 1, 1).tolist()
    assert zero.level(1e-3).alpha == pytest.approx(plain.level(1e-3).alpha, abs=1e-12)
    assert zero.level(0.9995).alpha == pytest.approx(zero.level(0.999).alpha / 2)


def test_quadratic_and_logarithmic_betas_are_those_of_their_formulas():
    s = np.linspace(0, 1, 1_000)
    for name, betas in {"quadratic": 1e-4 + (0.02 - 1e-4) * s**2, "logarithmic": 1e-4 * 200**s}.items():
        np.testing.assert_allclose(at_steps(SCHEDULES[name]()), np.cumprod(1 - betas), rtol=1e-9)


def test_the_less_noise_a_table_adds_early_the_more_signal_it_leaves():
    for t in (0.3, 1.0):
        alphas = [SCHEDULES[name]().build().level(t).alpha for name in ("linear", "quadratic", "logarithmic")]
        assert alphas == sorted(alphas)


@pytest.mark.parametrize("steps", [1, 2, 50, 20_000])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_may_have_any_length(name, steps):
    schedule = SCHEDULES[name](steps=steps).build()
    assert schedule.steps == steps
    assert 0 < schedule.level(1.0).alpha < schedule.level(0.5).alpha < 1


@pytest.mark.parametrize("shift", [0.5, 3.0])
@pytest.mark.parametrize("name", TABLES)
def test_a_shift_multiplies_the_ratio_of_noise_to_signal(name, shift):
    plain, moved = SCHEDULES[name]().build(), SCHEDULES[name](shift=shift).build()
    for t in (0.001, 0.1, 0.5, 0.9, 0.99):
        assert moved.level(t).nsr == pytest.approx(shift * plain.level(t).nsr, rel=1e-9)


@pytest.mark.parametrize(("name", "shift"), [("cosine", 1.0), ("cosine", 10.0), ("linear", 30.0)])
def test_no_beta_is_above_max_beta_whatever_the_shift(name, shift):
    falls = np.diff(SCHEDULES[name](shift=shift, max_beta=0.05).build().log_alpha_bar)
    assert (1 - np.exp(falls)).max() == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("name", [*TABLES, "flow"])
@pytest.mark.parametrize("shift", [0.0, -1.0, 1e-3, 1e3, float("nan"), float("inf")])
def test_an_impossible_shift_is_refused(name, shift):
    with pytest.raises(ValueError, match=r"shift .* is not a number from 0.01 to 100; try shift=1"):
        SCHEDULES[name](shift=shift)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("linear", {"steps": 0}, "steps 0 .* at least 1"),
        ("cosine", {"steps": 1, "zero_snr": True}, "steps 1 .* at least 2"),
        ("linear", {"beta_end": 1.5}, "beta 1.5 "),
        ("sigmoid", {"beta_start": 0.0}, "beta 0.0 "),
        ("linear", {"beta_start": 0.02, "beta_end": 1e-4}, "beta_start 0.02 is above beta_end 0.0001"),
        ("cosine", {"max_beta": 1.0}, "max_beta 1.0 "),
        ("cosine", {"offset": 0.0}, "offset 0.0 "),
        ("vp", {"beta_min": 0.0}, "beta_min 0.0 "),
        ("subvp", {"beta_max": 0.1}, "beta_max 0.1 "),
        ("ve", {"sigma_max": float("inf")}, "sigma_max inf "),
        ("edm", {"sigma_min": -1.0}, "sigma_min -1.0 "),
        ("edm", {"rho": 0.5}, "rho 0.5 "),
    ],
)
def test_impossible_schedules_are_refused(name, values, says):
    with pytest.raises(ValueError, match=f"{says}.*; try ") as caught:
        SCHEDULES[name](**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("betas", [[], [0.1, 1.0, 0.1], [0.0, 0.1], [0.1, 1.1], [0.1, float("nan")], [[0.1]]])
def test_impossible_tables_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be one row of numbers between 0 and 1"):
        VPTable(np.array(betas))


@pytest.mark.parametrize(("name", "start"), [("new/all.png", b"\x89PNG"), ("all.svg", b"<?xml"), ("all.txt", None)])
def test_the_script_draws_every_schedule(name, start, tmp_path, monkeypatch, capsys):
    script, out = Path(__file__).parents[2] / "scripts" / "plot_schedules.py", tmp_path / name
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(out)])
    if start is None:
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(script), run_name="__main__")
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.endswith("try all.png\n") and not out.exists()
        return
    runpy.run_path(str(script), run_name="__main__")
    drawn = out.read_bytes()
    assert drawn.startswith(start)
    if out.suffix == ".svg":
        variants = ("scaled_linear, zero_snr=true", "flow, shift=3")
        assert all(f"<!-- {label} -->".encode() in drawn for label in (*SCHEDULES, *variants))  # the legend's texts
