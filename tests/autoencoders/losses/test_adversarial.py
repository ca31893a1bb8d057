"""Hinge losses at known logits, R1 against its closed form, and the adaptive weight by hand."""

import pytest
import torch
from torch import nn

from ldm.autoencoders.discriminator import Discriminator
from ldm.autoencoders.losses import adaptive_weight, gradient_penalty, hinge
from ldm.autoencoders.losses.adversarial import EPS, MOST


@pytest.mark.parametrize(
    ("real", "fake", "cost"),
    [([1.0], [-1.0], 0), ([3.0], [-7.0], 0), ([0.0], [0.0], 2), ([-1.0, 3.0], [0.5, -2.0], 1 + 0.75)],
)
def test_the_hinge_loss_at_known_logits(real, fake, cost):
    assert hinge(torch.tensor(real), torch.tensor(fake)).item() == cost


def test_the_hinge_moves_logits_apart_up_to_the_margin_and_no_further():
    real, fake = torch.tensor([0.0, 2.0], requires_grad=True), torch.tensor([0.0, -2.0], requires_grad=True)
    hinge(real, fake).backward()
    assert real.grad.tolist() == [-0.5, 0] and fake.grad.tolist() == [0.5, 0]


def test_the_penalty_of_a_linear_discriminator_is_half_its_weights_square():
    """D(x) = <w, x> + b: the gradient is w at every image."""
    network, image = nn.Conv2d(3, 1, 5), torch.randn(4, 3, 5, 5, requires_grad=True)
    penalty = gradient_penalty(image, network(image))
    torch.testing.assert_close(penalty, 0.5 * network.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(network.weight.grad, network.weight.detach())


def test_the_penalty_is_that_of_each_image_by_itself_and_counts_patches_by_their_mean():
    network, image = Discriminator(8, 2).double(), torch.randn(3, 3, 16, 16).double()
    both = image.clone().requires_grad_()
    found = gradient_penalty(both, network(both))
    each = [torch.func.grad(lambda x: network(x[None]).mean())(one).square().sum() for one in image]
    torch.testing.assert_close(found, 0.5 * torch.stack(each).mean())


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer():
    weight = adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8]))
    assert weight.item() == pytest.approx(5 / (1 + EPS))


@pytest.mark.parametrize(("factors", "weight"), [((0.0, 0.0), 0.0), ((0.0, 1.0), 0.0), ((1.0, 0.0), MOST)])
def test_the_adaptive_weight_is_finite_where_a_gradient_is_zero(factors, weight):
    assert adaptive_weight(*(factor * torch.tensor([1.0, -2.0]) for factor in factors)).item() == weight


def test_the_adaptive_weight_of_a_gradient_that_is_not_finite_is_not_finite():
    assert not adaptive_weight(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, -2.0])).isfinite()
