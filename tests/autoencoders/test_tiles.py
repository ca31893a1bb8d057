"""Large pictures in tiles: nothing is left out or counted twice, what is local comes out the same, seams are faint."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.blocks import NORMS, Attention
from ldm.autoencoders.tiles import spans, tiled
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.folders import load_autoencoder, shipped_model

GREY_LEVEL = 2 / 255  # of pixels in [-1, 1]


def built(norm="channel", *, bottleneck="kl", attention=False):
    config = AutoencoderConfig(
        channels=4, width=16, multipliers=[1, 1], blocks=1, patch=2, attention=attention, norm=norm, groups=4
    )
    return config.build(BOTTLENECKS[bottleneck]().build(4)).eval()


@pytest.fixture(scope="module")
def large():
    """A picture of the shapes world, 256 pixels a side: four times what the shipped autoencoder was trained on."""
    (batch,) = first_batches(ShapesConfig(size=256).build("val"), 1, 1)
    return batch.image


@pytest.mark.parametrize("grow", [1, 4])
@pytest.mark.parametrize(("length", "tile"), [(8, 8), (9, 8), (23, 8), (64, 12), (100, 16), (101, 17), (5, 9)])
def test_tiles_cover_every_place_and_their_weights_add_up_to_one(length, tile, grow):
    total = torch.zeros(length * grow)
    for span in spans(length, tile, grow):
        assert 0 <= span.start < span.stop <= length and span.stop - span.start <= tile
        assert span.weights.min() >= 0
        total[grow * span.start : grow * span.stop] += span.weights
    torch.testing.assert_close(total, torch.ones(length * grow))


def test_where_two_tiles_overlap_the_weight_goes_over_on_a_line():
    first, second = spans(56, 32, 1)
    assert (first.start, first.stop, second.start, second.stop) == (0, 32, 24, 56)
    falling = first.weights[24:]
    torch.testing.assert_close(falling, torch.tensor([1, 1, 7, 5, 3, 1, 0, 0]) / torch.tensor([1, 1, 8, 8, 8, 8, 1, 1]))
    torch.testing.assert_close(second.weights[:8], 1 - falling)


@pytest.mark.parametrize("size", [(40, 24), (17, 50), (8, 8), (3, 21)])
def test_what_looks_no_farther_than_the_margin_comes_out_the_same(size):
    """A convolution of three places, into twice as many and into half as many."""
    grow = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.PixelShuffle(2))
    shrink = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(8, 5, 3, padding=1))
    x = torch.randn(2, 2, *size)
    torch.testing.assert_close(tiled(grow, x, 16, grow=2), grow(x), atol=1e-5, rtol=1e-4)
    x = torch.randn(2, 2, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(tiled(shrink, x, 16, shrink=2), shrink(x), atol=1e-5, rtol=1e-4)


def test_no_call_is_of_more_than_a_tile():
    seen = []

    def call(part):
        seen.append(tuple(part.shape))
        return part

    tiled(call, torch.zeros(3, 2, 41, 100), 16)
    assert {shape[:2] for shape in seen} == {(3, 2)} and max(max(shape[2:]) for shape in seen) <= 16


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_tile_as_large_as_the_picture_is_the_picture(bottleneck):
    network, image = built("group", bottleneck=bottleneck, attention=True), torch.rand(2, 3, 32, 24) * 2 - 1
    latent = network.encode(image)
    torch.testing.assert_close(network.encode(image, tile=32), latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.decode(latent, tile=32), network.decode(latent), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("bottleneck", ["kl", "vq2"])
@pytest.mark.parametrize("norm", NORMS)
def test_with_random_weights_no_seam_shows(norm, bottleneck, attention):
    """Attention and group norms look at all of the picture, and do so here, too."""
    network, image = built(norm, bottleneck=bottleneck, attention=attention), torch.rand(1, 3, 160, 224) * 2 - 1
    latent = network.encode(image)
    seams = (network.decode(latent, tile=128) - network.decode(latent)).abs()
    assert 0 < seams.mean() < GREY_LEVEL
    inside = (network.encode(image, tile=128) - latent).abs().mean() / latent.abs().mean()
    assert inside < 0.02


def test_with_the_shipped_weights_no_seam_shows(large):
    network, _ = load_autoencoder(shipped_model() / "autoencoder")
    latent = network.encode(large)
    inside = (network.encode(large, tile=128) - latent).abs()
    assert inside.mean() < 0.02 and inside.max() < 0.5
    seams = (network.decode(latent, tile=128) - network.decode(latent)).abs()
    assert 0 < seams.mean() < GREY_LEVEL


def test_attention_takes_memory_in_proportion_to_the_positions():
    """It is fit for the kernel that never holds all their products, which alone is let run here."""
    layer = Attention(8, partial(NORMS["group"], groups=4))
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        layer(torch.randn(1, 8, 16, 16))


def test_attention_sees_the_whole_picture_also_in_tiles():
    def moved(attention):
        network, latent = built(attention=attention), torch.randn(1, 4, 8, 64)
        other = latent.clone()
        other[..., 56:] += 1
        change = network.decode(other, tile=64, clamp=False) - network.decode(latent, tile=64, clamp=False)
        return bool(change[..., :32].abs().max() > 0)  # far from what was changed

    assert [moved(True), moved(False)] == [True, False]


def test_decoding_in_tiles_keeps_what_decoding_promises():
    network, latent = built(), 100 * torch.randn(1, 4, 24, 24)
    assert network.decode(latent, tile=64).abs().max() <= 1
    assert network.decode(latent, tile=64, clamp=False).abs().max() > 1


@pytest.mark.parametrize("tile", [1, 31, -8])
def test_a_tile_too_small_to_overlap_is_refused(tile):
    network = built()
    with pytest.raises(ValueError, match=rf"tile {tile} is too small for a factor of 4; try tile=256"):
        network.decode(torch.zeros(1, 4, 8, 8), tile=tile)
    with pytest.raises(ValueError, match=rf"tile {tile} is too small"):
        network.encode(torch.zeros(1, 3, 32, 32), tile=tile)
