"""The Gaussian bottleneck against torch.distributions and Monte Carlo, what it costs, and what of that is free."""

from math import exp

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.bottlenecks import Gaussian, KLConfig, gaussian_kl
from ldm.autoencoders.bottlenecks.gaussian import free_kl
from ldm.config import load
from ldm.run import Run


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


def test_a_given_std_is_that_of_every_posterior_whatever_the_encoder_says():
    h = 3 * torch.randn(1, 4, 1, 1).expand(1, 4, 200, 200)
    bottleneck = KLConfig(1.0, std=0.4).build(2)
    drawn = bottleneck(h, 3).z - bottleneck.mode(h)
    torch.testing.assert_close(drawn.std(dim=(2, 3)), torch.full((1, 2), 0.4), atol=0, rtol=0.03)
    torch.testing.assert_close(bottleneck.variance(h), torch.full((1, 2, 200, 200), 0.16))


def test_with_a_given_std_the_kl_draws_each_mean_to_0_by_its_size():
    h = torch.randn(2, 6, 4, 4, requires_grad=True)
    KLConfig(0.7, std=0.4).build(3)(h, 48).penalty.backward()
    mean, unused = h.detach().chunk(2, dim=1)
    expected = torch.cat([0.7 / 48 / 2 * mean, torch.zeros_like(unused)], dim=1)
    torch.testing.assert_close(h.grad, expected)


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


def test_weight_zero_is_a_plain_autoencoder_whose_decoder_sees_noise():
    """The latent's gradient is that of mean + std noise, and nothing else."""
    h = torch.randn(2, 6, 3, 3).requires_grad_()
    torch.manual_seed(1)
    code = Gaussian(3, 0.0, free_bits=2.0)(h, 9)
    torch.manual_seed(1)
    noise = torch.randn(2, 3, 3, 3)
    mean, log_variance = h.detach().chunk(2, dim=1)
    torch.testing.assert_close(code.z, mean + (log_variance / 2).exp() * noise)
    wanted = torch.randn_like(code.z)
    ((code.z * wanted).sum() + code.penalty).backward()
    torch.testing.assert_close(h.grad, torch.cat([wanted, wanted * noise * (log_variance / 2).exp() / 2], dim=1))


def test_without_free_bits_the_free_kl_is_the_kl():
    mean, log_variance = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(free_kl(mean, log_variance, 0.0), gaussian_kl(mean, log_variance).mean())


def test_a_channel_costs_what_is_free_or_its_kl_whichever_is_more():
    means = torch.tensor([0.1, 1.0, 3.0])  # KL of N(m, 1): m^2 / 2 a position
    mean = means.view(1, 3, 1, 1).expand(2, 3, 4, 5)
    cost = free_kl(mean, torch.zeros_like(mean), 0.3)
    assert cost.item() == pytest.approx(20 * (0.3 + 0.5 + 4.5))


def test_a_channel_is_free_by_its_mean_over_batch_and_positions():
    """One strong position pays for the channel's others."""
    mean = torch.zeros(1, 1, 1, 4)
    mean[..., 0] = 4.0  # KL 8, 0, 0, 0: 2 a position
    assert free_kl(mean, torch.zeros_like(mean), 1.9).item() == pytest.approx(8.0)
    assert free_kl(mean, torch.zeros_like(mean), 2.1).item() == pytest.approx(8.4)


def test_free_channels_are_not_pushed_and_the_others_as_by_the_kl():
    h = (torch.randn(2, 4, 3, 3) * torch.tensor([0.1, 2.0, 0.1, 2.0]).view(1, 4, 1, 1)).requires_grad_()
    (free,) = torch.autograd.grad(Gaussian(2, 1.0, free_bits=0.1)(h, 9).penalty, h)
    (full,) = torch.autograd.grad(Gaussian(2, 1.0)(h, 9).penalty, h)
    assert (free[:, 0::2] == 0).all() and (full[:, 0::2] != 0).all()
    torch.testing.assert_close(free[:, 1::2], full[:, 1::2])


def test_the_log_says_the_kl_and_not_what_of_it_is_charged():
    h = 0.01 * torch.randn(2, 4, 3, 3)
    bottleneck = Gaussian(2, 1.0, free_bits=5.0)
    torch.testing.assert_close(bottleneck(h, 9).logs["kl"], gaussian_kl(*bottleneck.moments(h)).mean())
    assert bottleneck(h, 9).penalty == 5.0 * 2 * 9 / 9


def test_options_of_the_training_leave_the_weights_as_they_were():
    """Weights of a run without them go on loading."""
    plain = KLConfig().build(2)
    assert KLConfig(free_bits=1.0, warmup=10).build(2).state_dict().keys() == plain.state_dict().keys() == set()


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "std", "free_bits"])
def test_weights_of_the_kl_are_checked(name, wrong):
    with pytest.raises(ValueError, match=f"{name} {wrong}.*; try {name}="):
        KLConfig(**{name: wrong})


@pytest.mark.parametrize(("name", "value"), [("free_bits", 0.5), ("warmup", 3)])
def test_what_shapes_a_kl_is_refused_where_none_is_charged(name, value):
    run = load(Run, None, ["bottleneck.weight=0", "bottleneck.std=0", f"bottleneck.{name}={value}"])  # as a saved one
    with pytest.raises(ValueError, match=f"bottleneck.{name} {value} of a KL of weight 0 does nothing; set it to 0"):
        run.check_autoencoder()


def test_a_warmup_is_no_negative_number_of_steps():
    with pytest.raises(ValueError, match="warmup -1.*; try warmup=0"):
        KLConfig(warmup=-1)
