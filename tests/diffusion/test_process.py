"""The forward process, the loss and the denoiser, with networks that are exact."""

import pytest
import torch
from torch import nn

from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.loss import DenoisingLoss, loss
from ldm.diffusion.process import Process, ProcessConfig, drop_text, noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, regressed
from ldm.diffusion.times import TIMES, TimeSampler
from ldm.diffusion.vlb import vlb_term
from ldm.diffusion.weights import WEIGHTS, rate
from ldm.types import Condition, Prediction

SCHEDULE = SCHEDULES["linear"]().build()


def condition(rows: int, value: float = 1.0, length: int = 3) -> Condition:
    return Condition(
        torch.full((rows, length, 2), value),
        torch.full((rows, 2), value),
        torch.ones(rows, length, dtype=torch.bool),
    )


class Knowing(nn.Module):
    """A network that knows x0, the value its text is filled with, and may err by ``error`` in F."""

    def __init__(self, process, error=0.0):
        super().__init__()
        self.process, self.error, self.saw = process, error, []

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        self.saw.append(x)
        level = self.process.schedule.level(t)
        if self.process.unit_input:
            x = x * torch.hypot(level.alpha, level.sigma)
        x0 = cond.pooled[:, 0].view(-1, 1, 1, 1).expand_as(x)
        said = regressed(self.process.target, x0, (x - level.alpha * x0) / level.sigma, level) + self.error
        return torch.cat([said, torch.full_like(said, 0.25)], dim=1) if self.process.learned_variance else said


def process(target="v", **changes):
    return Process(SCHEDULE, TARGETS[target], **changes)


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULES["linear"](steps=100),
        SCHEDULES["vp"](beta_max=2.0),
        SCHEDULES["ve"](sigma_max=1.0),
        SCHEDULES["listed"](gamma=[-13.0, 1.0]),
    ],
)
def test_a_schedule_that_hides_too_little_is_refused_before_a_training(schedule):
    with pytest.raises(ValueError, match=r"sigma / alpha = 1[.,].*from 2 on; raise its end"):
        ProcessConfig().check(schedule.build())


@pytest.mark.parametrize("change", [{"scaled": True}, {"zero_snr": True}])
def test_a_short_table_that_hides_enough_is_not(change):
    ProcessConfig().check(SCHEDULES["linear"](steps=100, **change).build())


every_target = pytest.mark.parametrize("target", TARGETS)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_the_noised_data_have_the_moments_of_the_process(t):
    level = SCHEDULE.level(t)
    x0 = torch.full((1, 1, 400, 400), 0.7)
    x = noised(x0, torch.randn_like(x0), level)
    assert x.mean() == pytest.approx(level.alpha * 0.7, abs=0.01)
    assert x.std() == pytest.approx(level.sigma, rel=0.01)


def test_one_jump_to_t_equals_a_walk_through_every_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    mean, variance = 1.0, 0.0
    for beta in betas[:600]:
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    level = SCHEDULE.level(0.6)
    assert level.alpha == pytest.approx(float(mean), rel=1e-9)
    assert level.sigma**2 == pytest.approx(float(variance), rel=1e-9)


@every_target
@pytest.mark.parametrize("changes", [{}, {"unit_input": True}, {"learned_variance": True}])
def test_the_loss_is_zero_for_a_network_that_knows(target, changes):
    made = process(target, **changes)
    t = torch.tensor([0.2, 0.5, 0.8])
    x0 = torch.ones(3, 2, 4, 4)
    got = loss(Knowing(made), made, x0, condition(3), t, torch.randn_like(x0))
    assert got.shape == (3,)
    torch.testing.assert_close(got, torch.zeros(3), atol=1e-6, rtol=0)


@every_target
@pytest.mark.parametrize("changes", [{}, {"unit_input": True}, {"learned_variance": True}])
def test_the_denoiser_says_x0_whatever_the_target(target, changes):
    made = process(target, **changes)
    said = made.denoiser(Knowing(made), condition(2, 0.3))(torch.randn(2, 1, 4, 4), SCHEDULE.level(0.5))
    torch.testing.assert_close(said.x0, torch.full_like(said.x0, 0.3), atol=1e-4, rtol=1e-4)
    if changes.get("learned_variance"):
        assert torch.equal(said.variance, torch.full_like(said.x0, 0.25))
    else:
        assert said.variance is None


def test_a_network_with_unit_input_sees_unit_variance_on_levels_that_grow():
    schedule = SCHEDULES["ve"]().build()
    made = Process(schedule, TARGETS["edm"], unit_input=True)
    network, x0 = Knowing(made), torch.randn(64, 1, 8, 8)
    for t in (0.1, 0.5, 1.0):
        level = schedule.level(t)
        made.said(network, noised(x0, torch.randn_like(x0), level), level, condition(64))
        assert network.saw[-1].std() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_scale_times_from_null_to_text(scale):
    made = process("eps")
    denoise = classifier_free(Knowing(made), made, condition(2, 0.5), condition(2, 0.2, length=1), scale)
    x0 = denoise(torch.randn(2, 1, 4, 4), SCHEDULE.level(0.5)).x0
    torch.testing.assert_close(x0, torch.full_like(x0, 0.2 + scale * 0.3), atol=1e-4, rtol=1e-4)


def objective(made, **changes):
    return DenoisingLoss(made, TIMES["uniform"]().build(SCHEDULE), **changes)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_training_loss_is_the_weight_times_the_squared_error(weight):
    made, x0 = process("eps"), torch.ones(4, 2, 4, 4)
    train = objective(made, weight=WEIGHTS[weight]())
    got = train(Knowing(made, error=0.5), x0, condition(4), torch.Generator().manual_seed(0))
    t = train.times(4, torch.Generator().manual_seed(0)).t
    factor = torch.as_tensor(WEIGHTS[weight]().on_f(made.target, SCHEDULE.level(t), rate(SCHEDULE, t)))
    torch.testing.assert_close(got, 0.25 * factor.flatten().expand(4), rtol=1e-3, atol=1e-5)


def test_the_training_loss_follows_its_generator_alone():
    made, x0 = process(), torch.randn(4, 2, 4, 4)
    one, again, other = (
        objective(made)(Knowing(made), x0, condition(4), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_importance_is_told_the_losses_before_it_weights_them():
    made, x0 = process("eps"), torch.ones(64, 1, 2, 2)
    times = TIMES["importance"](bands=2, history=1).build(SCHEDULE)
    train = DenoisingLoss(made, times)
    network = Knowing(made, error=0.5)
    for seed in range(3):
        each = train(network, x0, condition(64), torch.Generator().manual_seed(seed))
    assert each.mean() == pytest.approx(0.25, rel=1e-3)
    torch.testing.assert_close(times.losses, torch.full((2, 1), 0.25), rtol=1e-3, atol=0)


def test_importance_weights_every_loss_by_its_band_before_it_was_told_that_loss():
    made, x0 = process("eps"), torch.ones(64, 1, 2, 2)
    times = TIMES["importance"](bands=2, history=1).build(SCHEDULE)
    times.observe(torch.tensor([0.2, 0.8]), torch.tensor([1.0, 3.0]))
    drawn = times(64, torch.Generator().manual_seed(0))
    each = DenoisingLoss(made, times)(Knowing(made, error=0.5), x0, condition(64), torch.Generator().manual_seed(0))
    assert drawn.weight.min() < 0.8 and drawn.weight.max() > 1.8  # 2/3 and 2
    torch.testing.assert_close(each, drawn.weight * 0.25, rtol=1e-3, atol=0)


class Seeing(nn.Module):
    """Keeps what it saw, and says nothing."""

    def forward(self, x, t, cond):
        self.x = x
        return torch.zeros_like(x)


def test_offset_noise_moves_whole_channels():
    made, x0 = process("eps"), torch.zeros(512, 1, 4, 4)
    means = {}
    for size in (0.0, 0.5):
        network = Seeing()
        objective(made, offset_noise=size)(network, x0, condition(512), torch.Generator().manual_seed(0))
        t = TIMES["uniform"]().build(SCHEDULE)(512, torch.Generator().manual_seed(0)).t
        means[size] = (network.x / SCHEDULE.level(t).sigma).mean(dim=(1, 2, 3)).std()
    assert means[0.0] == pytest.approx(0.25, rel=0.1)
    assert means[0.5] == pytest.approx((0.25**2 + 0.5**2) ** 0.5, rel=0.1)


def test_offset_noise_is_part_of_what_is_asked_for():
    """The noise that is seen is the one that a network which says 0 misses."""
    made, network, x0 = process("eps"), Seeing(), torch.zeros(64, 1, 4, 4)
    train = objective(made, offset_noise=0.5)
    missed = train(network, x0, condition(64), torch.Generator().manual_seed(0))
    t = train.times(64, torch.Generator().manual_seed(0)).t
    noise = network.x / SCHEDULE.level(t).sigma
    torch.testing.assert_close(missed, noise.square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=0)


def test_input_perturbation_is_seen_and_not_asked_for():
    made, x0 = process("eps"), torch.zeros(512, 1, 4, 4)
    quiet, loud = Seeing(), Seeing()
    plain, perturbed = (
        objective(made, input_perturbation=size)(network, x0, condition(512), torch.Generator().manual_seed(0))
        for size, network in ((0.0, quiet), (0.5, loud))
    )
    torch.testing.assert_close(plain, perturbed)  # what is asked for is the same noise
    assert (loud.x.var() / quiet.x.var()) == pytest.approx(1.25, rel=0.05)


class Varying(nn.Module):
    """Says a constant F and a constant variance."""

    def __init__(self):
        super().__init__()
        self.f, self.variance = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond):
        return torch.cat([self.f.expand_as(x), self.variance.expand_as(x)], dim=1)


def test_the_bound_trains_the_variance_and_leaves_the_mean_to_the_simple_loss():
    x0 = torch.randn(16, 1, 4, 4)
    gradients = {}
    for learned in (True, False):
        made, network = process("eps", learned_variance=learned), Varying()
        net = network if learned else lambda x, t, cond, network=network: network(x, t, cond)[:, :1]
        objective(made)(net, x0, condition(16), torch.Generator().manual_seed(0)).mean().backward()
        gradients[learned] = network.f.grad, network.variance.grad
    torch.testing.assert_close(gradients[True][0], gradients[False][0])
    assert gradients[True][1] != 0 and gradients[False][1] == 0


def test_the_hybrid_adds_a_thousandth_of_the_bound_of_all_thousand_steps():
    """L_simple + 0.001 L_vlb (iDDPM, Sec. 3.1), L_vlb being 1000 times the mean of its terms."""
    x0, network = torch.randn(16, 1, 4, 4), Varying()
    nn.init.constant_(network.variance, 0.3)
    losses = {}
    for learned in (True, False):
        made = process("eps", learned_variance=learned)
        net = network if learned else lambda x, t, cond: network(x, t, cond)[:, :1]
        losses[learned] = objective(made)(net, x0, condition(16), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    t = TIMES["uniform"]().build(SCHEDULE)(16, generator).t
    level = SCHEDULE.level(t)
    x = noised(x0, torch.randn(x0.shape, generator=generator), level)
    said = Prediction(x / level.alpha, variance=torch.full_like(x, 0.3))
    terms = vlb_term(said, x0, x, level, SCHEDULE.level((t - 1e-3).clamp(min=0)))
    torch.testing.assert_close(losses[True] - losses[False], 1e-3 * 1000 * terms, rtol=2e-3, atol=1e-4)


def test_the_learned_variance_finds_the_true_one():
    """Of data that are a point x0 is known, and a step back has the posterior's variance: v goes to -1.

    But for the last step, whose density would grow without end.
    """
    made, x0 = process("eps", learned_variance=True), torch.zeros(256, 1, 4, 4)
    train = DenoisingLoss(made, TimeSampler(lambda u: 0.01 + 0.99 * u))

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.variance = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, cond):
            return torch.cat([x / SCHEDULE.level(t).sigma, self.variance.expand_as(x)], dim=1)

    network = Point()
    opt = torch.optim.Adam(network.parameters(), lr=0.05)
    for seed in range(60):
        loss_now = train(network, x0, condition(256), torch.Generator().manual_seed(seed)).mean()
        opt.zero_grad(), loss_now.backward(), opt.step()
    assert network.variance.item() == pytest.approx(-1, abs=0.15)


def test_dropped_rows_are_the_empty_prompt_and_the_others_are_untouched():
    cond, null = condition(500, 1.0, length=4), condition(1, -1.0, length=2)
    got = drop_text(cond, null, 0.25, torch.Generator().manual_seed(0))
    dropped = got.pooled[:, 0] == -1
    assert 0.15 < dropped.float().mean() < 0.35
    assert (got.mask.sum(dim=1) == torch.where(dropped, 2, 4)).all()
    assert (got.tokens[~dropped] == 1).all()
    assert drop_text(cond, null, 0.0, torch.Generator()).pooled.min() == 1


@pytest.mark.parametrize("change", [{"offset_noise": -0.1}, {"input_perturbation": float("nan")}, {"target": "w"}])
def test_an_impossible_process_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ProcessConfig(**change)


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_a_schedule_that_lets_x_grow_is_refused_to_a_network_that_would_see_it_so(name):
    schedule = SCHEDULES[name]().build()
    with pytest.raises(ValueError, match=r"sees values of (50|160), .*process\.unit_input=true"):
        ProcessConfig().check(schedule)
    ProcessConfig(unit_input=True).check(schedule)
