"""Targets: every one inverts to x0."""

import pytest
import torch

from ldm.diffusion.process import noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, regressed, to_x0


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
