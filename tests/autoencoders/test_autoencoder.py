"""The first stage, with every bottleneck: sizes, latent statistics, gradients, and one batch learned by heart."""

from math import log10

import pytest
import torch

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.autoencoder import LEAST_STD
from ldm.autoencoders.blocks import NORMS, ChannelNorm
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig

FACTORS = [(1, [1], 1), (4, [1], 4), (1, [1, 2], 2), (2, [1, 1, 2], 8)]  # patch, multipliers, factor


def build(bottleneck="kl", **options):
    config = AutoencoderConfig(**{"channels": 3, "width": 8, "multipliers": [1], "blocks": 1, "patch": 4, **options})
    return config.build(BOTTLENECKS[bottleneck]().build(config.channels))


def pictures(count=8, size=32):
    (batch,) = first_batches(ShapesConfig(size=size).build("train"), count, count)
    return batch.image


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize(("patch", "multipliers", "factor"), FACTORS)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_latents_are_smaller_by_the_factor_and_images_come_back_whole(bottleneck, patch, multipliers, factor, channels):
    network = build(bottleneck, patch=patch, multipliers=multipliers, channels=channels)
    assert network.factor == factor
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = network.encode(image)
    assert latent.shape == (2, channels, 16 // factor, 24 // factor)
    decoded, code = network(image)
    assert decoded.shape == network.decode(latent).shape == image.shape
    assert code.z.shape == latent.shape and code.penalty.shape == ()


@pytest.mark.parametrize("bottleneck", [name for name in BOTTLENECKS if name not in ("topk", "vq2")])
def test_one_latent_channel_is_enough_where_there_is_nothing_to_choose_or_share(bottleneck):
    network = build(bottleneck, channels=1)
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    decoded, code = network(image)
    assert code.z.shape == network.encode(image).shape == (2, 1, 4, 6) and decoded.shape == image.shape


def test_a_decoder_may_be_smaller_than_its_encoder():
    whole, fast = build(), build(decoder_width=4, decoder_blocks=1)
    assert [weight.shape for weight in fast.encoder.parameters()] == [w.shape for w in whole.encoder.parameters()]
    image = torch.rand(1, 3, 16, 24)
    assert fast(image)[0].shape == image.shape
    assert fast.decoder[0].out_channels == 4 and whole.decoder[0].out_channels == 8
    assert len(build(blocks=2).decoder) == len(build(decoder_blocks=2).decoder) == len(whole.decoder) + 1


@pytest.mark.parametrize(("name", "least"), [("decoder_width", 0), ("decoder_blocks", 0), ("blocks", 1)])
def test_sizes_that_cannot_be_are_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} {least - 1} is not at least {least}"):
        AutoencoderConfig(**{name: least - 1})


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_measuring_gives_latents_of_zero_mean_and_unit_variance_posterior_draws_included(bottleneck):
    network = build(bottleneck)
    image = pictures(22)
    network.measure([image[:7], image[7:8], image[8:]])
    latent = network.encode(image).transpose(0, 1).flatten(1)  # (C, ...)
    spread = network.bottleneck.variance(network.encoder(image)) / network.std.square()
    variance = latent.var(dim=1, correction=0) + spread.mean(dim=(0, 2, 3))
    torch.testing.assert_close(latent.mean(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_frozen_latents_stay_while_the_decoder_learns(bottleneck):
    network, image = build(bottleneck), pictures()
    network.train()(image)  # a codebook starts with its first batch
    network.freeze_latents()
    latent, decoded = network.encode(image), network.decode(network.encode(image))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for _ in range(2):
        output, code = network.train()(image)
        ((output - image).square().mean() + code.penalty).backward()
        torch.optim.SGD(trained, lr=0.1).step()
    assert torch.equal(network.encode(image), latent)
    assert not torch.equal(network.decode(latent), decoded)


def test_a_channel_that_says_nothing_of_the_image_stays_small():
    network = build("kl")
    last = network.encoder[-1]
    with torch.no_grad():
        last.weight[0] *= 1e-3  # the first channel's mean hardly moves,
        last.bias[3] = 0.0  # and its draws have unit variance
        last.weight[3] = 0
    network.measure([pictures(22)])
    latent = network.encode(pictures(22))
    assert latent[:, 0].std() < 0.01 and network.std[0].item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 1e-6])
def test_what_rounding_leaves_of_a_channel_is_not_scaled_up(share):
    network = build("identity")
    with torch.no_grad():
        network.encoder[-1].weight[0] *= share
    network.measure([pictures(22)])
    assert network.encode(pictures(22))[:, 0].std() < 0.01
    assert network.std[0].item() == pytest.approx(LEAST_STD * network.std.max().item())


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_mean_and_std_do_not_change_what_comes_back(bottleneck):
    network = build(bottleneck)
    image = pictures(2)
    before = network.decode(network.encode(image))
    network.mean.copy_(torch.tensor([0.5, -3, 0]).view(-1, 1, 1))
    network.std.copy_(torch.tensor([2, 0.1, 7]).view(-1, 1, 1))
    torch.testing.assert_close(network.decode(network.encode(image)), before, atol=1e-5, rtol=1e-5)


def test_mean_and_std_travel_with_the_weights():
    network, other = build(), build()
    network.measure([pictures()])
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.encode(pictures(2)), network.encode(pictures(2)))


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_encoding_draws_nothing_at_random(bottleneck):
    network = build(bottleneck)
    assert torch.equal(network.encode(pictures(2)), network.encode(pictures(2)))


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_pass_that_is_not_finite_leaves_no_trace(bottleneck):
    """Fault 19: the step is skipped, and what moves in the pass itself, such as a codebook, must stay too."""
    network = build(bottleneck).train()
    network(pictures(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.full_like(pictures(2), float("nan")))
    assert [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])] == []


@pytest.mark.parametrize("size", [(30, 32), (32, 30), (2, 2)])
def test_sides_that_are_no_multiples_of_the_factor_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[1]} x {size[0]} pixels: sides must be multiples of 4"):
        build().encode(torch.zeros(1, 3, *size))


def test_decoded_images_stay_in_range():
    assert build().decode(100 * torch.randn(2, 3, 4, 4)).abs().max() == 1


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_every_parameter_is_trained(bottleneck, norm, attention):
    options = {"width": 64, "multipliers": [1, 2]}  # group norms of two channels a group
    network = build(bottleneck, **options, norm=norm, attention=attention)
    decoded, code = network(pictures(2))
    (decoded.square().mean() + code.penalty).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_a_channel_norm_is_torchs_rms_norm_with_a_shift():
    norm, x = ChannelNorm(6), 50 * torch.randn(2, 6, 3, 4)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    wanted = torch.nn.functional.rms_norm(x.movedim(1, -1), (6,), norm.weight, eps=1e-6) + norm.bias
    torch.testing.assert_close(norm(x), wanted.movedim(-1, 1))
    half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted.movedim(-1, 1), atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("norm", "local"), [("channel", True), ("group", False)])
def test_only_with_channel_norms_a_latent_does_not_depend_on_what_lies_far_away(norm, local):
    network = build(norm=norm, attention=False)
    image = torch.rand(1, 3, 128, 128) * 2 - 1
    other = image.clone()
    other[..., 96:] = 1  # beyond the receptive field of the first columns
    same = torch.equal(network.encode(image)[..., :2], network.encode(other)[..., :2])
    assert same == local


@pytest.mark.parametrize(
    ("norm", "steps", "least"), [("group", 75, 25), ("channel", 150, 17)]
)  # vq2: 18 to 21, by seed
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_one_batch_is_learned_by_heart(bottleneck, norm, steps, least):
    network = build(bottleneck, width=32, channels=4, norm=norm)
    image = pictures(4)
    opt = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        decoded, code = network(image)
        opt.zero_grad()
        ((decoded - image).square().mean() + code.penalty).backward()
        opt.step()
    with torch.no_grad():
        error = (network.decode(network.encode(image)) - image).square().mean().item()
    assert 10 * log10(4 / error) > least  # dB, peak to peak 2


def test_a_bounded_decoder_stays_inside_the_range_and_draws_what_the_other_does_through_a_tanh():
    bounded, plain = build(bounded=True), build()
    bounded.load_state_dict(plain.state_dict())
    latent = 30 * torch.randn(2, 3, 4, 4)
    found = bounded.decode(latent, clamp=False)
    assert found.abs().max() <= 1
    torch.testing.assert_close(found, plain.decode(latent, clamp=False).tanh())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bounded.decode(latent).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": 3},
        {"patch": 0},
        {"channels": 0},
        {"width": -1},
        {"multipliers": []},
        {"multipliers": [1, 0]},
        {"norm": "batch"},
    ],
)
def test_sizes_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AutoencoderConfig(**wrong)
