"""Vector quantisation at two levels: what each level knows, and that both come back from their codes."""

import pytest
import torch

from ldm.autoencoders.bottlenecks import VQ2Config


def built(channels=5, **options):
    bottleneck = VQ2Config(**{"codes": 16, "width": 8, **options}).build(channels)
    for level in (bottleneck.top, bottleneck.bottom):
        level.started.fill_(True)
        with torch.no_grad():
            level.codebook.mul_(0.3)  # near what fresh convolutions give
    return bottleneck


SIZES = [(6, 4), (5, 4), (4, 5), (3, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_the_codes_of_both_levels_give_the_latent_back(size):
    bottleneck, h = built().eval(), torch.randn(2, 8, *size)
    top, bottom = bottleneck.codes(h)
    assert top.shape == (2, -(-size[0] // 2), -(-size[1] // 2)) and bottom.shape == (2, *size)
    z = bottleneck.from_codes(top, bottom)
    assert torch.equal(z, bottleneck(h, 60).z)
    assert torch.equal(z, bottleneck.quantize(z)) and torch.equal(z, bottleneck.quantize(bottleneck.mode(h)))


def test_the_top_level_has_half_of_the_channels_at_half_the_size():
    bottleneck, h = built().eval(), torch.randn(2, 8, 6, 4)
    z = bottleneck.mode(h)[:, :2]
    assert torch.equal(z, z[:, :, ::2, ::2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_the_top_settles_on_the_code_nearest_to_the_mean_of_four_values():
    bottleneck, h = built().eval(), torch.randn(2, 8, 6, 4)
    z = bottleneck.mode(h)
    noise = torch.randn(2, 5, 3, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    sign = torch.ones(6, 4)
    sign[::2] = -1  # the two rows of each four, apart by as much as they like
    noise[:, 2:] = 0
    assert torch.equal(bottleneck.quantize(z + noise * sign), bottleneck.quantize(z))


def test_the_bottom_level_knows_the_codes_of_the_top():
    bottleneck, h = built().eval(), torch.randn(2, 8, 6, 4)
    before = bottleneck.mode(h)
    with torch.no_grad():
        bottleneck.top.codebook.add_(1.0)
    after = bottleneck.mode(h)
    assert torch.equal(after[:, :2], before[:, :2]) and not torch.allclose(after[:, 2:], before[:, 2:])


@pytest.mark.parametrize("ema", [True, False])
def test_the_penalty_is_that_of_both_levels_and_moves_both_encoders(ema):
    bottleneck, h = built(ema=ema, revive=0.0), torch.randn(2, 8, 6, 4)
    bottleneck.eval()
    top = bottleneck.top(bottleneck.shrink(h), 60)
    known = top.z.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    bottom = bottleneck.bottom(bottleneck.mix(torch.cat([h, known], dim=1)), 60)
    code = bottleneck(h, 60)
    torch.testing.assert_close(code.penalty, top.penalty + bottom.penalty)
    assert code.logs["usage_top"] == top.logs["usage"] and code.logs["perplexity_bottom"] == bottom.logs["perplexity"]
    code.penalty.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in bottleneck.parameters())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="channels 1 of the latent.*; try autoencoder.channels="):
        VQ2Config().build(1)
    with pytest.raises(ValueError, match="width 0 is not at least 1; try width="):
        VQ2Config(width=0)
    with pytest.raises(ValueError, match="codes 1 are not at least 2"):
        VQ2Config(codes=1)
