"""What every bottleneck of the table keeps to, and every one that has codes."""

import pytest
import torch
from torch import nn

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.bottlenecks.base import straight_through, usage
from ldm.autoencoders.codes import map_sizes, num_codes, quantizers

CHANNELS = 4
QUANTIZERS = [name for name, config in BOTTLENECKS.items() if quantizers(config().build(CHANNELS))]


def built(name, **options):
    return BOTTLENECKS[name](**options).build(CHANNELS)


def features(bottleneck, batch=3, height=5, width=4):
    return torch.randn(batch, bottleneck.features, height, width)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_code_is_a_finite_latent_with_a_finite_penalty(name):
    bottleneck = built(name)
    h = features(bottleneck)
    code = bottleneck(h, 48)
    assert code.z.shape == bottleneck.mode(h).shape == bottleneck.variance(h).shape == (3, CHANNELS, 5, 4)
    assert code.z.isfinite().all() and code.penalty.shape == () and code.penalty.isfinite() and code.penalty >= 0
    assert all(value.shape == () and value.isfinite() for value in code.logs.values())


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_gradient_of_the_latent_reaches_the_encoder(name):
    bottleneck = built(name)
    h = features(bottleneck).requires_grad_()
    bottleneck(h, 48).z.square().sum().backward()
    assert h.grad.isfinite().all() and (h.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_a_bottleneck_survives_its_state(name):
    one, other = built(name), built(name)
    h = features(one)
    for _ in range(2):
        one(h, 48)  # what training changes besides the parameters is in the state, too
    other.load_state_dict(one.state_dict())
    torch.manual_seed(3)
    first = one(h, 48)
    torch.manual_seed(3)
    again = other(h, 48)
    assert torch.equal(first.z, again.z) and torch.equal(first.penalty, again.penalty)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_outside_of_training_nothing_changes(name):
    bottleneck = built(name).eval()
    before = {key: value.clone() for key, value in bottleneck.state_dict().items()}
    bottleneck(features(bottleneck), 48)
    assert all(torch.equal(value, before[key]) for key, value in bottleneck.state_dict().items())


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_training_passes_draw_from_the_global_generator_alone(name):
    def state():
        torch.manual_seed(1)
        bottleneck = built(name)
        h = features(bottleneck)
        torch.manual_seed(2)
        return [bottleneck(h, 48).z, *bottleneck.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(state(), state(), strict=True))


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_decoder_sees_in_use_what_it_sees_in_training_but_for_draws(name):
    bottleneck = built(name).eval()
    h = features(bottleneck)
    draw = bottleneck(h, 48).z - bottleneck.quantize(bottleneck.mode(h))
    assert (draw.abs() <= 6 * bottleneck.variance(h).sqrt()).all()  # six sigma, and exactly the same where that is 0


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_whole_numbers_that_give_the_latent_back(name):
    bottleneck = built(name).eval()
    h = features(bottleneck)
    codes = bottleneck.codes(h)
    maps = codes if isinstance(codes, tuple) else (codes,)
    for indices, count, size in zip(maps, num_codes(bottleneck), map_sizes(bottleneck, 5, 4), strict=True):
        assert indices.dtype == torch.long and indices.shape == (3, *size)
        assert indices.min() >= 0 and indices.max() < count
    z = bottleneck.from_codes(*maps)
    assert torch.equal(z, bottleneck(h, 48).z)
    torch.testing.assert_close(bottleneck.quantize(z), z)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_decoder_quantises_what_a_denoiser_draws(name):
    config = AutoencoderConfig(channels=CHANNELS, width=8, multipliers=[1], blocks=1, patch=4)
    network = config.build(built(name)).eval()
    network.mean.fill_(0.3), network.std.fill_(2.0)
    levels = zip(num_codes(network.bottleneck), map_sizes(network.bottleneck, 4, 4), strict=True)
    maps = [torch.randint(count, (1, *size)) for count, size in levels]
    latent = (network.bottleneck.from_codes(*maps) - network.mean) / network.std
    image = network.decode(latent)
    torch.testing.assert_close(network.decode(latent + 1e-4 * torch.randn_like(latent)), image)
    assert not torch.allclose(network.decode(latent + torch.randn_like(latent)), image)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_decoding_has_a_gradient(name):
    bottleneck = built(name).eval()
    z = torch.randn(1, CHANNELS, 2, 2).requires_grad_()
    bottleneck.quantize(z).sum().backward()
    assert z.grad.abs().sum() > 0


def test_a_straight_through_gradient_is_that_of_the_identity_and_the_value_exact():
    z, settled = torch.randn(50, dtype=torch.float64).requires_grad_(), torch.randn(50, dtype=torch.float64)
    wanted = torch.randn(50, dtype=torch.float64)
    made = straight_through(z, settled)
    (made * wanted).sum().backward()
    assert torch.equal(made, settled) and torch.equal(z.grad, wanted)


def test_usage_and_perplexity_are_those_of_the_frequencies():
    even = usage(torch.arange(6).repeat(4), 12)
    assert even["usage"] == 0.5
    torch.testing.assert_close(even["perplexity"], torch.tensor(6.0))
    uneven = usage(torch.tensor([7, 7, 7, 2]), 8)
    torch.testing.assert_close(uneven["perplexity"], torch.tensor(0.75**-0.75 * 0.25**-0.25))


@pytest.mark.parametrize(
    ("name", "training", "other"),
    [
        ("kl", {"weight": 1.0, "free_bits": 1.0, "warmup": 3}, {}),
        ("vq", {"ema": False, "revive": 0.0, "commitment": 1.0}, {"codes": 8}),
        ("fsq", {}, {"levels": [3]}),
        ("topk", {}, {"k": 1}),
        ("sparse", {"rho": 0.1}, {}),
    ],
)
def test_what_only_trains_a_bottleneck_does_not_make_it_another(name, training, other):
    kind = BOTTLENECKS[name]
    assert kind(**training).network == kind().network
    assert not other or kind(**other).network != kind().network
    assert all(kind().network != BOTTLENECKS[another]().network for another in BOTTLENECKS if another != name)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_any_start_of_the_encoders_last_convolution_is_finite(name):
    bottleneck = built(name)
    last = nn.Conv2d(2, bottleneck.features, 1)
    bottleneck.start(last)
    assert bottleneck(last(torch.randn(2, 2, 3, 3)), 27).z.isfinite().all()
