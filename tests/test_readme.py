"""What the README says is there, is; and its example of a new sampler works as printed."""

import re
from pathlib import Path
from textwrap import dedent

import torch

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


def test_the_example_sampler_recovers_what_its_denoiser_knows():
    block = README[README.index("    @dataclass\n") : README.index("    # ldm/samplers/__init__.py")]
    scope: dict = {}
    exec(f"from dataclasses import dataclass\nfrom itertools import pairwise\n{dedent(block)}", scope)
    noise = ImageNoise([0], (1, 4, 4))
    x = scope["ChurnConfig"]()(
        lambda x, level: Prediction(torch.full_like(x, 0.3)), noise(), uniform(SCHEDULES["cosine"]().build(), 4), noise
    )
    torch.testing.assert_close(x, torch.full_like(x, 0.3))
