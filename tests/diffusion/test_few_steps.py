"""Training for few steps, with networks that are exact: the data is normal, of which every path is known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ldm.diffusion.few_steps import (
    OBJECTIVES,
    ConsistencyConfig,
    Follower,
    GuidedConfig,
    Ladder,
    ProgressiveConfig,
    Teacher,
    implied_x0,
    said_by,
)
from ldm.diffusion.grids import GRIDS, uniform
from ldm.diffusion.guidance import GuidanceConfig, classifier_free
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.process import Process, noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, regressed
from ldm.diffusion.times import TIMES
from ldm.samplers.ddim import ddim
from ldm.samplers.step import move
from ldm.types import Condition, Grid, Level

S = 0.4  # standard deviation of the data
FLOW = SCHEDULES["flow"](shift=1.5).build()


def condition(rows):
    return Condition(torch.randn(rows, 2, 2), torch.rand(rows, 2), torch.ones(rows, 2, dtype=torch.bool))


class Normal(nn.Module):
    """Says F for data N(0, S^2): of the mean of x0, or with ``jumps`` of the end of the ODE's path through x.

    Its one weight scales x0, as the pooled text does where ``told``; it counts the rows that it is shown.
    """

    def __init__(self, process, *, jumps=False, told=False):
        super().__init__()
        self.process, self.jumps, self.told, self.rows = process, jumps, told, []
        self.scale = nn.Parameter(torch.ones(()))

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        self.rows.append(len(x))
        level = self.process.schedule.level(t)
        variance = (level.alpha * S) ** 2 + level.sigma**2
        x0 = x * S / variance.sqrt() if self.jumps else x * level.alpha * S**2 / variance
        x0 = self.scale * x0 * (cond.pooled[:, 0].view(-1, 1, 1, 1) if self.told else 1)
        return regressed(self.process.target, x0, (x - level.alpha * x0) / level.sigma, level)


def process(target="flow", schedule=FLOW):
    return Process(schedule, TARGETS[target])


def grids(schedule=FLOW):
    return lambda steps: uniform(schedule, steps)


def exact(made=None):
    made = made or process()
    return lambda x, level, cond: said_by(Normal(made), made, x, level, cond)


def drawn(rows=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(rows, 2, 4, 4, generator=generator) for _ in range(2))
    return S * x0, noise, torch.linspace(0.01, 1, rows), condition(rows)


def built(config, made=None, *, network=None, teacher=None, drawn_in=4, trained=100):
    made = made or process()
    network = network or Normal(made)
    parts = {"network": network, "process": made, "grids": grids(made.schedule), "teacher": teacher}
    return config.build(**parts, drawn=drawn_in, trained=trained)


def level_of(level: Level, row: int) -> Level:
    return Level(*(float(part[row]) for part in level))


@pytest.mark.parametrize("schedule", [FLOW, SCHEDULES["cosine"]().build(), SCHEDULES["linear"]().build()])
@pytest.mark.parametrize("substeps", [1, 2, 3])
def test_one_step_along_what_is_asked_is_the_teachers_steps_of_ddim(schedule, substeps):
    """Salimans & Ho 2022, alg. 2, on each of the student's steps."""
    made = process("v", schedule)
    examples = built(ProgressiveConfig(substeps), made, teacher=exact(made))
    x0, noise, t, cond = drawn()
    asked = examples(x0, noise, t, cond, 0)
    fine = uniform(schedule, 4 * substeps)
    for row, time in enumerate(t):
        first = max(i for i in range(4) if float(fine[i * substeps].t) >= time - 1e-6)
        levels = fine[first * substeps : (first + 1) * substeps + 1]
        torch.testing.assert_close(torch.tensor(level_of(asked.level, row)), torch.tensor(levels[0]))
        x = there = noised(x0[row : row + 1], noise[row : row + 1], levels[0])
        torch.testing.assert_close(asked.x[row : row + 1], x)
        for now, to in pairwise(levels):
            batched = Level(*(torch.tensor(part, dtype=torch.float32).view(1, 1, 1, 1) for part in now))
            there = move(there, exact(made)(there, batched, cond[[row]]), now, to)
        landed = move(x, asked.x0[row : row + 1], levels[0], levels[-1])
        torch.testing.assert_close(landed, there, atol=2e-5, rtol=1e-4)


def test_x0_and_noise_that_are_asked_for_make_x():
    for config, teacher in ((ProgressiveConfig(), exact()), (ConsistencyConfig(), None), (GuidedConfig(), exact())):
        asked = built(config, teacher=teacher)(*drawn(), 0)
        torch.testing.assert_close(noised(asked.x0, asked.noise, asked.level), asked.x)


def test_implied_x0_is_move_the_other_way_round():
    now, to = FLOW.level(0.8), FLOW.level(0.3)
    x, x0 = torch.randn(2, 3, 2, 4, 4).unbind(0)
    torch.testing.assert_close(implied_x0(x, move(x, x0, now, to), now, to), x0)


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.4, 0.8], [0.9, 1.0], [0.05, 0.06]])
@pytest.mark.parametrize("options", [{"scale": 3.0}, {"scale": 1.0}, {"scale": 2.0, "rescale": 0.5, "threshold": 0.9}])
def test_a_teacher_is_guided_row_by_row_as_a_sampler_is_level_by_level(interval, options):
    made, guidance = process(), GuidanceConfig(interval=interval, **options)
    network, null = Normal(made, told=True), condition(1)
    x0, noise, _, cond = drawn(11)
    ladder = Ladder(uniform(FLOW, 10))
    rungs = torch.arange(10).repeat(2)[:11]
    level = ladder.level(rungs)
    x = noised(x0, noise, level)
    said = Teacher(network, made, guidance, null)(x, level, cond)
    guided = [guidance.applies(uniform(FLOW, 10)[rung]) for rung in rungs.tolist()]
    assert network.rows == [11, *([sum(guided)] if any(guided) else [])]
    for row in range(11):
        now = uniform(FLOW, 10)[int(rungs[row])]
        one = classifier_free(network, made, cond[[row]], null, guidance)(x[row : row + 1], now).x0
        torch.testing.assert_close(said[row : row + 1], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.4, 0.8]])
def test_a_student_of_guidance_is_asked_for_what_classifier_free_says_at_every_time(interval):
    """Meng et al. 2023 (arXiv:2210.03142, Sec. 3.1), one scale."""
    made, guidance, null = process(), GuidanceConfig(scale=3.0, interval=interval), condition(1)
    network = Normal(made, told=True)
    x0, noise, t, cond = drawn(11)
    asked = built(OBJECTIVES["guided"](), made, teacher=Teacher(network, made, guidance, null))(x0, noise, t, cond, 0)
    torch.testing.assert_close(asked.level.t.flatten(), t)
    torch.testing.assert_close(asked.x, noised(x0, noise, FLOW.level(t)))
    for row in range(11):
        said = classifier_free(network, made, cond[[row]], null, guidance)
        one = said(asked.x[row : row + 1], level_of(asked.level, row)).x0
        torch.testing.assert_close(asked.x0[row : row + 1], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_where_there_is_no_noise_a_network_says_x_itself_whatever_it_is(target):
    """The boundary condition of consistency models (Song et al. 2023, eq. 4)."""
    made = process(target, SCHEDULES["linear"]().build())
    level = Ladder(uniform(made.schedule, 4)).level(torch.tensor([4, 4]))
    x = torch.randn(2, 2, 4, 4)

    class Anything(Normal):
        def forward(self, x, t, cond):
            return torch.randn_like(x)

    torch.testing.assert_close(said_by(Anything(made), made, x, level, condition(2)), x)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "x0"])
def test_where_there_is_hardly_noise_a_network_hardly_moves_x(target):
    """The same, without a jump (Song et al. 2023, eq. 5): what F says counts for the less the less noise there is."""
    made = process(target, SCHEDULES["vp"]().build())
    x, said = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)

    class Saying(Normal):
        def forward(self, x, t, cond):
            return said

    away = []
    for nsr in (2e-2, 1e-2):
        level = made.schedule.level(torch.tensor([made.schedule.t_at(nsr)]))
        away.append((said_by(Saying(made), made, x, level, condition(1)) - x / level.alpha).abs().max().item())
    assert 0 < away[0] < 0.2 and away[1] < 0.7 * away[0]


@pytest.mark.parametrize(("target", "factor"), [("x0", 8), ("flow", 4), ("v", 4)])
def test_a_consistency_function_loses_nothing_on_the_teachers_path(target, factor):
    """Eq. 8 of Song et al. 2023, where f is the ODE's solution.

    What is left is the error of a step, of second order: squared, a sixteenth in half the step. In x0, that is; the
    other targets count it over sigma^2, and the least sigma is halved too.
    """
    made = process(target)
    left = []
    for steps in (20, 40):
        config = ConsistencyConfig(distill=True, first=steps, last=steps, huber=0.0)
        perfect = Normal(made, jumps=True)
        examples = built(config, made, network=perfect, teacher=exact(made))
        objective = DenoisingLoss(made, TIMES["uniform"]().build(FLOW), examples=examples)
        x0, _, _, cond = drawn(256)
        left.append(objective(perfect, x0, cond, torch.Generator().manual_seed(1)).mean().item())
    assert left[1] < left[0] / factor < 1e-3


def test_without_a_teacher_the_path_is_that_of_the_data_and_its_noise():
    """Alg. 3 of Song et al. 2023: both ends of a step have the same x0 and noise, and the last asks for x0."""
    made = process()
    network = Normal(made, jumps=True)
    x0, noise, t, cond = drawn(40)
    asked = built(ConsistencyConfig(first=10, last=10), made, network=network)(x0, noise, t, cond, 0)
    ladder = Ladder(uniform(FLOW, 10))
    below = ladder.level(ladder.rung(t) + 1)
    torch.testing.assert_close(asked.x, noised(x0, noise, asked.level))
    torch.testing.assert_close(asked.x0, said_by(network, made, noised(x0, noise, below), below, cond))
    last = asked.level.t.flatten() < 0.1 + 1e-6
    assert last.sum() == 4
    torch.testing.assert_close(asked.x0[last], x0[last])


def test_the_follower_is_the_moving_average_once_a_step():
    network = nn.Linear(2, 2)
    follower = Follower(network, 0.75)
    expected = network.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            network.weight.add_(1.0)
        expected = 0.75 * expected + 0.25 * network.weight.detach()
        for _ in range(3):  # micro-steps
            torch.testing.assert_close(follower.at(step).weight, expected)
    assert torch.equal(Follower(network, 0.0).at(0).weight, network.weight)


class Layer(Normal):
    """A ``Normal`` whose scale is that of a linear layer, which autocast casts."""

    def __init__(self, process):
        super().__init__(process)
        self.layer = nn.Linear(1, 1)

    def forward(self, x, t, cond):
        return super().forward(x, t, cond) + self.layer(x.unsqueeze(-1)).squeeze(-1)


def test_a_network_that_follows_itself_learns_in_half_precision_too():
    made = process()
    network = Layer(made)
    objective = DenoisingLoss(
        made, TIMES["uniform"]().build(FLOW), examples=built(ConsistencyConfig(), network=network)
    )
    x0, _, _, cond = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(network, x0, cond, torch.Generator().manual_seed(0)).mean()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_only_the_network_learns():
    """Neither the teacher nor the average has a gradient, whatever is asked."""
    made, taught = process(), Normal(process())
    teacher = Teacher(taught, made, GuidanceConfig(scale=2.0), condition(1))
    for config in (ProgressiveConfig(), ConsistencyConfig(distill=True, decay=0.5), ConsistencyConfig()):
        network = Normal(made)
        examples = built(config, network=network, teacher=teacher)
        objective = DenoisingLoss(made, TIMES["uniform"]().build(FLOW), examples=examples, huber=config.huber)
        x0, _, _, cond = drawn()
        objective(network, x0, cond, torch.Generator().manual_seed(0)).mean().backward()
        assert network.scale.grad.abs() > 0 and taught.scale.grad is None
        assert all(weight.grad is None for weight in examples.parameters())


def test_the_pseudo_huber_distance():
    """sqrt(d + c^2) - c of the weighted square, c = 0.00054 in what a mean over the numbers makes of the paper's."""
    made, network = process(), Normal(process())
    times, x0, cond = TIMES["uniform"]().build(FLOW), *drawn()[::3]
    square, huber = (
        DenoisingLoss(made, times, huber=c)(network, x0, cond, torch.Generator().manual_seed(0)) for c in (0.0, 0.3)
    )
    torch.testing.assert_close(huber, (square + 0.09).sqrt() - 0.3)


def test_steps_double_at_even_intervals_up_to_the_last():
    config = ConsistencyConfig(first=10, last=160)
    assert [config.steps_at(step, 100) for step in (0, 19, 20, 40, 60, 80, 99, 10_000)] == [
        *(10, 10, 20, 40, 80, 160, 160, 160)
    ]
    uneven = ConsistencyConfig(first=10, last=150)  # a stage is 1,000 / (log2(15) + 1) = 203 steps
    assert [uneven.steps_at(step, 1_000) for step in (0, 202, 203, 406, 609, 811, 812, 999)] == [
        *(10, 10, 20, 40, 80, 80, 150, 150)
    ]
    assert [ConsistencyConfig(first=10, last=15).steps_at(step, 100) for step in (0, 62, 63, 99)] == [10, 10, 15, 15]
    assert {ConsistencyConfig(first=7, last=7).steps_at(step, 3) for step in range(3)} == {7}


def test_a_time_stands_on_the_rung_above_it():
    ladder = Ladder(Grid([FLOW.level(t) for t in (0.9, 0.5, 0.1)] + [Level(0.0, 1.0, 0.0)], FLOW))
    times = torch.tensor([1.0, 0.9, 0.89, 0.5, 0.3, 0.1, 0.05, 1e-4])
    assert ladder.rung(times).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_many_rungs_are_told_apart():
    times = torch.tensor([float(level.t) for level in uniform(FLOW, 1000)[:-1]])
    assert torch.equal(Ladder(uniform(FLOW, 1000)).rung(times), torch.arange(1000))


def test_ddim_that_keeps_no_noise_is_multistep_consistency_sampling():
    """Song et al. 2023, alg. 1: f, then all noise anew, and so on."""
    made, network, grid = process(), Normal(process(), jumps=True), uniform(FLOW, 5)
    x = torch.randn(3, 2, 4, 4)
    draws = list(torch.randn(4, 3, 2, 4, 4))
    denoise = made.denoiser(network, condition(3))
    walked = ddim(denoise, x, grid, iter(draws).__next__, eta=1_000.0)
    for (now, to), noise in zip(pairwise(grid), [*draws, torch.zeros(())], strict=True):
        x = noised(denoise(x, now).x0, noise, to)
    torch.testing.assert_close(walked, x)


def test_a_grid_whose_steps_are_not_parts_of_the_larger_ones_is_refused():
    karras = GRIDS["karras"]()
    with pytest.raises(ValueError, match=r"grid: 8 steps do not pass all levels of 4, .*; use grid=uniform"):
        ProgressiveConfig().ladder(lambda steps: karras(FLOW, steps), 4)


@pytest.mark.parametrize("name", ["progressive", "consistency"])
def test_times_by_importance_learn_from_what_is_asked(name):
    """The losses are noted at the times that were drawn, not at those of the few steps."""
    made, config = process(), OBJECTIVES[name]()
    times = TIMES["importance"](bands=20, history=1).build(FLOW)
    network = Normal(made, jumps=True)
    objective = DenoisingLoss(made, times, examples=built(config, network=network, teacher=exact()))
    x0, _, _, cond = drawn(60)
    objective(network, x0, cond, torch.Generator().manual_seed(0))
    assert bool(times.seen.min()) and times.shares().std() > 0


class Gain(nn.Module):
    """x0 = g(t) x for a flow, g by a few tent functions of t."""

    def __init__(self, tents=11):
        super().__init__()
        self.gains = nn.Parameter(torch.linspace(1, 0.5, tents))

    def gain(self, t):
        place = t * (len(self.gains) - 1)
        low = place.floor().long().clamp(max=len(self.gains) - 2)
        return torch.lerp(self.gains[low], self.gains[low + 1], place - low)

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        return (1 - self.gain(t).view(-1, 1, 1, 1)) * x / FLOW.level(t).sigma


def learned(config, drawn_in):
    """A ``Gain`` after 400 steps of a training on normal data, with an exact teacher."""
    made, network, steps = process(), Gain(), 400
    examples = built(config, made, network=network, teacher=exact(made), drawn_in=drawn_in)
    objective = DenoisingLoss(made, TIMES["uniform"]().build(FLOW), examples=examples, huber=config.huber)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    pace = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x0 = S * torch.randn(64, 2, 4, 4, generator=generator)
        loss = objective(network, x0, condition(64), generator, step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    return network


def ends(network, steps):
    """Where each level of ``steps`` is led to by the steps from there, from x = 1."""
    grid, denoise = uniform(FLOW, steps), process().denoiser(network, condition(1))
    return [ddim(denoise, torch.ones(1, 2, 4, 4), Grid(grid[i:], FLOW), torch.Tensor).mean() for i in range(steps)]


@pytest.mark.parametrize("distill", [True, False])
def test_a_consistency_model_learns_where_the_steps_of_its_grid_lead(distill):
    """From each level to where DDIM's steps from there end, along the teacher's path and along that of the data.

    Both are the same where x0 is linear in x, as the best one is on normal data.
    """
    network = learned(ConsistencyConfig(distill=distill, first=10, last=10), 1)
    gains = network.gain(torch.tensor([float(level.t) for level in uniform(FLOW, 10)[:-1]])).detach()
    torch.testing.assert_close(gains, torch.stack(ends(Normal(process()), 10)).detach(), atol=0.02, rtol=0)


def test_a_student_learns_to_take_its_teachers_steps_at_once():
    """In five steps it comes to where the teacher comes in twenty."""
    network = learned(ProgressiveConfig(substeps=4), 5)
    reached, goal = (torch.stack(found).detach() for found in (ends(network, 5), ends(Normal(process()), 20)[::4]))
    torch.testing.assert_close(reached, goal, atol=0.01, rtol=0)
    assert (torch.stack(ends(Normal(process()), 5)) - goal).abs().max() > 0.05


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("progressive", {"substeps": 0}),
        ("consistency", {"first": 0}),
        ("consistency", {"first": 20, "last": 10}),
        ("consistency", {"decay": 1.0}),
        ("consistency", {"huber": float("nan")}),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_with_a_way_out(name, wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} .*; try "):
        OBJECTIVES[name](**wrong)
