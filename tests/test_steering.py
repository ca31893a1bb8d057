"""Steering by a classifier goes the way that its gradient says."""

import pytest
import torch

from ldm.diffusion.grids import uniform
from ldm.diffusion.posterior import posterior
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers.ddim import ddpm
from ldm.steering import by_classifier
from ldm.types import Grid, Prediction

PROMPTS = ["a red star", "two rings", "a red ring"]
SAID = torch.tensor([[True, True, False], [False, False, True], [True, False, True]])  # (B, K)


class Linear(torch.nn.Module):
    """A classifier whose logits are products of what it sees with a row for each word."""

    words = ("red", "star", "ring")

    def __init__(self):
        super().__init__()
        self.rows = 3 * torch.eye(3, 32, dtype=torch.float64).view(3, 2, 4, 4)  # (K, C, H, W), no two alike

    def forward(self, x, t):
        return torch.einsum("bchw,kchw->bk", x, self.rows)


@pytest.mark.parametrize("schedule", ["flow", "linear", "ve"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.8])
def test_a_classifier_steers_along_the_gradient_of_what_the_prompt_says(schedule, t):
    """Bayes' rule: x0 moves by scale sigma^2 / alpha times grad log p, here (said - p) row / norm of each word."""
    level, classifier = SCHEDULES[schedule]().build().level(t), Linear()
    x = level.norm * torch.randn(3, 2, 4, 4, dtype=torch.float64)
    plain = torch.randn_like(x)
    steered = by_classifier(classifier, 1.5)(lambda x, level: Prediction(plain), PROMPTS)(x, level).x0
    missing = SAID.double() - torch.sigmoid(classifier(x / level.norm, None))  # (B, K)
    gradient = torch.einsum("bk,kchw->bchw", missing, classifier.rows) / level.norm
    torch.testing.assert_close(steered - plain, 1.5 * level.sigma**2 / level.alpha * gradient)


def test_given_the_grid_a_classifier_moves_the_mean_of_a_step_by_its_variance_times_the_gradient():
    """Dhariwal & Nichol 2021 (arXiv:2105.05233), alg. 1."""
    schedule, classifier = SCHEDULES["linear"]().build(), Linear()
    grid = uniform(schedule, 10)
    now, to = grid[4:6]
    x, x0 = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)

    def mean(denoise):
        return ddpm(denoise, x, Grid([now, to], schedule), lambda: torch.zeros_like(x))

    def plain(x, level):
        return Prediction(x0)

    missing = SAID.double() - torch.sigmoid(classifier(x / now.norm, None))  # (B, K)
    gradient = torch.einsum("bk,kchw->bchw", missing, classifier.rows) / now.norm
    _, variance = posterior(x0, x, now, to)
    steered = by_classifier(classifier, 1.5, grid)(plain, PROMPTS)
    torch.testing.assert_close(mean(steered) - mean(plain), 1.5 * variance * gradient)


@pytest.mark.parametrize(("scale", "sign"), [(0.1, 1), (-0.1, -1)])
def test_what_the_prompt_says_becomes_likelier_than_what_it_does_not_and_below_a_scale_of_0_less_likely(scale, sign):
    level, classifier = SCHEDULES["flow"]().build().level(0.4), Linear()
    plain = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    steer = by_classifier(classifier, scale)
    steered = steer(lambda x, level: Prediction(plain), PROMPTS)(torch.randn_like(plain), level).x0
    change = classifier(steered, None) - classifier(plain, None)  # (B, K) of the logits
    assert (sign * change[SAID] > 0).all() and (sign * change[~SAID] < 0).all()
