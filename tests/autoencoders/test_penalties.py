"""Corrupted inputs, and the contractive penalty against the exact Jacobian."""

from functools import partial

import pytest
import torch
from torch.autograd.functional import jacobian

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig, RobustnessConfig
from ldm.autoencoders.penalties import contraction


def encoder(attention=False):
    config = AutoencoderConfig(channels=2, width=4, multipliers=[1], blocks=1, patch=4, attention=attention)
    network = config.build(BOTTLENECKS["kl"]().build(2)).requires_grad_(False)
    return lambda image: network.bottleneck.mode(network.encoder(image))


def exact(encode, image):
    """||J||_F^2 of each image (B,), row by row."""
    return torch.stack([jacobian(encode, one[None]).square().sum() for one in image])


@pytest.mark.parametrize("attention", [False, True])
def test_the_mean_of_the_estimate_is_the_squared_norm_of_the_exact_jacobian(attention):
    encode, image = encoder(attention), torch.rand(1, 3, 8, 8)
    estimate = contraction(encode, image.expand(4_000, -1, -1, -1))
    assert estimate.item() == pytest.approx(exact(encode, image).mean().item(), rel=0.08)


def test_the_estimates_along_all_axes_sum_to_the_exact_norm(monkeypatch):
    """Of one latent value after the other: v as each unit vector in turn, without a draw."""
    encode, image = encoder(), torch.rand(2, 3, 8, 8)
    total = 0.0
    for axis in range(8):

        def unit(like, axis):
            v = torch.zeros_like(like).flatten(1)
            v[:, axis] = 1
            return v.view_as(like)

        monkeypatch.setattr("torch.randn_like", partial(unit, axis=axis))
        total += contraction(encode, image)
    torch.testing.assert_close(total, exact(encode, image).mean(), rtol=1e-4, atol=0)


def test_the_gradient_of_the_estimate_has_that_of_the_squared_norm_as_its_mean():
    weight = torch.randn(4, 12).requires_grad_()  # a linear encoder: J is its weight, and the gradient 2 J
    contraction(lambda x: (x.flatten(1) @ weight.T).view(-1, 1, 2, 2), torch.rand(20_000, 3, 2, 2)).backward()
    error = (weight.grad - 2 * weight.detach()).norm() / (2 * weight.detach()).norm()
    assert error < 0.05


def test_the_image_is_left_without_a_gradient():
    image = torch.rand(1, 3, 8, 8)
    contraction(encoder(), image)
    assert not image.requires_grad


def test_nothing_is_corrupted_and_nothing_drawn_by_default():
    image = torch.rand(2, 3, 8, 8)
    before = torch.get_rng_state()
    assert RobustnessConfig().corrupted(image) is image
    assert torch.equal(torch.get_rng_state(), before) and RobustnessConfig().contractive == 0


def test_the_noise_is_normal_with_its_std_and_leaves_the_image_itself_alone():
    image = torch.rand(4, 3, 64, 64)
    before = image.clone()
    noise = RobustnessConfig(noise=0.3).corrupted(image) - image
    assert torch.equal(image, before)
    assert noise.mean().abs() < 0.01 and noise.std().item() == pytest.approx(0.3, rel=0.02)
    fourth = (noise / noise.std()).pow(4).mean().item()
    assert fourth == pytest.approx(3, rel=0.05)


def test_the_mask_takes_its_share_of_whole_pixels():
    image = torch.rand(4, 3, 64, 64) + 0.1
    masked = RobustnessConfig(mask=0.25).corrupted(image)
    gone = masked == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (gone.any(dim=1) == gone.all(dim=1)).all() and torch.equal(masked[~gone], image[~gone])
    assert not torch.equal(gone[0], gone[1])


def test_what_is_masked_shows_no_noise():
    masked = RobustnessConfig(noise=1.0, mask=0.5).corrupted(torch.ones(1, 3, 32, 32))
    assert (masked == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise", -1.0), ("noise", float("nan")), ("contractive", float("inf")), ("mask", 1.0), ("mask", -0.1)],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} {value}.*; try {name}="):
        RobustnessConfig(**{name: value})
