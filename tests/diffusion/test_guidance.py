"""Guidance by its identities, by diffusers' guiders, and by posteriors that are known exactly.

Where diffusers differs: its adaptive projected guidance adds the update to the null prediction unless it is told
``use_original_formulation``, whose scale is ours less 1; it rescales what the network says where ours rescales x0; its
dynamic thresholding is a plain clip to [-1, 1] unless ``sample_max_value`` is raised.
"""

from math import sqrt

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import nn

from ldm.diffusion.grids import uniform
from ldm.diffusion.guidance import (
    GuidanceConfig,
    autoguidance,
    classifier_free,
    classifier_guidance,
    composed,
    guided,
    perpendicular,
)
from ldm.diffusion.posterior import posterior
from ldm.diffusion.process import ProcessConfig
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, regressed, to_x0
from ldm.samplers.ddim import ddim, ddpm
from ldm.types import Condition, Grid, Level, Prediction

SCHEDULE = SCHEDULES["linear"]().build()
LEVEL = SCHEDULE.level(0.5)
EVERY_PART = {"rescale": 0.7, "threshold": 0.9, "parallel": 0.3, "norm": 2.0, "momentum": -0.5}


class Texted(nn.Module):
    """A network that says something else for each text, and counts the rows of each batch that it is given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1).double()
        self.rows = []

    def prepare(self, cond):
        return cond

    def forward(self, x, t, cond):
        self.rows.append(len(x))
        return torch.tanh(self.conv(x) * cond.pooled[:, :1, None, None] + cond.pooled[:, 1:, None, None])


def condition(rows=3, length=2):
    return Condition(
        torch.randn(rows, length, 2).double(), torch.randn(rows, 2).double(), torch.ones(rows, length).bool()
    )


def images(count=1):
    return torch.randn(count, 3, 2, 4, 4, dtype=torch.float64)


def made(target="v", **changes):
    return ProcessConfig(target, **changes).build(SCHEDULE)


def constant(x0):
    return lambda x, level: Prediction(x0)


def norm(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("scale", [1, 1.0, GuidanceConfig(1.0), GuidanceConfig(1.0, **EVERY_PART)])
def test_scale_one_is_the_conditional_alone_in_one_evaluation(scale):
    network, cond, (x,) = Texted(), condition(), images()
    got = classifier_free(network, made(), cond, condition(), scale)(x, LEVEL).x0
    assert network.rows == [3]
    torch.testing.assert_close(got, made().denoiser(network, cond)(x, LEVEL).x0, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 4.0, GuidanceConfig(4.0)])
def test_a_guided_level_costs_one_batch_of_both(scale):
    network, (x,) = Texted(), images()
    classifier_free(network, made(), condition(), condition(length=5), scale)(x, LEVEL)
    assert network.rows == [6]


def test_levels_outside_the_interval_are_left_alone_and_cost_one_evaluation():
    network, cond, null, (x,) = Texted(), condition(), condition(), images()
    config = GuidanceConfig(4.0, interval=[0.3, 0.6], **EVERY_PART)
    limited = classifier_free(network, made(), cond, null, config)
    everywhere = classifier_free(network, made(), cond, null, GuidanceConfig(4.0, **EVERY_PART))
    alone = made().denoiser(network, cond)
    for t, applies in ((0.2, False), (0.3, True), (0.6, True), (0.61, False), (1.0, False)):
        network.rows.clear()
        got = limited(x, SCHEDULE.level(t)).x0
        assert network.rows == ([6] if applies else [3])
        if not applies:
            torch.testing.assert_close(got, alone(x, SCHEDULE.level(t)).x0, rtol=0, atol=0)
        assert torch.equal(got, alone(x, SCHEDULE.level(t)).x0) != applies
    torch.testing.assert_close(
        classifier_free(network, made(), cond, null, config)(x, LEVEL).x0, everywhere(x, LEVEL).x0
    )


@pytest.mark.parametrize("target", TARGETS)
def test_guidance_of_x0_is_guidance_of_whatever_the_network_says(target):
    x, x0, null = images(3)
    said, unsaid = (regressed(TARGETS[target], y, (x - LEVEL.alpha * y) / LEVEL.sigma, LEVEL) for y in (x0, null))
    expected = to_x0(TARGETS[target], unsaid + 4 * (said - unsaid), x, LEVEL)
    torch.testing.assert_close(GuidanceConfig(4.0).build()(x0, null, x, LEVEL), expected)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 4.0])
def test_the_scale_goes_from_null_through_cond(scale):
    x, x0, null = images(3)
    torch.testing.assert_close(GuidanceConfig(scale).build()(x0, null, x, LEVEL), null + scale * (x0 - null))


def test_projected_guidance_of_one_nought_and_nought_is_plain():
    x, x0, null = images(3)
    plain = GuidanceConfig(4.0).build()(x0, null, x, LEVEL)
    got = GuidanceConfig(4.0, parallel=1.0, norm=0.0, momentum=0.0).build()(x0, null, x, LEVEL)
    torch.testing.assert_close(got, plain)
    torch.testing.assert_close(got, normalized_guidance(x0, null, 3.0, use_original_formulation=True))


def test_projected_guidance_without_its_parallel_part_is_orthogonal_to_the_conditional():
    x, x0, null = images(3)
    update = GuidanceConfig(4.0, parallel=0.0).build()(x0, null, x, LEVEL) - x0
    torch.testing.assert_close((update * x0).sum(dim=(1, 2, 3)), torch.zeros(3).double(), atol=1e-10, rtol=0)
    assert (norm(update) > 1).all()


@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.7])
@pytest.mark.parametrize("length", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("parallel", [0.0, 0.4, 1.0])
def test_projected_guidance_is_that_of_diffusers_at_every_step_of_a_run(parallel, length, momentum):
    ours = GuidanceConfig(5.0, parallel=parallel, norm=length, momentum=momentum).build()
    theirs = MomentumBuffer(momentum)
    for _ in range(3):
        x, x0, null = images(3)
        expected = normalized_guidance(x0, null, 4.0, theirs, parallel, length, use_original_formulation=True)
        torch.testing.assert_close(ours(x0, null, x, LEVEL), expected)


def test_a_built_rule_remembers_and_a_fresh_one_does_not():
    config = GuidanceConfig(4.0, momentum=0.5)
    x, x0, null = images(3)
    rule = config.build()
    first, second, fresh = rule(x0, null, x, LEVEL), rule(x0, null, x, LEVEL), config.build()(x0, null, x, LEVEL)
    torch.testing.assert_close(fresh, first)
    torch.testing.assert_close(second - x0, 1.5 * (first - x0))


def test_rescaling_in_full_gives_back_the_conditionals_standard_deviation():
    x, x0, null = images(3)
    got = GuidanceConfig(7.0, rescale=1.0).build()(x0, null, x, LEVEL)
    torch.testing.assert_close(got.std(dim=(1, 2, 3)), x0.std(dim=(1, 2, 3)))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_rescaling_is_that_of_diffusers(share):
    x, x0, null = images(3)
    expected = rescale_noise_cfg(null + 7 * (x0 - null), x0, share)
    torch.testing.assert_close(GuidanceConfig(7.0, rescale=share).build()(x0, null, x, LEVEL), expected)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_a_threshold_bounds_x0_by_the_conditionals_own_quantile(quantile):
    x, x0, null = images(3)
    x0 = 2 * x0
    got = GuidanceConfig(7.0, threshold=quantile).build()(x0, null, x, LEVEL)
    limit = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1)
    torch.testing.assert_close(got.abs().amax(dim=(1, 2, 3)), limit)


def test_a_threshold_leaves_what_is_within_it_alone():
    x, x0 = images(2)
    plain = GuidanceConfig(0.9).build()(x0, x0 / 2, x, LEVEL)
    torch.testing.assert_close(GuidanceConfig(0.9, threshold=1.0).build()(x0, x0 / 2, x, LEVEL), plain)


def test_a_threshold_on_pixels_is_that_of_diffusers():
    x, x0, null = images(3)
    x0 = x0.clamp(-1, 1)
    theirs = DDPMScheduler(dynamic_thresholding_ratio=0.9, sample_max_value=100.0)
    expected = theirs._threshold_sample(null + 7 * (x0 - null))
    torch.testing.assert_close(GuidanceConfig(7.0, threshold=0.9).build()(x0, null, x, LEVEL), expected)


def test_rows_of_a_batch_do_not_mix():
    x, x0, null = images(3)
    config = GuidanceConfig(7.0, **EVERY_PART)
    together = config.build()(x0, null, x, LEVEL)
    torch.testing.assert_close(config.build()(x0[1:2], null[1:2], x[1:2], LEVEL), together[1:2])


def test_a_learned_variance_is_the_conditionals():
    network, cond, (x,) = nn.Module(), condition(), images()
    network.prepare = lambda cond: cond
    network.forward = lambda x, t, cond: torch.cat([x, torch.ones_like(x) * cond.pooled[:, :1, None, None]], dim=1)
    got = classifier_free(network, made(learned_variance=True), cond, condition(), 4.0)(x, LEVEL)
    torch.testing.assert_close(got.variance[:, 0, 0, 0], cond.pooled[:, 0].float())


def test_one_prompt_composed_is_classifier_free():
    network, cond, null, (x,) = Texted(), condition(), condition(), images()
    expected = classifier_free(network, made(), cond, null, 4.0)(x, LEVEL).x0
    alone = made().denoiser(network, null)
    torch.testing.assert_close(composed(alone, network, made(), [cond], [4.0], null)(x, LEVEL).x0, expected)


def test_prompts_compose_by_their_weights_in_one_batch():
    network, conds, null, (x,) = Texted(), [condition(), condition(length=4)], condition(), images()
    (start,) = images()
    got = composed(constant(start), network, made(), conds, [3.0, -1.0], null)(x, LEVEL).x0
    assert network.rows == [9]
    one, other, without = (made().denoiser(network, cond)(x, LEVEL).x0 for cond in (*conds, null))
    torch.testing.assert_close(got, start + 3 * (one - without) - (other - without))


@pytest.mark.parametrize(("prompts", "weights"), [(0, []), (2, [1.0]), (1, [1.0, 2.0])])
def test_weights_that_do_not_fit_the_prompts_are_counted_in_the_error(prompts, weights):
    with pytest.raises(ValueError, match=f"{len(weights)} weights for {prompts} prompts"):
        composed(constant(None), Texted(), made(), prompts * [condition()], weights, condition())


def test_a_perpendicular_negative_does_not_speak_against_the_prompt():
    network, cond, negative, null, (x,) = Texted(), condition(), condition(), condition(), images()
    (plain,) = images()
    got = perpendicular(constant(plain), network, made(), cond, negative, null, 6.0)(x, LEVEL).x0
    assert network.rows == [9]
    towards, away = (made().denoiser(network, c)(x, LEVEL).x0 for c in (cond, negative))
    without = made().denoiser(network, null)(x, LEVEL).x0
    change = (plain - got) / 6.0

    def inner(a, b):
        return (a * b).sum(dim=(1, 2, 3))

    torch.testing.assert_close(inner(change, towards - without), torch.zeros(3).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(inner(change, away - without), inner(change, change))  # the rest of it is the prompt's
    assert (norm(change) > 1e-3).all()


@pytest.mark.parametrize("times", [1.0, -2.0])
def test_a_negative_that_says_the_same_as_the_prompt_changes_nothing(times):
    network, cond, null, (x,) = Texted(), condition(), condition(), images()
    (plain,) = images()
    got = perpendicular(constant(plain), network, made(), cond, cond, null, times)(x, LEVEL).x0
    torch.testing.assert_close(got, plain)


def test_autoguidance_goes_away_from_the_worse_model():
    x, better, worse = images(3)
    got = autoguidance(constant(better), constant(worse), 2.5)(x, LEVEL).x0
    torch.testing.assert_close(got, worse + 2.5 * (better - worse))
    limited = autoguidance(constant(better), constant(worse), GuidanceConfig(2.5, interval=[0.0, 0.4]))
    torch.testing.assert_close(limited(x, LEVEL).x0, better)


def test_guidance_serves_any_pair_of_predictions():
    x, x0, null = images(3)
    denoise = guided(constant(x0), lambda x, level: (Prediction(x0), Prediction(null)), 3.0)
    torch.testing.assert_close(denoise(x, LEVEL).x0, null + 3 * (x0 - null))


MEAN, STD, Y, ERROR = 0.6, 0.5, 1.4, 0.3


def prior(x, level):
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return Prediction(MEAN + level.alpha * STD**2 / variance * (x - level.alpha * MEAN))


def likelihood(x, level):
    """log p(y | x) where y = x0 + ERROR noise, and x0 given x is Gaussian."""
    spread = level.sigma**2 * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) + ERROR**2
    return (-0.5 * (Y - prior(x, level).x0) ** 2 / spread).flatten(1).sum(dim=1)


@pytest.mark.parametrize(("eta", "form"), [(0.0, "noise"), (1.0, "noise"), (1.0, "mean")])
def test_an_exact_classifier_leads_to_the_exact_posterior(eta, form):
    variance = 1 / (1 / STD**2 + 1 / ERROR**2)
    mean = variance * (MEAN / STD**2 + Y / ERROR**2)

    def noise():
        return torch.randn(1, 1, 200, 200)

    grid = uniform(SCHEDULE, 800)
    denoise = classifier_guidance(prior, likelihood, grid=grid if form == "mean" else None)
    x = ddim(denoise, noise(), grid, noise, eta=eta)
    assert x.mean() == pytest.approx(mean, abs=0.02)
    assert x.std() == pytest.approx(sqrt(variance), rel=0.03)


def test_a_classifiers_x0_is_the_mean_of_the_posterior():
    x, level = images()[0], SCHEDULE.level(0.3)
    precision = 1 / STD**2 + 1 / ERROR**2 + level.alpha**2 / level.sigma**2
    expected = (MEAN / STD**2 + Y / ERROR**2 + level.alpha / level.sigma**2 * x) / precision
    torch.testing.assert_close(classifier_guidance(prior, likelihood)(x, level).x0, expected)


def test_a_classifier_shifts_the_noise_as_in_algorithm_2():
    (x,), scale = images(), 2.0
    said = classifier_guidance(prior, likelihood, scale)(x, LEVEL).x0
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(likelihood(leaf, LEVEL).sum(), leaf)
    eps = (x - LEVEL.alpha * prior(x, LEVEL).x0) / LEVEL.sigma - LEVEL.sigma * scale * slope
    torch.testing.assert_close(said, (x - LEVEL.sigma * eps) / LEVEL.alpha)


def shift_of_a_step(steps, form):
    """How far a classifier moves the mean of one of ``steps`` steps of DDPM, and what alg. 1 multiplies."""
    grid, (x,), scale = uniform(SCHEDULE, steps), images(), 2.0
    now, to = grid[steps // 2 : steps // 2 + 2]
    denoisers = prior, classifier_guidance(prior, likelihood, scale, grid if form == "mean" else None)
    plain, shifted = (ddpm(d, x, Grid([now, to], SCHEDULE), lambda: torch.zeros_like(x)) for d in denoisers)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(likelihood(leaf, now).sum(), leaf)
    return shifted - plain, scale * slope, now, to


@pytest.mark.parametrize("steps", [10, 1_000])
def test_a_classifier_given_the_grid_shifts_the_mean_as_in_algorithm_1(steps):
    shift, slope, now, to = shift_of_a_step(steps, "mean")
    _, variance = posterior(slope, slope, now, to)
    torch.testing.assert_close(shift, variance * slope)


@pytest.mark.parametrize("steps", [10, 1_000])
def test_a_classifier_shifts_the_mean_as_algorithm_1_with_beta_but_for_the_root_of_one_minus_beta(steps):
    shift, slope, now, to = shift_of_a_step(steps, "noise")
    beta = 1 - (now.alpha / to.alpha) ** 2
    torch.testing.assert_close(shift * sqrt(1 - beta), beta * slope)


def test_a_level_that_the_grid_lacks_is_told():
    denoise = classifier_guidance(prior, likelihood, grid=uniform(SCHEDULE, 10))
    with pytest.raises(ValueError, match=r"t=0\.55 is no level of the 11 of the grid"):
        denoise(images()[0], SCHEDULE.level(0.55))


def test_a_classifier_is_not_asked_where_nothing_is_left_of_the_data():
    x, x0 = images(2)
    got = classifier_guidance(constant(x0), likelihood)(x, Level(1.0, 0.0, 1.0)).x0
    torch.testing.assert_close(got, x0, rtol=0, atol=0)


@pytest.mark.parametrize("outer", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_classifier_guides_whatever_gradients_the_caller_has_turned_off(outer):
    classifier = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 5)).double()

    def run():
        torch.manual_seed(0)
        gate = torch.rand(4, 2, 4, 4).double()[:3]  # made by the caller, a view, and needed for the gradient
        (x,) = images()

        def log_prob(x, level):
            return classifier(x * gate).log_softmax(dim=1)[:, 2]

        return classifier_guidance(prior, log_prob, 3.0)(x, LEVEL).x0

    with outer():
        got = run()
    assert not got.requires_grad
    torch.testing.assert_close(got, run())
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": float("inf")},
        {"scale": float("nan")},
        {"interval": [0.5, 0.2]},
        {"interval": [0.0, 0.5, 1.0]},
        {"interval": [0.0, 1.5]},
        {"rescale": 1.5},
        {"rescale": float("nan")},
        {"threshold": 99.5},
        {"parallel": float("inf")},
        {"norm": -1.0},
        {"momentum": 1.0},
    ],
)
def test_a_setting_out_of_range_is_named(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError) as error:
        GuidanceConfig(**changes)
    assert str(error.value).startswith(f"{name} {value}")


def test_momentum_holds_no_graph_of_earlier_calls():
    combine = GuidanceConfig(scale=4.0, momentum=-0.5).build()
    first, second = (image.requires_grad_() for image in images(2))
    combine(first, torch.zeros_like(first), first, LEVEL)
    then = combine(second, torch.zeros_like(second), second, LEVEL)
    assert torch.autograd.grad(then.sum(), (first, second), allow_unused=True)[0] is None
