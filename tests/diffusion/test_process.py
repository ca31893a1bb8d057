"""The forward process, the loss and the denoiser, with networks that are exact."""

import pytest
import torch
from torch import nn

from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.process import denoiser, drop_text, loss, noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, regressed
from ldm.types import Condition

SCHEDULE = SCHEDULES["linear"]().build()


def condition(rows: int, value: float = 1.0, length: int = 3) -> Condition:
    return Condition(
        torch.full((rows, length, 2), value),
        torch.full((rows, 2), value),
        torch.ones(rows, length, dtype=torch.bool),
    )


class Knowing(nn.Module):
    """A network that knows x0: the value its text is filled with."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        level = SCHEDULE.level(t)
        x0 = cond.pooled[:, 0].view(-1, 1, 1, 1).expand_as(x)
        return regressed(self.target, x0, (x - level.alpha * x0) / level.sigma, level)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_the_noised_data_have_the_moments_of_the_process(t):
    level = SCHEDULE.level(t)
    x0 = torch.full((1, 1, 400, 400), 0.7)
    x = noised(x0, torch.randn_like(x0), level)
    assert x.mean() == pytest.approx(level.alpha * 0.7, abs=0.01)
    assert x.std() == pytest.approx(level.sigma, rel=0.01)


def test_one_jump_to_t_equals_a_walk_through_every_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    mean, variance = 1.0, 0.0
    for beta in betas[:600]:
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    level = SCHEDULE.level(0.6)
    assert level.alpha == pytest.approx(float(mean), rel=1e-9)
    assert level.sigma**2 == pytest.approx(float(variance), rel=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_zero_for_a_network_that_knows(target):
    t = torch.tensor([0.2, 0.5, 0.8])
    x0 = torch.ones(3, 2, 4, 4)
    got = loss(Knowing(TARGETS[target]), TARGETS[target], SCHEDULE, x0, condition(3), t, torch.randn_like(x0))
    assert got.shape == (3,)
    torch.testing.assert_close(got, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_denoiser_says_x0_whatever_the_target(target):
    denoise = denoiser(Knowing(TARGETS[target]), TARGETS[target], condition(2, 0.3))
    x0 = denoise(torch.randn(2, 1, 4, 4), SCHEDULE.level(0.5)).x0
    torch.testing.assert_close(x0, torch.full_like(x0, 0.3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_scale_times_from_null_to_text(scale):
    target = TARGETS["eps"]
    denoise = classifier_free(Knowing(target), target, condition(2, 0.5), condition(2, 0.2, length=1), scale)
    x0 = denoise(torch.randn(2, 1, 4, 4), SCHEDULE.level(0.5)).x0
    torch.testing.assert_close(x0, torch.full_like(x0, 0.2 + scale * 0.3), atol=1e-4, rtol=1e-4)


def test_dropped_rows_are_the_empty_prompt_and_the_others_are_untouched():
    cond, null = condition(500, 1.0, length=4), condition(1, -1.0, length=2)
    got = drop_text(cond, null, 0.25, torch.Generator().manual_seed(0))
    dropped = got.pooled[:, 0] == -1
    assert 0.15 < dropped.float().mean() < 0.35
    assert (got.mask.sum(dim=1) == torch.where(dropped, 2, 4)).all()
    assert (got.tokens[~dropped] == 1).all()
    assert drop_text(cond, null, 0.0, torch.Generator()).pooled.min() == 1
