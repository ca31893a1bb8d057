"""A correlated Gaussian whose denoiser, conditionals and samples are known exactly."""

import pytest
import torch

from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers.ddim import ddim
from ldm.types import Prediction


class Gaussian:
    """N(mean, cov) of images of one shape, as a denoiser: the posterior mean of x0."""

    def __init__(self, mean, cov, shape):
        self.mean, self.cov, self.shape = mean, cov, shape

    def __call__(self, x, level):
        spread = level.alpha**2 * self.cov + level.sigma**2 * torch.eye(len(self.cov)).to(self.cov)
        gain = level.alpha * torch.linalg.solve(spread, self.cov)  # symmetric factors that commute
        return Prediction((self.mean + (x.flatten(1) - level.alpha * self.mean) @ gain).view(x.shape))

    def given(self, matrix, y, std=0.0):
        """Mean and covariance of x0 where ``matrix`` x0 + ``std`` noise is ``y``."""
        inner = matrix @ self.cov @ matrix.T + std**2 * torch.eye(len(matrix)).to(matrix)
        gain = torch.linalg.solve(inner, matrix @ self.cov).T
        return self.mean + gain @ (y - matrix @ self.mean), self.cov - gain @ matrix @ self.cov

    def matrix(self, measure):
        """The matrix of a linear ``measure`` of such images."""
        basis = torch.eye(len(self.mean), dtype=self.mean.dtype).view(-1, *self.shape)
        return measure(basis).flatten(1).T

    def moments(self, denoise, steps=500):
        """Mean and covariance of DDIM's samples, without chance: an affine map of the noise is known by its basis."""
        grid = uniform(SCHEDULES["linear"]().build(), steps)
        count = len(self.mean)
        start = torch.cat([torch.zeros(1, count), torch.eye(count)]).to(self.mean).view(-1, *self.shape)
        end = ddim(denoise, start * grid[0].sigma, grid, lambda: None).flatten(1)
        linear = (end[1:] - end[0]).T
        return end[0], linear @ linear.T


@pytest.fixture
def white():
    return Gaussian(torch.full((16,), 0.3).double(), 0.49 * torch.eye(16).double(), (1, 4, 4))


@pytest.fixture
def correlated():
    """Neighbours of a row of 4 pixels, twice, are alike."""
    place = torch.arange(4).double()
    row = 0.8 ** (place[:, None] - place).abs()
    return Gaussian(
        torch.linspace(-0.5, 0.5, 8).double(),
        torch.kron(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), row).double(),
        (1, 2, 4),
    )


@pytest.fixture
def grid():
    return uniform(SCHEDULES["linear"]().build(), 50)
