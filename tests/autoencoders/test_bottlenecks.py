"""The Gaussian bottleneck against torch.distributions and Monte Carlo, and what a bottleneck costs."""

from math import exp

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.bottlenecks import Gaussian, KLConfig, gaussian_kl


def test_the_kl_is_that_of_torch():
    mean, log_variance = 3 * torch.randn(2, 5, 4, 3, 2, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), theirs)


def test_the_kl_is_the_mean_log_ratio_of_the_densities():
    mean, log_variance = torch.tensor([[0.7, -1.2]]), torch.tensor([[-1.0, 0.5]])
    posterior = Normal(mean, (0.5 * log_variance).exp())
    z = posterior.sample((200_000,))
    ratio = (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(dim=(1, 2))
    assert gaussian_kl(mean, log_variance).item() == pytest.approx(ratio.mean().item(), rel=0.02)


def test_the_kl_is_zero_for_the_prior_only():
    zero = torch.zeros(1, 4)
    assert gaussian_kl(zero, zero) == 0
    assert gaussian_kl(zero + 0.1, zero) > 0 and gaussian_kl(zero, zero + 0.1) > 0 and gaussian_kl(zero, zero - 0.1) > 0


def test_samples_have_the_mean_and_variance_of_the_posterior():
    h = torch.tensor([0.5, -2.0, -1.0, 0.3]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    z = Gaussian(2, 0.0)(h, 3).z.flatten(2)[0]
    torch.testing.assert_close(z.mean(dim=1), torch.tensor([0.5, -2.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(dim=1), torch.tensor([exp(-1.0), exp(0.3)]), atol=0, rtol=0.03)


@pytest.mark.parametrize("weight", [0.0, 1e-6, 2.0])
def test_the_penalty_is_weight_times_kl_over_image_values(weight):
    config = AutoencoderConfig(channels=2, width=8, multipliers=[1], blocks=1, patch=4)
    network = config.build(KLConfig(weight).build(2))
    image = torch.rand(3, 3, 8, 12)
    _, code = network(image)
    kl = gaussian_kl(*network.bottleneck.moments(network.encoder(image))).mean()
    torch.testing.assert_close(code.logs["kl"], kl)
    torch.testing.assert_close(code.penalty, weight * kl / (3 * 8 * 12))


@pytest.mark.parametrize("bottleneck", [KLConfig(0.0), BOTTLENECKS["identity"]()])
def test_a_bottleneck_without_weight_costs_nothing(bottleneck):
    built = bottleneck.build(2)
    assert built(torch.randn(1, built.features, 3, 3), 12).penalty == 0


def test_the_identity_is_the_identity():
    h = torch.randn(2, 3, 4, 4)
    bottleneck = BOTTLENECKS["identity"]().build(3)
    assert torch.equal(bottleneck(h, 48).z, h) and torch.equal(bottleneck.mode(h), h)


def test_training_starts_with_little_noise_in_the_latent():
    network = AutoencoderConfig(channels=4, width=16, multipliers=[1], patch=4).build(KLConfig().build(4))
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        noise = network(image)[1].z - network.bottleneck.mode(network.encoder(image))
    assert 0 < noise.std() < 0.15


def test_extreme_features_give_finite_latents_and_penalties():
    h = torch.tensor([1e4, -1e4, 1e4, -1e4]).view(1, 4, 1, 1).requires_grad_()
    code = Gaussian(2, 1.0)(h, 3)
    (code.z.sum() + code.penalty).backward()
    assert code.z.isfinite().all() and code.penalty.isfinite() and h.grad.isfinite().all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_the_kl_are_checked(weight):
    with pytest.raises(ValueError, match=f"weight {weight}"):
        KLConfig(weight)
