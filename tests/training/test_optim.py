"""Learning rate, weight decay, moving average and precision."""

from math import cos, pi

import pytest
import timm.optim.muon
import torch
from torch import nn

from ldm.autoencoders.bottlenecks.vq import VQConfig
from ldm.training.optim import OPTIMIZERS, TrainConfig, learning_rate, moving_average, optimizer, resolve_precision


def rates(**options):
    config = TrainConfig(**{"steps": 100, "warmup": 10, "lr": 2.0, **options})
    opt = optimizer(nn.Linear(2, 2), config)
    schedule = learning_rate(opt, config)
    seen = []
    for _ in range(config.steps + 1):
        seen.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_the_warm_up_is_linear_and_reaches_the_peak(decay):
    assert rates(decay=decay)[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])


def test_the_decay_follows_its_formula_to_the_share_that_is_left():
    done = [(step - 10) / 90 for step in range(10, 101)]
    assert rates(decay="constant")[10:] == pytest.approx([2.0] * 91)
    assert rates(decay="linear", lr_end=0.5)[10:] == pytest.approx([2 - share for share in done])
    assert rates(decay="cosine")[10:] == pytest.approx([1 + cos(pi * share) for share in done], abs=1e-9)
    assert rates(decay="cosine", lr_end=0.1)[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0, 100, 150])
def test_any_length_of_warm_up_is_possible(warmup):
    assert all(0 <= rate <= 2 for rate in rates(warmup=warmup))


@pytest.mark.parametrize("step", [0, 3, 10, 57, 100])
def test_the_learning_rate_goes_on_from_any_step(step):
    config = TrainConfig(steps=100, warmup=10, lr=2.0)
    opt = optimizer(nn.Linear(2, 2), config)
    schedule = learning_rate(opt, config, step)
    for expected in rates()[step:]:
        assert opt.param_groups[0]["lr"] == opt.param_groups[1]["lr"] == pytest.approx(expected)
        opt.step()
        schedule.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_matrices_and_kernels_decay(kind):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    network[2].bias.requires_grad_(False)
    opt = optimizer(network, TrainConfig(optimizer=kind, lr=0.5, weight_decay=0.1))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    opt.step()  # without a gradient, decay is all that moves a weight
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim >= 2 else 1.0), msg=name)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_codebook_that_is_learned_by_gradient_does_not_decay(kind):
    network = VQConfig(codes=8, ema=False).build(4)
    opt = optimizer(network, TrainConfig(optimizer=kind, lr=0.5, weight_decay=0.1))
    before = network.codebook.detach().clone()
    network.codebook.grad = torch.zeros_like(before)
    opt.step()
    assert torch.equal(network.codebook.detach(), before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_trainable_parameter_is_optimized_once(kind):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4)).requires_grad_(True)
    network[0].weight.requires_grad_(False)
    held = [p for group in optimizer(network, TrainConfig(optimizer=kind)).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(held) == 5


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (nn.Linear(6, 3), "weight"),
        (nn.Conv2d(2, 3, 3), "weight"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
    ],
)
def test_muon_moves_every_direction_of_a_layers_weight_alike(network, name):
    weight = network.get_parameter(name)
    before = weight.detach().flatten(1).clone()
    opt = optimizer(network, TrainConfig(optimizer="muon", lr=1.0, weight_decay=0.0))
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    moved = torch.linalg.svdvals(weight.detach().flatten(1) - before) / (0.2 * max(before.shape) ** 0.5)
    assert ((moved > 0.6) & (moved < 1.3)).all()  # five iterations bring singular values near to 1, not to it


QUINTIC = (  # https://leloykun.github.io/ponder/muon-opt-coeffs
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@pytest.mark.parametrize("multiplies", [True, False])
@pytest.mark.parametrize("iterations", [3, 4, 5])
def test_muon_iterates_newton_schulz_as_often_as_asked_for(iterations, multiplies, monkeypatch):
    """In bfloat16 where the machine multiplies it, and else in single precision, which is far faster there."""
    monkeypatch.setattr("ldm.training.optim._cpu_multiplies_bf16", lambda: multiplies)
    kept = timm.optim.muon.zeropower_via_newtonschulz
    network = nn.Linear(2, 2, bias=False)
    before = network.weight.detach().clone()
    opt = optimizer(network, TrainConfig(optimizer="muon", lr=1.0, weight_decay=0.0, muon_iterations=iterations))
    network.weight.grad = torch.diag(torch.tensor([1.0, 0.01]))
    opt.step()
    expected = torch.tensor([1.0, 0.01]) / (1 + 0.01**2) ** 0.5  # singular values over the Frobenius norm
    for a, b, c in QUINTIC[:iterations]:
        expected = a * expected + b * expected**3 + c * expected**5
    moved = (before - network.weight.detach()) / (0.2 * 2**0.5)  # the scale that matches AdamW's steps
    error = (moved - torch.diag(expected)).abs().max()
    assert 1e-4 < error < 0.03 if multiplies else error < 1e-5
    assert timm.optim.muon.zeropower_via_newtonschulz is kept
    assert expected[0] > 0.8  # large directions are moved whole


@pytest.mark.parametrize("iterations", [0, 2])
def test_iterations_of_muon_that_shrink_large_directions_are_refused(iterations):
    with pytest.raises(ValueError, match=rf"muon_iterations {iterations} is not at least 3; try muon_iterations=5"):
        TrainConfig(muon_iterations=iterations)


def test_muon_leaves_tables_and_vectors_to_nadamw():
    network = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    opt = optimizer(network, TrainConfig(optimizer="muon", lr=0.1, weight_decay=0.0))
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    for name, p in network.named_parameters():
        # a first step of Adam goes by the gradient's sign, whatever its size
        step = start[name] - p.detach()
        assert torch.equal(step.sign(), p.grad.sign()) and step.abs().std() < 1e-4 * step.abs().mean(), name


def test_the_moving_average_warms_up_to_its_decay():
    network = nn.Linear(1, 1, bias=False)
    average = moving_average(network, 0.8)
    expected = None
    for n in range(60):
        nn.init.normal_(network.weight)
        average.update_parameters(network)
        decay = min(0.8, (1 + n) / (10 + n))
        now = network.weight.item()
        expected = now if n == 0 else decay * expected + (1 - decay) * now
        assert average.module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_the_average_leaves_the_network_as_it_is():
    network = nn.Linear(2, 2)
    average = moving_average(network, 0.9)
    before = network.weight.detach().clone()
    average.update_parameters(network)
    with torch.no_grad():
        average.module.weight += 1
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "fp32"),
        ({"avx512": True, "amx_tile": False}, "fp32"),
        ({"amx_tile": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("hardware", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bfloat16_where_the_gpu_multiplies_it(monkeypatch, hardware, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_an_older_torch_that_cannot_tell_stays_with_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(asked):
    assert resolve_precision(asked, torch.device("cpu")) == asked


def test_adamw_takes_the_betas_asked_for():
    layer, rates = nn.Linear(2, 1, bias=False), (0.5, 0.7)
    opt = optimizer(layer, TrainConfig(optimizer="adamw", lr=0.1, betas=[*rates], weight_decay=0.0))
    expected, mean, square = layer.weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step, gradient in enumerate((torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 0.5]])), start=1):
        layer.weight.grad = gradient.clone()
        opt.step()
        mean = rates[0] * mean + (1 - rates[0]) * gradient
        square = rates[1] * square + (1 - rates[1]) * gradient**2
        root = (square / (1 - rates[1] ** step)).sqrt() + 1e-8
        expected = expected - 0.1 * mean / (1 - rates[0] ** step) / root
        torch.testing.assert_close(layer.weight.detach(), expected)


def test_muon_takes_momentum_iterations_and_betas_as_asked():
    opt = optimizer(nn.Linear(4, 4), TrainConfig(optimizer="muon", betas=[0.5, 0.7], muon_iterations=3))
    asked = {"momentum": 0.95, "nesterov": True, "ns_steps": 3, "betas": (0.5, 0.7)}
    assert [{name: group[name] for name in asked} for group in opt.param_groups] == [asked] * len(opt.param_groups)
