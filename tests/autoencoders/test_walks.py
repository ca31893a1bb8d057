"""Interpolation and traversal of latents."""

from itertools import pairwise
from math import pi

import pytest
import torch

from ldm.autoencoders.bottlenecks import Gaussian
from ldm.autoencoders.walks import PATHS, informative, linear, slerp, traversals


def latents():
    return torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize("way", PATHS.values())
def test_a_way_goes_from_one_end_to_the_other_and_back_the_same(way):
    a, b = latents()
    torch.testing.assert_close(way(a, b, 0.0), a)
    torch.testing.assert_close(way(a, b, 1.0), b)
    torch.testing.assert_close(way(a, b, 0.3), way(b, a, 0.7))


def test_an_arc_keeps_the_norm_and_turns_evenly():
    a, b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in latents())
    points = [slerp(a, b, i / 4) for i in range(5)]
    for one, other in pairwise(points):
        torch.testing.assert_close(one.flatten(1).norm(dim=1), torch.ones(3).double())
        step = (one * other).flatten(1).sum(dim=1).acos()
        torch.testing.assert_close(step, (a * b).flatten(1).sum(dim=1).acos() / 4)


def test_halfway_between_normal_draws_a_line_is_far_inside_of_them_and_an_arc_is_not():
    a, b = torch.randn(2, 1, 4, 32, 32)
    size = a.norm()
    assert linear(a, b, 0.5).norm() / size == pytest.approx(0.5**0.5, abs=0.03)
    assert slerp(a, b, 0.5).norm() / size == pytest.approx(1, abs=0.03)


def test_a_quarter_turn_is_that_of_sine_and_cosine():
    a, b = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]]).double().split(1)
    share = torch.tensor(1 / 3 * pi / 2).double()
    wanted = torch.stack([share.cos(), 2 * share.sin()]).view(1, 1, 1, 2)
    torch.testing.assert_close(slerp(a, b, 1 / 3), wanted)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_an_arc_between_parallel_latents_is_a_line(factor):
    a, _ = latents()
    torch.testing.assert_close(slerp(a, factor * a, 0.5), (1 + factor) / 2 * a)


def test_the_most_informative_latents_are_those_of_the_largest_kl():
    h = torch.zeros(5, 4, 2, 3)  # means, then log-variances: N(0, 1) says nothing
    h[:, 1, 0, 2] = 2.0  # a mean of 2: 2 nats
    h[:, 2, 1, 1] = -2.0  # of channel 0 a variance of exp(-2): (exp(-2) - 1 + 2) / 2 nats
    first, second = informative(Gaussian(2, 1.0), h, 2)
    assert first[:3] == (1, 0, 2) and first.kl == pytest.approx(2.0)
    assert second[:3] == (0, 1, 1) and second.kl == pytest.approx(0.5677, abs=1e-4)
    assert len(informative(Gaussian(2, 1.0), h, 100)) == 12


def test_a_traversal_changes_one_latent_and_nothing_else():
    z, values = torch.randn(1, 2, 2, 3), torch.linspace(-3, 3, 4)
    found = informative(Gaussian(2, 1.0), torch.randn(3, 4, 2, 3), 3)
    walked = traversals(z, found, values).view(3, 4, 2, 2, 3)
    for row, latent in zip(walked, found, strict=True):
        place = (latent.channel, latent.row, latent.column)
        for one, value in zip(row, values, strict=True):
            assert one[place] == value and ((one != z[0]).sum() <= 1)
