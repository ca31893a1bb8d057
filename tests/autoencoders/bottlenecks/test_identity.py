"""The bottleneck that is none."""

import torch

from ldm.autoencoders.bottlenecks import IdentityConfig


def test_the_identity_is_the_identity():
    h = torch.randn(2, 3, 4, 4)
    bottleneck = IdentityConfig().build(3)
    code = bottleneck(h, 48)
    assert torch.equal(code.z, h) and torch.equal(bottleneck.mode(h), h) and torch.equal(bottleneck.quantize(h), h)
    assert code.penalty == 0
