"""Pictures as maps of codes, of every bottleneck that has some."""

import pytest
import torch

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.autoencoders.codes import decode_codes, encode_codes, map_sizes, num_codes, quantizers

CODED = [name for name, config in BOTTLENECKS.items() if quantizers(config().build(4))]


def network(name):
    config = AutoencoderConfig(channels=4, width=8, multipliers=[1, 1], blocks=1, patch=2)
    return config.build(BOTTLENECKS[name]().build(4)).eval()


def test_the_bottlenecks_with_codes_are_those_that_quantise():
    assert CODED == ["vq", "vq2", "fsq"]


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize(("height", "width"), [(16, 24), (20, 12), (4, 4)])
def test_maps_have_the_sizes_that_are_told_and_numbers_below_k(name, height, width):
    one = network(name)
    maps = encode_codes(one, torch.rand(2, 3, height, width) * 2 - 1)
    sizes, counts = map_sizes(one.bottleneck, height // 4, width // 4), num_codes(one.bottleneck)
    assert [tuple(codes.shape) for codes in maps] == [(2, *size) for size in sizes]
    assert all(codes.min() >= 0 and codes.max() < count for codes, count in zip(maps, counts, strict=True))


@pytest.mark.parametrize("name", CODED)
def test_decoded_codes_are_the_reconstruction(name):
    one, image = network(name), torch.rand(2, 3, 16, 24) * 2 - 1
    one.mean.fill_(0.3), one.std.fill_(2.0)  # which codes have nothing to do with
    made = decode_codes(one, encode_codes(one, image))
    torch.testing.assert_close(made, one(image)[0].clamp(-1, 1))


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name not in CODED])
def test_where_there_are_no_codes_it_is_said_who_has_some(name):
    with pytest.raises(ValueError, match=r"has no codes, as vq, vq2, fsq have; try bottleneck=vq"):
        encode_codes(network(name), torch.zeros(1, 3, 8, 8))
