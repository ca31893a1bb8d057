"""Finite scalar quantisation: which levels there are, which of them is near, and how they are numbered."""

from itertools import product
from math import prod

import pytest
import torch

from ldm.autoencoders.bottlenecks import FSQConfig

LEVELS = [[2], [3, 2], [8, 5, 5], [4, 4, 3, 2]]


@pytest.mark.parametrize("levels", LEVELS)
def test_there_are_as_many_codes_as_the_product_of_the_levels_and_each_comes_back(levels):
    bottleneck = FSQConfig(levels).build(len(levels))
    assert bottleneck.num_codes == prod(levels)
    indices = torch.arange(prod(levels)).view(1, 1, -1)
    z = bottleneck.from_codes(indices)  # (1, C, 1, codes)
    assert torch.equal(bottleneck.codes(torch.atanh(0.999 * z)), indices)
    assert len({tuple(code) for code in z[0, :, 0].T.tolist()}) == prod(levels)
    torch.testing.assert_close(bottleneck.quantize(z), z)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_codes_are_all_combinations_of_even_steps_from_minus_one_to_one(levels):
    bottleneck = FSQConfig(levels).build(len(levels))
    z = bottleneck.from_codes(torch.arange(prod(levels)).view(1, 1, -1))[0, :, 0].T  # (codes, C)
    steps = [torch.linspace(-1, 1, number).tolist() for number in levels]
    wanted = torch.tensor(sorted(product(*steps)))
    torch.testing.assert_close(torch.tensor(sorted(z.tolist())), wanted)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_latent_settles_on_the_nearest_code(levels):
    bottleneck = FSQConfig(levels).build(len(levels))
    codes = bottleneck.from_codes(torch.arange(prod(levels)).view(1, 1, -1))[0, :, 0].T  # (codes, C)
    z = 1.2 * torch.randn(1, len(levels), 6, 6)
    flat = z[0].flatten(1).T  # (36, C)
    nearest = codes[torch.cdist(flat, codes).argmin(dim=1)]
    torch.testing.assert_close(bottleneck.quantize(z)[0].flatten(1).T, nearest)


def test_the_gradient_is_that_of_the_hyperbolic_tangent():
    h = torch.randn(2, 3, 4, 4).requires_grad_()
    wanted = torch.randn(2, 3, 4, 4)
    (FSQConfig().build(3)(h, 48).z * wanted).sum().backward()
    torch.testing.assert_close(h.grad, wanted / torch.cosh(h.detach()) ** 2)


def test_one_number_of_levels_is_that_of_every_channel():
    assert FSQConfig([3]).build(4).num_codes == FSQConfig([3, 3, 3, 3]).build(4).num_codes == 81


@pytest.mark.parametrize("wrong", [[], [1], [5, 0]])
def test_levels_that_say_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"levels \[.*\] must be .*; try levels="):
        FSQConfig(wrong)


@pytest.mark.parametrize(
    ("levels", "channels", "says"), [([8, 5], 3, "try autoencoder.channels=2"), ([16], 16, "more codes than 2\\^63")]
)
def test_levels_that_do_not_fit_the_latent_are_refused(levels, channels, says):
    with pytest.raises(ValueError, match=rf"levels \[{levels[0]}.*{channels}.*{says}"):
        FSQConfig(levels).build(channels)
