"""The sampler and the denoiser that the documentation writes work as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY

from ldm.config import load
from ldm.denoisers import DENOISERS
from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.folders import load_model
from ldm.run import Run
from ldm.samplers import SAMPLERS, ImageNoise
from ldm.sampling import Sampling
from ldm.stages import train_ldm
from ldm.types import Grid, Prediction

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
FILE, LINE, DENOISER, ITS_LINE = PYTHON.findall((ROOT / "docs" / "extending.md").read_text())
(SHORT,) = PYTHON.findall((ROOT / "README.md").read_text())
MEAN, STD = 0.6, 0.5


def gaussian(x, level):
    """The exact denoiser of N(MEAN, STD^2)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return Prediction(MEAN + level.alpha * STD**2 / variance * (x - level.alpha * MEAN))


@pytest.fixture
def table():
    """The table with the documented line in it, from the documented file."""
    namespace = {"__name__": "midpoint"}
    exec(compile(FILE, "docs/extending.md", "exec"), namespace)
    return SAMPLERS | eval(f"{{{LINE}}}", namespace)


def test_the_documented_sampler_is_chosen_by_its_name(table, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "midpoint", table["midpoint"])
    assert Sampling().but("sampler=midpoint", "sampler.where=0.4").sampler == table["midpoint"](where=0.4)


def test_the_documented_sampler_is_ten_to_thirty_lines():
    body = FILE[FILE.index("@dataclass") :].strip().splitlines()
    assert 10 <= len(body) <= 30


@pytest.mark.parametrize("schedule", ["linear", "flow", "ve"])
def test_the_documented_sampler_samples(table, schedule):
    noise = ImageNoise([0], (1, 100, 100))
    grid = uniform(SCHEDULES[schedule]().build(), 50)
    x = table["midpoint"]()(gaussian, noise() * grid[0].sigma, grid, noise)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, rel=0.03)


def test_the_documented_sampler_is_better_than_euler(table):
    """Down to little noise: from there to none both take the same step."""
    noise = ImageNoise([0], (1, 10, 10))
    start = noise()
    schedule = SCHEDULES["linear"]().build()
    grid = Grid(uniform(schedule, 40)[:-1], schedule)
    exact = SAMPLERS["ode"](rtol=1e-6, atol=1e-6)(gaussian, start, grid, noise)
    errors = {name: (table[name]()(gaussian, start, grid, noise) - exact).abs().max() for name in ("midpoint", "euler")}
    assert errors["midpoint"] < 0.2 * errors["euler"]


def test_the_documented_sampler_refuses_what_it_says(table):
    with pytest.raises(ValueError, match="try where=0.5"):
        table["midpoint"](where=1.0)


def test_the_readmes_sampler_is_eulers_method_in_ten_lines():
    namespace = {"__name__": "mine"}
    exec(compile(SHORT, "README.md", "exec"), namespace)
    assert len(list(filter(str.strip, SHORT.splitlines()))) <= 10
    noise = ImageNoise([0], (1, 10, 10))
    start, grid = noise(), uniform(SCHEDULES["cosine"]().build(), 20)
    torch.testing.assert_close(
        namespace["MineConfig"]()(gaussian, start, grid, noise), SAMPLERS["ddim"]()(gaussian, start, grid, noise)
    )


def test_the_documented_denoiser_is_trained_and_draws_by_its_name(tmp_path, monkeypatch):
    namespace = {"__name__": "stack"}
    exec(compile(DENOISER, "docs/extending.md", "exec", dont_inherit=True), namespace)
    for name, kind in eval(f"{{{ITS_LINE}}}", namespace).items():
        monkeypatch.setitem(DENOISERS, name, kind)
    ours = [option for option in TINY if not option.startswith(("autoencoder.", "text.", "denoiser"))]  # shipped stages
    options = [*ours, "denoiser=stack", "denoiser.layers=2", f"out={tmp_path}", "train_ldm.steps=2"]
    model = load_model(train_ldm(load(Run, None, options), torch.device("cpu")))
    assert type(model.denoiser).__name__ == "Stack" and len(model.denoiser.layers) == 2
    ((image, seed),) = model(["a red star"], seed=3)
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all() and seed == 3
