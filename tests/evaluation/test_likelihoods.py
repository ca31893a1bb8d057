"""The likelihoods of a report, with a model that is exact."""

from math import e, log, log2, pi

import pytest
import torch
from torch import nn

from ldm.data.latents import Latents
from ldm.diffusion.grids import LogSNRConfig
from ldm.diffusion.posterior import beta
from ldm.diffusion.process import Process
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS
from ldm.evaluation.likelihood import BOUND_SAMPLES, BOUND_STEPS, ODE_SAMPLES, likelihoods
from ldm.pipeline import TextToImage
from ldm.types import Condition

SCHEDULE = SCHEDULES["logarithmic"]().build()  # which ends with some signal left


class Standard(nn.Module):
    """The exact network of standard normal latents: of them x0 is alpha x, and v is 0."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        return self.zero * x


def condition(rows):
    return Condition(torch.zeros(rows, 1, 3), torch.zeros(rows, 2), torch.ones(rows, 1, dtype=torch.bool))


def test_standard_normal_latents_have_the_entropy_of_a_normal():
    latent = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model = TextToImage(Standard(), None, lambda texts: condition(len(texts)), Process(SCHEDULE, TARGETS["v"]))
    found, terms = likelihoods(model, Latents(latent, condition(64)))
    entropy = 0.5 * log2(2 * pi * e)
    density = 0.5 * (latent[:ODE_SAMPLES].square().mean().item() / log(2) + log2(2 * pi))  # of these very latents
    assert found["ODE with the caption"] == pytest.approx(density, abs=1e-3)
    assert found["bound with the caption"] == pytest.approx(entropy, abs=0.1)
    assert found["bound with none"] == pytest.approx(found["bound with the caption"], abs=1e-5)
    parts = [found[f"{part} of the bound with the caption"] for part in ("L_T", "the sum of L_t", "L_0")]
    assert sum(parts) == pytest.approx(found["bound with the caption"], abs=1e-5)
    grid = LogSNRConfig()(SCHEDULE, BOUND_STEPS)
    kept = grid[0].alpha ** 2  # of the variance, all of which is preserved
    prior = 0.5 * (kept * (latent[:BOUND_SAMPLES].square().mean().item() - 1) - log(1 - kept)) / log(2)
    assert parts[0] == pytest.approx(prior, rel=1e-3)
    last = 0.5 * log2(2 * pi * e * beta(grid[-2], grid[-1]))  # the entropy of x0 given the last x
    assert parts[2] == pytest.approx(last, abs=0.1) and parts[1] > 0
    assert [len(each) for each in terms.values()] == [BOUND_STEPS - 1] * 2
    assert sum(terms["with the caption"]) == pytest.approx(parts[1], abs=1e-5)
    assert (found["samples of the bound"], found["samples of the ODE"]) == (32, 8)
