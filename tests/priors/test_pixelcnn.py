"""Gated PixelCNN: what each code depends on, its distribution, and what is drawn from it."""

from itertools import product
from math import log

import pytest
import torch

from ldm.priors import PixelCNN, PixelCNNConfig, draw, nats
from ldm.priors.pixelcnn import gate, pick

KERNELS = [(3, 6), (5, 4)]  # kernel and layers that see a 5 x 5 map whole


def built(num_codes=3, *, cond_channels=0, width=8, layers=3, kernel=3):
    return PixelCNN(PixelCNNConfig(width=width, layers=layers, kernel=kernel), num_codes, cond_channels).eval()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("kernel", "layers"), KERNELS)
def test_logits_depend_on_all_codes_before_and_on_none_from_their_own_on(kernel, layers):
    """So the masks are causal, and there is no blind spot: every earlier code is tried against every later one."""
    side = 5
    network = built(kernel=kernel, layers=layers).double()
    codes = torch.randint(3, (1, side, side))
    before = network(codes)[0]  # (K, h, w)
    for place in range(side * side):
        other = codes.clone()
        other.view(-1)[place] = (other.view(-1)[place] + 1) % 3
        moved = (network(other)[0] - before).abs().amax(dim=0).flatten() > 0  # (h w,)
        assert moved.tolist() == [later > place for later in range(side * side)], place


def test_one_layer_sees_the_codes_next_to_each_alone():
    network, codes = built(layers=1).double(), torch.randint(3, (1, 5, 5))
    before, moved = network(codes)[0], torch.zeros(5, 5, dtype=torch.bool)
    for place in range(25):
        other = codes.clone()
        other.view(-1)[place] = (other.view(-1)[place] + 1) % 3
        moved.view(-1)[place] = bool((network(other)[0, :, 2, 2] - before[:, 2, 2]).abs().max() > 0)
    assert moved.nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [2, 1]]


def test_the_condition_reaches_every_code():
    network, codes = built(cond_channels=2), torch.randint(3, (1, 4, 4))
    cond = torch.randn(1, 2, 4, 4)
    before = network(codes, cond)
    for row, column in product(range(4), range(4)):
        other = cond.clone()
        other[0, :, row, column] += 1
        assert (network(codes, other) - before)[0, :, row, column].abs().max() > 0


@pytest.mark.parametrize("cond_channels", [0, 2])
def test_the_likelihoods_of_all_binary_maps_of_two_by_two_sum_to_one(cond_channels):
    network = built(2, cond_channels=cond_channels).double()
    torch.nn.init.normal_(network.head[-1].weight, std=3.0)  # far from even
    maps = torch.tensor(list(product((0, 1), repeat=4))).view(16, 2, 2)
    cond = torch.randn(1, cond_channels, 2, 2).double().expand(16, -1, -1, -1) if cond_channels else None
    p = torch.exp(-nats_of(network, maps, cond))
    assert p.min() < 1 / 32 and p.sum().item() == pytest.approx(1, abs=1e-6)


def nats_of(network, maps, cond=None):
    return nats(network(maps, cond), maps).sum(dim=(1, 2))


def test_a_gate_is_a_tanh_times_a_sigmoid():
    value, opening = torch.randn(2, 1, 3, 4, 4)
    torch.testing.assert_close(gate(torch.cat([value, opening], dim=1)), torch.tanh(value) * torch.sigmoid(opening))


def test_draws_follow_the_distribution_that_the_likelihood_states():
    """The 16 maps of 2 x 2 are drawn as often as their probability says, to five standard errors."""
    network, count = built(2), 4_000
    torch.nn.init.normal_(network.head[-1].weight, std=3.0)
    drawn = draw(network, (2, 2), generators(*range(count)))
    maps = torch.tensor(list(product((0, 1), repeat=4))).view(16, 2, 2)
    p = torch.exp(-nats_of(network, maps))
    places = (drawn.view(count, 4) * torch.tensor([8, 4, 2, 1])).sum(dim=1)
    found = torch.bincount(places, minlength=16) / count
    assert p.max() < 0.9
    assert ((found - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-3).all()


def test_a_map_drawn_alone_is_that_of_a_batch():
    network = built(7, cond_channels=1)
    cond = torch.randn(3, 1, 3, 5)
    together = draw(network, (3, 5), generators(5, 6, 7), cond=cond)
    alone = draw(network, (3, 5), generators(6), cond=cond[1:2])
    assert torch.equal(alone[0], together[1]) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("kernel", "layers"), KERNELS)
@pytest.mark.parametrize("cond_channels", [0, 2])
def test_what_is_drawn_row_by_row_is_what_the_whole_network_says(kernel, layers, cond_channels):
    network = built(7, kernel=kernel, layers=layers, cond_channels=cond_channels).double()
    for conv in [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]:
        conv.weight.data.mul_(3)  # a fresh network says much the same everywhere
    cond = torch.randn(2, cond_channels, 5, 6).double() if cond_channels else None
    drawn = draw(network, (5, 6), generators(1, 2), cond=cond, temperature=0)
    assert len(drawn.unique()) > 3
    assert torch.equal(drawn, network(drawn, cond).argmax(dim=1))


def test_drawing_leaves_the_global_generator_alone():
    network, state = built(), torch.get_rng_state()
    draw(network, (2, 2), generators(1))
    assert torch.equal(torch.get_rng_state(), state)


def constant(p):
    """A network whose codes are independent, each of distribution ``p``."""
    network = built(len(p))
    torch.nn.init.zeros_(network.head[-1].weight)
    network.head[-1].bias.data.copy_(torch.tensor(p).log())
    return network


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_the_root_of_the_probabilities(temperature):
    p = torch.tensor([0.1, 0.2, 0.7])
    drawn = draw(constant(p.tolist()), (4, 4), generators(*range(400)), temperature=temperature)
    wanted = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    found = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_temperature_zero_takes_the_most_likely_code():
    assert (draw(constant([0.3, 0.4, 0.3]), (3, 3), generators(1, 2), temperature=0) == 1).all()


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_that_means_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature .* try temperature=1"):
        draw(built(), (2, 2), generators(1), temperature=temperature)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_code_of_probability_zero_is_never_drawn(number):
    """Not even by the two numbers at the ends of [0, 1)."""
    logits = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    assert pick(logits, torch.tensor([number], dtype=torch.float64), 1.0).item() == (1 if number == 0 else 2)


def test_nats_are_the_negative_logarithm_of_the_probability():
    network = constant([0.25, 0.5, 0.25])
    codes = torch.tensor([[[0, 1, 2]]])
    wanted = torch.tensor([[[log(4), log(2), log(4)]]])
    torch.testing.assert_close(nats(network(codes), codes), wanted)


@pytest.mark.parametrize("cond_channels", [0, 2])
def test_all_is_trained_but_what_the_last_codes_would_say_of_later_ones(cond_channels):
    network = built(3, cond_channels=cond_channels)
    codes = torch.randint(3, (2, 4, 4))
    cond = torch.randn(2, cond_channels, 4, 4) if cond_channels else None
    nats(network(codes, cond), codes).mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_a_pattern_is_learned():
    """Rows that alternate, one of two ways: after a row's first code the rest is known."""
    network = built(2, layers=2).train()
    first = torch.randint(2, (32, 4, 1))
    codes = (first + torch.arange(4)) % 2  # (32, 4, 4)
    opt = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(40):
        opt.zero_grad()
        nats(network(codes), codes).mean().backward()
        opt.step()
    bits = nats(network(codes), codes).mean(dim=(0, 1)) / log(2)  # of each column
    assert 0.8 < bits[0] < 1.05 and bits[1:].max() < 0.1


@pytest.mark.parametrize("wrong", [{"width": 0}, {"layers": 0}, {"kernel": 4}, {"kernel": 1}])
def test_sizes_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PixelCNNConfig(**wrong)
