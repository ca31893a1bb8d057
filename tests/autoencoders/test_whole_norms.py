"""Group norms on pictures in tiles: they are those of the whole, at every size that the network goes through."""

import pytest
import torch
from torch import nn

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.blocks import AT_LATENT_SIZE, Downsample, group_norm
from ldm.autoencoders.tiles import tiled
from ldm.autoencoders.whole_norms import in_tiles, scale, stretches
from ldm.blocks import Upsample


@pytest.fixture(scope="module")
def network():
    """Three sizes, of which a picture of 320 x 288 pixels takes several tiles of 128 at each but the latent's own."""
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=4, width=8, multipliers=[1, 2, 2], blocks=1, patch=1, attention=False, groups=4)
    return config.build(BOTTLENECKS["kl"]().build(4)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image():
    """Dark on one side, so that no tile's own statistics are those of the whole."""
    torch.manual_seed(1)
    return torch.rand(2, 3, 320, 288) * torch.linspace(-1, 1, 288)


def test_a_network_is_cut_where_the_size_changes():
    same, up, down = nn.Conv2d(4, 4, 3, padding=1), Upsample(4), Downsample(4)
    assert [[*part] for part in stretches([same, up, same, same, up])] == [[same], [up, same, same], [up]]
    assert [[*part] for part in stretches([same, same, down, same, down])] == [[same, same, down], [same, down]]
    assert [scale(part) for part in ([same], [up], [nn.PixelUnshuffle(4), down], [up, nn.PixelShuffle(2)])] == [
        (1, 1),
        (1, 2),
        (8, 1),
        (1, 4),
    ]


def test_encoding_and_decoding_are_those_of_the_whole(network, image):
    latent = network.encode(image)
    torch.testing.assert_close(network.encode(image, tile=128), latent, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(network.decode(latent, tile=128), network.decode(latent), atol=5e-4, rtol=1e-3)


def test_each_tiles_own_statistics_would_not_do(network, image):
    fine, h = network.decoder[AT_LATENT_SIZE["decoder"] :], torch.randn(1, 16, 80, 72) + torch.linspace(-2, 2, 72)
    whole = fine(h)
    assert (in_tiles(fine, h, 128) - whole).abs().mean() < 1e-4
    assert (tiled(fine, h, 32, grow=4) - whole).abs().mean() > 1e-2


def test_a_large_mean_beside_a_small_variance_is_no_matter():
    norm = group_norm(8, 4)
    x = 1_000 + torch.randn(1, 8, 200, 40)
    torch.testing.assert_close(in_tiles(nn.Sequential(norm), x, 64), norm(x), atol=2e-3, rtol=0)


def test_no_call_is_of_more_than_a_tile_of_one_picture(network, image):
    sizes = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: sizes.add((len(inputs[0]), *inputs[0].shape[2:])))
        for module in network.modules()
        if isinstance(module, nn.GroupNorm)
    ]
    network.decode(network.encode(image, tile=64), tile=64)
    for hook in hooks:
        hook.remove()
    assert {rows for rows, *_ in sizes} == {1}
    at_latent_size = {(1, 80, 72)}
    assert max(max(sides) for _, *sides in sizes - at_latent_size) == 64


def test_afterwards_the_norms_are_as_before(network, image):
    part = image[:1, :, :160, :160]
    before = network.encode(part)
    network.encode(image, tile=128)
    with pytest.raises(RuntimeError):  # a batch of another number of channels
        network.encode(image[:, :2], tile=128)
    assert torch.equal(network.encode(part), before)


def test_under_autocast_the_result_is_nearly_the_same(network, image):
    latent = network.encode(image)
    with torch.autocast("cpu", torch.bfloat16):
        apart = (network.decode(latent, tile=128) - network.decode(latent)).abs()
    assert apart.mean() < 0.01
