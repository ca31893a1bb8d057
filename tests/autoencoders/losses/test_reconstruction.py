"""The terms of a reconstruction's cost: what each is, what it needs, and that it reaches the decoder."""

from math import log, pi

import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal
from torch.nn import functional as F

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig, ReconstructionConfig
from ldm.autoencoders.losses.reconstruction import WEIGHTS, bernoulli
from ldm.config import ConfigError, load
from ldm.run import Run

ALONE = {name: {**dict.fromkeys(WEIGHTS, 0.0), name: 1.0} for name in WEIGHTS}


class Perceptual(nn.Module):
    """Distances (B,) by a fixed random convolution."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3).requires_grad_(False)

    def forward(self, images, reference):
        return (self.layer(images) - self.layer(reference)).square().mean(dim=(1, 2, 3))


def loss(**weights):
    return ReconstructionConfig(**weights).build(Perceptual() if weights.get("lpips") else None)


def pair(size=16):
    """An image, and a reconstruction whose values lie inside (-1, 1)."""
    image = torch.rand(2, 3, size, size) * 2 - 1
    return image, (image + 0.3 * torch.randn_like(image)).clamp(-0.99, 0.99)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    image, decoded = pair()
    weights = {name: 0.5 + i for i, name in enumerate(WEIGHTS)}
    total, terms = loss(**weights)(image, decoded)
    torch.testing.assert_close(terms["l1"], F.l1_loss(decoded, image))
    torch.testing.assert_close(terms["l2"], F.mse_loss(decoded, image))
    torch.testing.assert_close(total, sum(weights[name] * terms[name] for name in WEIGHTS))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_term_without_a_weight_is_not_there(name):
    _, terms = loss(**{**dict.fromkeys(WEIGHTS, 1.0), name: 0.0})(*pair())
    assert set(terms) == set(WEIGHTS) - {name}


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_term_is_least_at_the_image_itself_and_moves_every_parameter_of_the_autoencoder(name):
    network = AutoencoderConfig(channels=3, width=8, multipliers=[1], blocks=1, patch=4, bounded=True).build(
        BOTTLENECKS["identity"]().build(3)
    )
    image, _ = pair()
    term = loss(**ALONE[name])
    total, terms = term(image, network(image)[0])
    assert total > term(image, image)[0] and not terms[name].requires_grad
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(p.grad is None for p in term.parameters())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_reconstruction_that_is_not_finite_costs_what_is_not_finite_and_raises_nothing(name):
    image, _ = pair()
    assert not loss(**ALONE[name])(image, torch.full_like(image, float("nan")))[0].isfinite()


@pytest.mark.parametrize("name", WEIGHTS)
def test_terms_are_computed_in_single_precision_under_autocast(name):
    image, decoded = pair()
    made = loss(**ALONE[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(image, decoded)[0]
    assert torch.equal(found, made(image, decoded)[0])


@pytest.mark.parametrize(("term", "likelihood"), [("l1", Laplace), ("l2", lambda y, _: Normal(y, 0.5**0.5))])
def test_each_error_is_a_negative_log_likelihood_but_for_a_constant(term, likelihood):
    image, one, other = torch.randn(3, 2, 3, 4, 4)
    made = loss(**ALONE[term])
    nats = likelihood(other, 1.0).log_prob(image).mean() - likelihood(one, 1.0).log_prob(image).mean()
    torch.testing.assert_close(made(image, one)[0] - made(image, other)[0], nats)


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_the_likelihoods_are_their_closed_forms(scale):
    image, decoded = pair()
    error = decoded - image
    gaussian = error.square().mean() / (2 * scale**2) + log(scale) + 0.5 * log(2 * pi)
    laplace = error.abs().mean() / scale + log(2 * scale)
    _, terms = loss(gaussian=1.0, laplace=1.0, scale=scale)(image, decoded)
    torch.testing.assert_close(terms["gaussian"], gaussian)
    torch.testing.assert_close(terms["laplace"], laplace)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_densities_integrate_to_one_over_image_values(name):
    made, values = loss(**ALONE[name]), torch.linspace(-4, 4, 4_001)
    decoded = torch.full((1, 1, 1, 1), 0.3)
    density = torch.stack([(-made(x.view(1, 1, 1, 1), decoded)[0]).exp() for x in values])
    assert torch.trapezoid(density, values).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("decoded", [-1.0, -0.999, -0.5, 0.0, 0.7, 1.0])
def test_bernoullis_probabilities_of_black_and_white_sum_to_one(decoded):
    black, white = (bernoulli(torch.tensor([x]), torch.tensor([decoded])) for x in (-1.0, 1.0))
    assert ((-black).exp() + (-white).exp()).item() == pytest.approx(1, abs=1e-6)


def test_bernoullis_cost_of_grey_is_the_mean_over_black_and_white_and_least_at_that_grey():
    x, y = torch.tensor(0.2), torch.linspace(-0.99, 0.99, 199)
    costs = torch.stack([bernoulli(x, each) for each in y])
    white, black = (torch.stack([bernoulli(torch.tensor(value), each) for each in y]) for value in (1.0, -1.0))
    torch.testing.assert_close(costs, 0.6 * white + 0.4 * black)
    assert y[costs.argmin()].item() == pytest.approx(0.2, abs=0.006)


@pytest.mark.parametrize("logit", [-12.0, -3.0, 0.0, 2.0, 12.0])
def test_bernoullis_gradient_at_what_a_bounded_decoder_squashes_is_that_of_a_logit(logit):
    """d cost / d logit = q - p, as far out as float32 tells: tanh(logit / 2) = 2 sigmoid(logit) - 1."""
    before = torch.tensor(logit / 2, requires_grad=True)
    bernoulli(torch.tensor(-0.5), before.tanh()).backward()
    wanted = 2 * (torch.sigmoid(torch.tensor(logit)) - 0.25)
    assert before.grad.item() == pytest.approx(wanted.item(), rel=0.02, abs=1e-4)


def test_bernoullis_cost_of_a_pixel_that_is_wholly_wrong_is_finite():
    said = torch.tensor([-1.0, 1.0], requires_grad=True)
    cost = bernoulli(torch.tensor([1.0, -1.0]), said)
    cost.backward()
    assert cost.item() == pytest.approx(15.94, abs=0.01) and not said.grad.any()


@pytest.mark.parametrize("wrong", [{"l1": -1.0}, {"l1": 0.0}, {"l2": float("nan")}, {"lpips": float("inf")}])
def test_weights_are_checked(wrong):
    with pytest.raises(ValueError, match="at least 0 and not all 0"):
        ReconstructionConfig(**wrong)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_the_scale_is_checked(scale):
    with pytest.raises(ValueError, match=f"scale {scale} is not a positive number; try scale="):
        ReconstructionConfig(scale=scale)


def test_bernoulli_asks_for_a_bounded_decoder():
    with pytest.raises(ValueError, match=r"set autoencoder.bounded=true"):
        load(Run, None, ["reconstruction.bernoulli=1"])
    load(Run, None, ["reconstruction.bernoulli=1", "autoencoder.bounded=true"])


@pytest.mark.parametrize(("weights", "least"), [({"lpips": 1.0}, 32), ({"ms_ssim": 0.2}, 11)])
def test_images_too_small_for_a_term_are_told_before_anything_is_loaded(weights, least):
    config = ReconstructionConfig(**weights)
    config.check(least)
    ReconstructionConfig().check(4)
    with pytest.raises(ValueError, match=f"needs images of {least} pixels, and these have {least - 1}; set"):
        config.check(least - 1)


def test_a_run_whose_pictures_are_too_small_for_a_term_is_refused():
    """By who trains one; what only builds on it is not asked for the loss."""
    run = load(Run, None, ["data.size=16", "reconstruction.lpips=1"])
    with pytest.raises(ValueError, match=r"reconstruction.lpips needs images of 32 pixels, and these have 16; set"):
        run.check_autoencoder()


def test_a_misspelt_backbone_is_told_even_where_it_has_no_weight():
    with pytest.raises(ValueError, match="LPIPS has no backbone 'vgx'; did you mean 'vgg'"):
        ReconstructionConfig(lpips_backbone="vgx")


def test_lpips_is_not_weighed_without_its_network():
    with pytest.raises(ValueError, match="lpips 1.0 is a weight of a network that is not given"):
        ReconstructionConfig(lpips=1.0).build()


def test_a_misspelt_term_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'ms_ssim'"):
        load(Run, None, ["reconstruction.ms_sim=1"])
