"""Sparse latents: what is kept of them, and what their mean activation costs."""

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from ldm.autoencoders.bottlenecks import SparseConfig, TopKConfig
from ldm.autoencoders.bottlenecks.sparse import bernoulli_kl


@pytest.mark.parametrize("k", [1, 3, 6])
def test_each_position_keeps_exactly_its_k_largest(k):
    h = torch.randn(2, 6, 5, 4)
    z = TopKConfig(k).build(6)(h, 60).z
    assert ((z != 0).sum(dim=1) == k).all()
    assert torch.equal(z[z != 0], h[z != 0])
    dropped = torch.where(z == 0, h, -torch.inf).amax(dim=1)
    kept = torch.where(z != 0, h, torch.inf).amin(dim=1)
    assert (kept > dropped).all()


def test_the_gradient_goes_through_what_is_kept_and_nowhere_else():
    h = torch.randn(2, 6, 5, 4).requires_grad_()
    wanted = torch.randn(2, 6, 5, 4)
    z = TopKConfig(2).build(6)(h, 60).z
    (z * wanted).sum().backward()
    assert torch.equal(h.grad, torch.where(z != 0, wanted, 0.0))


def test_the_divergence_is_that_of_torch():
    mean = torch.rand(50, dtype=torch.float64) * 0.98 + 0.01
    theirs = kl_divergence(Bernoulli(torch.tensor(0.05, dtype=torch.float64)), Bernoulli(mean))
    torch.testing.assert_close(bernoulli_kl(0.05, mean, 1 - mean), theirs)


def test_the_divergence_is_zero_at_rho_alone_and_finite_everywhere():
    on, others = torch.tensor(0.2), torch.tensor([0.0, 0.1, 0.3, 1.0])
    assert bernoulli_kl(0.2, on, 1 - on).item() == pytest.approx(0, abs=1e-7)
    assert bernoulli_kl(0.2, others, 1 - others).isfinite().all()
    assert (bernoulli_kl(0.2, others, 1 - others) > 0.01).all()


@pytest.mark.parametrize("h", [-60.0, -20.0, 0.0, 20.0, 60.0])
def test_the_penalty_has_its_gradient_however_long_a_unit_is_off_or_on(h):
    """By one of N features of its unit: (mean - rho) / N, of which no part may round to nothing on the way."""
    features = torch.full((2, 3, 2, 1), h, requires_grad=True)
    SparseConfig(weight=1.0, rho=0.05).build(3)(features, 12).penalty.backward()
    mean = torch.sigmoid(torch.tensor(h))
    torch.testing.assert_close(features.grad, torch.full((2, 3, 2, 1), (mean.item() - 0.05) / 4))


def test_the_penalty_is_the_sum_over_units_of_the_divergence_of_their_means():
    h = torch.randn(3, 4, 5, 6)
    code = SparseConfig(weight=0.7, rho=0.1).build(4)(h, 90)
    means = [torch.sigmoid(h[:, c]).mean() for c in range(4)]
    torch.testing.assert_close(code.penalty, 0.7 * sum(bernoulli_kl(0.1, mean, 1 - mean) for mean in means))
    torch.testing.assert_close(code.z, torch.sigmoid(h))


def test_the_penalty_alone_brings_every_unit_to_rho():
    h = torch.randn(2, 3, 4, 4).requires_grad_()
    bottleneck = SparseConfig(weight=1.0, rho=0.2).build(3)
    opt = torch.optim.Adam([h], lr=0.1)
    for _ in range(100):
        opt.zero_grad()
        bottleneck(h, 48).penalty.backward()
        opt.step()
    torch.testing.assert_close(torch.sigmoid(h).mean(dim=(0, 2, 3)), torch.full((3,), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"weight": float("nan")}, {"rho": 0.0}, {"rho": 1.0}, {"rho": float("nan")}]
)
def test_settings_of_the_sparse_penalty_are_checked(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name} {value}.*; try {name}="):
        SparseConfig(**wrong)


def test_k_is_checked():
    with pytest.raises(ValueError, match="k 0 is not at least 1; try k="):
        TopKConfig(0)
    with pytest.raises(ValueError, match="k 5 is more than the latent's 4 channels; try k=1"):
        TopKConfig(5).build(4)
