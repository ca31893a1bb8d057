"""What the README says is there, is; and its example of a new sampler works as printed."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers import ImageNoise
from ldm.types import Prediction

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_linked_file_and_named_script_or_configuration_exists():
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"(?:scripts|configs)/\w+\.(?:py|yaml)", README)
    assert [name for name in set(named) if not (ROOT / name).exists()] == []


def test_the_file_tree_names_every_module():
    tree = README[README.index("## What is where") : README.index("## Add your own sampler")]
    for module in (ROOT / "ldm").rglob("*.py"):
        if module.stem != "__init__":
            assert module.stem in tree, module


def test_the_example_sampler_recovers_a_gaussian_given_its_exact_denoiser():
    block = README[README.index("    @dataclass\n") : README.index("    # ldm/samplers/__init__.py")]
    scope: dict = {}
    imports = "from dataclasses import dataclass\nfrom itertools import pairwise\nfrom ldm.samplers.step import move\n"
    exec(imports + dedent(block), scope)

    def denoise(x, level):
        """The posterior mean of x0 where the data are N(0.6, 0.5^2)."""
        variance = level.alpha**2 * 0.25 + level.sigma**2
        return Prediction(0.6 + level.alpha * 0.25 / variance * (x - level.alpha * 0.6))

    noise = ImageNoise([0], (1, 100, 100))
    x = scope["HeunConfig"]()(denoise, noise(), uniform(SCHEDULES["linear"]().build(), 100), noise)
    assert x.mean() == pytest.approx(0.6, abs=0.02)
    assert x.std() == pytest.approx(0.5, rel=0.03)
