"""Likelihoods with exact denoisers, whose data have a density in closed form; and one step back against its oracles."""

from itertools import pairwise
from math import exp, log, log2, pi

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from ldm.diffusion.grids import CLEAN, GRIDS, uniform
from ldm.diffusion.likelihood import basis, log_likelihood, normal, rademacher
from ldm.diffusion.posterior import beta, interpolated_log_variance, posterior, reverse_step, step_back
from ldm.diffusion.process import noised
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.vlb import continuous_bound, discretised, gaussian, gaussian_kl, variational_bound, vlb_term
from ldm.types import Grid, Level, Prediction

LINEAR = SCHEDULES["linear"]().build()
NOISY = ["linear", "cosine", "vp", "ve", "edm", "flow"]  # those that end where next to no signal is left
MEAN = torch.tensor([0.4, -0.3], dtype=torch.float64)
DIAGONAL = torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))
CORRELATED = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
POINTS = torch.tensor([[0.4, -0.3], [1.5, 0.2], [-0.8, -2.0]], dtype=torch.float64).view(3, 2, 1, 1)
SIGNS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64).view(4, 2, 1, 1)


def gaussian_denoiser(covariance, mean=MEAN):
    """The exact denoiser of N(mean, covariance)."""

    def denoise(x, level):
        marginal = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2, dtype=torch.float64)
        gain = level.alpha * covariance @ torch.linalg.inv(marginal)
        return Prediction((mean + (x.flatten(1) - level.alpha * mean) @ gain.T).view_as(x))

    return denoise


def bits(covariance, mean=MEAN):
    """-log2 of the density of N(mean, covariance) at POINTS, for each dimension."""
    return -MultivariateNormal(mean, covariance).log_prob(POINTS.flatten(1)) / (2 * log(2))


def expected(bound, denoise, grid, *args, **kwargs):
    """The ``bound`` of POINTS without Monte-Carlo error.

    The terms are quadratic in the noise where the denoiser is linear, and so their mean over four corners, which have
    the moments of a normal up to the second, is that over all noise.
    """
    x0, noise = POINTS.repeat_interleave(4, dim=0), SIGNS.repeat(3, 1, 1, 1)
    terms = bound(denoise, x0, grid, lambda: noise, *args, **kwargs)
    return type(terms)(*(part.unflatten(0, (3, 4)).mean(dim=1) for part in terms))


def evenly_in_log_snr(schedule, steps, cleanest=0.01):
    top = schedule.level(1.0)
    ratios = np.geomspace(min(top.nsr, 1e3), max(cleanest, schedule.level(0.0).nsr), steps)
    return Grid([top, *(schedule.level(schedule.t_at(float(nsr))) for nsr in ratios[1:]), CLEAN], schedule)


# One step back.


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("n", [1000, 400, 2, 1])
def test_the_posterior_is_that_of_ddpm(name, n):
    schedule = SCHEDULES[name]().build()
    now, to = schedule.level(n / 1000), schedule.level((n - 1) / 1000)
    x, x0 = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    step = 1 - (now.alpha / to.alpha) ** 2
    bar, previous = now.alpha**2, to.alpha**2
    mean = previous**0.5 * step / (1 - bar) * x0 + (1 - step) ** 0.5 * (1 - previous) / (1 - bar) * x  # eq. 7
    got, variance = posterior(x, x0, now, to)
    torch.testing.assert_close(got, mean, atol=1e-8, rtol=1e-6)
    assert variance == pytest.approx((1 - previous) / (1 - bar) * step, rel=1e-6)
    assert beta(now, to) == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_is_what_a_walk_forward_leaves(name):
    """x at 0.4 is drawn given x0, and x at 0.6 given that; the first is then regressed on the second."""
    schedule = SCHEDULES[name]().build()
    to, now = schedule.level(0.4), schedule.level(0.6)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 200_000, dtype=torch.float64, generator=generator)
    cleaner = to.alpha * 0.7 + to.sigma * first
    noisier = now.alpha / to.alpha * cleaner + beta(now, to) ** 0.5 * second
    assert noisier.std() == pytest.approx(now.sigma, rel=0.01)
    slope, at_mean = torch.cov(torch.stack([cleaner, noisier]))[1] @ torch.tensor([1.0, 0.0]).double(), cleaner.mean()
    slope = slope / noisier.var()
    x0 = torch.full((1,), 0.7, dtype=torch.float64)
    (low, variance), (high, _) = (posterior(noisier.mean() + far, x0, now, to) for far in (0.0, 1.0))
    assert float(low) == pytest.approx(float(at_mean), abs=0.01 * to.sigma)
    assert float(high - low) == pytest.approx(float(slope), rel=0.02)
    residual = cleaner - at_mean - slope * (noisier - noisier.mean())
    assert variance == pytest.approx(float(residual.var()), rel=0.02)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("spacing", ["uniform", "leading", "karras"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_learned_variance_of_0_is_the_posteriors_and_of_1_is_beta(name, spacing, steps):
    grid = GRIDS[spacing]()(SCHEDULES[name]().build(), steps)
    v = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    for now, to in pairwise(grid[:-1]):
        low, high = interpolated_log_variance(v, now, to), interpolated_log_variance(v + 1, now, to)
        torch.testing.assert_close(low.exp(), torch.full_like(v, posterior(v, v, now, to)[1]))
        torch.testing.assert_close(high.exp(), torch.full_like(v, beta(now, to)))
        torch.testing.assert_close(interpolated_log_variance(v + 0.3, now, to), 0.3 * high + 0.7 * low)
    low, high = (interpolated_log_variance(v + share, grid[-2], grid[-1]) for share in (0.0, 1.0))
    torch.testing.assert_close(low, high + log(0.01))  # where the posterior's is 0


@pytest.mark.parametrize("kind", ["posterior", "beta", "learned"])
def test_a_step_back_is_that_of_diffusers(kind):
    """Its means and variances, but for those of the last step.

    There diffusers puts the variance 1e-20 for the posterior's 0, also between bounds; ours is beta where it is fixed,
    and where it is learned the lower bound is a hundredth of beta. Both differ from iDDPM's program, which takes the
    posterior's variance of the step before.
    """
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs.betas, theirs.alphas_cumprod = betas, (1 - betas).cumprod(0)  # which diffusers keeps in float32
    x, eps, said = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64)
    for n in (1, 2, 500, 1000):
        now, to = LINEAR.level(n / 1000), LINEAR.level((n - 1) / 1000)
        x0 = (x - now.sigma * eps) / now.alpha
        mean, log_variance = reverse_step(Prediction(x0, variance=said), x, now, to, kind)
        zero = theirs.step(eps, n - 1, x, generator=torch.Generator()).pred_original_sample
        torch.testing.assert_close(zero, x0)
        name = {"posterior": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}[kind]
        variance = theirs._get_variance(n - 1, predicted_variance=said, variance_type=name)
        variance = variance.log() if kind != "learned" else variance
        if n > 1:
            torch.testing.assert_close(log_variance, variance.expand_as(log_variance))
        elif kind == "posterior":
            assert float(log_variance) == pytest.approx(log(beta(now, to))) and float(variance) < -40
        elif kind == "learned":
            assert log_variance.isfinite().all() and (variance < log_variance - 5).any()
    drawn = theirs.step(eps, 499, x, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    now, to = LINEAR.level(0.5), LINEAR.level(0.499)
    mean, log_variance = reverse_step(Prediction((x - now.sigma * eps) / now.alpha), x, now, to, "posterior")
    torch.testing.assert_close(mean + (0.5 * log_variance).exp() * noise, drawn.prev_sample)


def test_a_variance_that_is_not_there_is_refused():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="variance 'learned' is not one that this denoiser predicts"):
        reverse_step(Prediction(x), x, LINEAR.level(0.5), LINEAR.level(0.4), "learned")
    with pytest.raises(ValueError, match="variance 'small' is not one of"):
        reverse_step(Prediction(x), x, LINEAR.level(0.5), LINEAR.level(0.4), "small")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_back_in_training_is_one_of_the_table_and_the_last_is_clean(name):
    schedule = SCHEDULES[name]().build()
    to = step_back(schedule, torch.tensor([1.0, 0.51, 0.02, 0.0109, 0.01, 0.003]), 100)
    assert to.alpha.shape == to.sigma.shape == (6, 1, 1, 1)
    expected = [schedule.level(t) for t in (0.99, 0.5, 0.01)] + [CLEAN] * 3
    np.testing.assert_allclose(to.alpha.flatten(), [level.alpha for level in expected], rtol=1e-4)
    np.testing.assert_allclose(to.sigma.flatten(), [level.sigma for level in expected], rtol=1e-4)
    assert (to.sigma[3:] == 0).all() and (to.alpha[3:] == 1).all()


# The bound.


def place(log_variance, now, to):
    """Where a step's log-variance lies, from -1 for the posterior's to 1 for beta: how a network says it."""
    low, high = interpolated_log_variance(torch.tensor([0.0, 1.0], dtype=log_variance.dtype), now, to)
    return 2 * (log_variance - low) / (high - low) - 1


def exactly_reversing(grid, variances):
    """The exact denoiser of N(MEAN, diag(variances)), and the exact log-variance of every step of ``grid``."""
    exact = gaussian_denoiser(torch.diag(variances))
    following = dict(pairwise(grid))

    def denoise(x, now):
        to = following[now]
        before, after = (level.alpha**2 * variances + level.sigma**2 for level in (now, to))
        shared = now.alpha / to.alpha * after  # the covariance of x at both
        log_variance = (after - shared**2 / before).log().view(1, 2, 1, 1)
        return Prediction(exact(x, now).x0, variance=place(log_variance, now, to))

    return denoise


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_is_tight_for_a_model_that_reverses_every_step_exactly(name, steps):
    """Then all that is between it and -log p is where sampling starts, which is not at what these data become."""
    grid = uniform(SCHEDULES[name]().build(), steps)
    variances = DIAGONAL.diagonal()
    bound = expected(variational_bound, exactly_reversing(grid, variances), grid, variance="learned")
    top = grid[0]
    given = Normal(top.alpha * POINTS.flatten(1), top.sigma)
    marginal = Normal(top.alpha * MEAN, (top.alpha**2 * variances + top.sigma**2).sqrt())
    start = Normal(torch.zeros_like(MEAN), top.norm)
    gap = (kl_divergence(given, start) - kl_divergence(given, marginal)).sum(dim=1) / (2 * log(2))
    torch.testing.assert_close(bound.total, bits(DIAGONAL) + gap, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(bound.prior, kl_divergence(given, start).sum(dim=1) / (2 * log(2)))
    assert bound.steps.shape == (3, steps - 1) and bound.mse.shape == (3, steps)


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_the_bound_of_many_steps_is_the_negative_log_density(name):
    """With the variance beta, which where the variance is preserved is all but exact in more of the steps."""
    grid = evenly_in_log_snr(SCHEDULES[name]().build(), 4000)
    bound = expected(variational_bound, gaussian_denoiser(CORRELATED), grid, variance="beta")
    torch.testing.assert_close(bound.total, bits(CORRELATED), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_the_bound_falls_with_more_steps_towards_that_of_infinitely_many(name):
    """By VDM (arXiv:2107.00630, Sec. 4.1) for DDPM's variance, the posterior's; as fast as one over the steps."""
    schedule, denoise = SCHEDULES[name]().build(), gaussian_denoiser(CORRELATED)
    totals = [
        expected(variational_bound, denoise, evenly_in_log_snr(schedule, steps)).total for steps in (100, 200, 400)
    ]
    assert (totals[0] > totals[1]).all() and (totals[1] > totals[2]).all()
    limit = expected(
        continuous_bound, denoise, evenly_in_log_snr(schedule, 2), torch.Generator().manual_seed(0), evaluations=2000
    )
    torch.testing.assert_close(limit.total, bits(CORRELATED), atol=3e-3, rtol=0)
    gaps = [total - limit.total for total in totals]
    assert ((gaps[1] / gaps[2] - 2).abs() < 0.2).all() and (gaps[2] > 0).all()


def test_the_continuous_bound_is_unbiased_whatever_the_number_of_evaluations():
    schedule, denoise = LINEAR, gaussian_denoiser(CORRELATED)
    generator = torch.Generator().manual_seed(0)
    grid = evenly_in_log_snr(schedule, 2)
    totals = [expected(continuous_bound, denoise, grid, generator, evaluations=10).total for _ in range(400)]
    torch.testing.assert_close(torch.stack(totals).mean(dim=0), bits(CORRELATED), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="evaluations 0"):
        continuous_bound(denoise, POINTS, grid, lambda: POINTS, generator, evaluations=0)
    with pytest.raises(ValueError, match="last noisy level of the grid is at t = 1, where no signal is left"):
        continuous_bound(denoise, POINTS, uniform(SCHEDULES["flow"]().build(), 1), lambda: POINTS, generator)


@pytest.mark.parametrize("name", ["linear", "cosine", "logarithmic"])
def test_a_term_of_the_bound_is_the_noises_error_weighted(name):
    """beta^2 / (2 beta_tilde (1 - beta) (1 - alpha_bar)) on the noise's squared error (DDPM, eq. 12)."""
    schedule = SCHEDULES[name]().build()
    now, to = (schedule.level(i / schedule.steps) for i in (500, 499))
    x0, noise, said = torch.randn(3, 4, 2, 1, 1, dtype=torch.float64)
    x = noised(x0, noise, now)
    got = vlb_term(Prediction((x - now.sigma * said) / now.alpha), x0, x, now, to, variance="posterior")
    beta_n, kept = 1 - (now.alpha / to.alpha) ** 2, 1 - now.alpha**2
    weight = beta_n**2 / (2 * posterior(x, x0, now, to)[1] * (1 - beta_n) * kept)
    expected = weight * (noise - said).square().flatten(1).mean(dim=1) / log(2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_of_data_of_unit_variance_the_prior_is_what_the_noisiest_x_tells_of_them():
    """For where sampling starts is then what they become: the mutual information of x0 and x_T is left."""
    level = SCHEDULES["logarithmic"]().build().level(1.0)
    x0 = torch.randn(100_000, 1, 1, 1, dtype=torch.float64)
    grid = Grid([level, CLEAN], SCHEDULES["logarithmic"]().build())
    prior = variational_bound(lambda x, _: Prediction(x), x0, grid, lambda: torch.zeros_like(x0)).prior
    assert float(prior.mean()) == pytest.approx(0.5 * log(1 + 1 / level.nsr**2) / log(2), rel=2e-2)


def test_a_wrong_denoiser_costs_bits_and_its_error_is_told():
    grid = uniform(LINEAR, 50)
    exact = gaussian_denoiser(CORRELATED)
    right = expected(variational_bound, exact, grid)
    wrong = expected(variational_bound, lambda x, level: Prediction(exact(x, level).x0 + 0.1), grid)
    assert (wrong.steps.sum(dim=1) > right.steps.sum(dim=1)).all()
    wrong_once = expected(variational_bound, lambda x, level: Prediction(torch.full_like(x, 0.2)), grid)
    torch.testing.assert_close(wrong_once.mse, (POINTS - 0.2).square().flatten(1).mean(dim=1)[:, None].expand(3, 50))


def test_the_divergence_of_gaussians_is_that_of_torch():
    mean, other, log_variance, other_log = torch.randn(4, 5, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(other, (other_log / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean, log_variance, other, other_log), theirs)


PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("log_variance", [-18.0, -14.0, -9.0, -3.0, 0.0, 4.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.1234, 0.999, 1.7])
def test_the_discretised_gaussian_sums_to_one_over_the_256_bins(mean, log_variance):
    mean, log_variance = torch.tensor(mean).double(), torch.tensor(log_variance).double()
    logs = discretised(PIXELS, mean, log_variance)
    assert logs.isfinite().all()
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)
    edges = np.concatenate([[-np.inf], (PIXELS[1:].numpy() + PIXELS[:-1].numpy()) / 2, [np.inf]])
    theirs = np.diff(norm(float(mean), exp(float(log_variance) / 2)).cdf(edges))
    np.testing.assert_allclose(logs.exp(), theirs, atol=1e-12)


@pytest.mark.parametrize("at", [-18.0, -8.0])
def test_the_discretised_gaussian_and_its_gradient_are_finite_in_single_precision_too(at):
    mean = torch.linspace(-3, 3, 256, requires_grad=True)
    log_variance = torch.full((256,), at, requires_grad=True)
    for pixels in (PIXELS.float(), PIXELS.float().flip(0)):  # near to the mean, and as far as can be
        logs = discretised(pixels, mean, log_variance)
        logs.sum().backward()
        assert logs.isfinite().all()
    assert mean.grad.isfinite().all() and log_variance.grad.isfinite().all()


def test_a_code_for_pixels_is_longer_than_the_density_by_log2_of_half_the_values():
    """Where the last step's noise is wider than a bin: 127.5 bins a unit."""
    x0 = PIXELS[[100, 130, 150, 90]].view(1, 1, 2, 2)
    grid, noise = uniform(LINEAR, 4), lambda: torch.ones_like(x0)
    short, long = (
        variational_bound(lambda x, _: Prediction(torch.full_like(x, 0.05)), x0, grid, noise, reconstruction=one)
        for one in (gaussian, discretised)
    )
    torch.testing.assert_close(long.total - short.total, torch.full((1,), log2(127.5)).double(), atol=1e-3, rtol=0)


# Its term for training.


def test_the_terms_for_training_are_those_of_the_bound():
    schedule, steps = SCHEDULES["cosine"]().build(), 20
    said = Prediction(torch.randn(steps, 2, 3, 3), variance=torch.randn(steps, 2, 3, 3))
    x0, noise = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    answers = iter(range(steps))

    def denoise(x, level):
        row = next(answers)
        return Prediction(said.x0[row : row + 1], variance=said.variance[row : row + 1])

    bound = variational_bound(denoise, x0, uniform(schedule, steps), lambda: noise, variance="learned")
    t = 1 - torch.arange(steps) / steps
    now, to = schedule.level(t), step_back(schedule, t, steps)
    terms = vlb_term(said, x0, noised(x0, noise, now), now, to)
    torch.testing.assert_close(terms, torch.cat([bound.steps[0], bound.reconstruction]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reconstruction", [gaussian, discretised])
def test_the_term_trains_the_variance_and_not_the_mean(reconstruction):
    mean, v = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 4, 4, requires_grad=True)
    t = torch.tensor([1.0, 0.3, 0.001])  # the last one is the step to clean data
    now, to = LINEAR.level(t), step_back(LINEAR, t, 1000)
    x0 = PIXELS[torch.randint(256, (3, 2, 4, 4))].float()
    x = noised(x0, torch.randn_like(x0), now)
    said = Prediction(mean * 1.0, variance=v)
    vlb_term(said, x0, x, now, to, reconstruction=reconstruction).sum().backward()
    assert mean.grad is None
    assert v.grad.isfinite().all() and (v.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_the_term_is_least_at_the_variance_that_is_true():
    """Learning settles where the posterior's variance and the error of the mean add up to the model's."""
    now, to = LINEAR.level(0.3), LINEAR.level(0.299)
    x0 = torch.zeros(1, 1, 1, 1)
    x = torch.full_like(x0, 0.5)
    wrong = torch.full_like(x0, 0.2)
    mean, variance = posterior(x, x0, now, to)
    best = log(variance + float(posterior(x, wrong, now, to)[0] - mean) ** 2)
    terms = [
        float(vlb_term(Prediction(wrong, place(torch.full_like(x0, best + off), now, to)), x0, x, now, to))
        for off in (-0.1, 0.0, 0.1)
    ]
    assert terms[1] < terms[0] and terms[1] < terms[2]


# The log-likelihood.


@pytest.mark.parametrize("data_variance", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ode_gives_the_density_of_what_it_takes_the_start_to(name, data_variance):
    """Of a Gaussian the ODE stretches each dimension; the end's prior at the image and the stretch make the density."""
    schedule = SCHEDULES[name]().build()
    variances = DIAGONAL.diagonal()
    got = log_likelihood(
        gaussian_denoiser(DIAGONAL), POINTS, schedule, basis(POINTS), data_variance=data_variance, rtol=1e-6, atol=1e-6
    )
    start, end = max(1e-3, schedule.level(0.0).nsr), min(1e3, schedule.level(1.0).nsr)
    stretch = ((variances + end**2) / (variances + start**2)).sqrt()
    image = MEAN + stretch * (POINTS.flatten(1) - MEAN)
    top = schedule.level(schedule.t_at(end))
    std = (top.sigma**2 + top.alpha**2 * data_variance) ** 0.5
    expected = (Normal(0.0, std).log_prob(top.alpha * image) + stretch.log() + log(top.alpha)).sum(dim=1)
    torch.testing.assert_close(got.nats, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.bits_per_dim, -got.nats / (2 * log(2)))


@pytest.mark.parametrize("covariance", [DIAGONAL, CORRELATED], ids=["diagonal", "correlated"])
@pytest.mark.parametrize("name", NOISY)
def test_the_ode_gives_a_gaussian_its_density(name, covariance):
    """What is left of the data's mean at the end counts there as mean / nsr, and so only some may have one here."""
    schedule, calls = SCHEDULES[name]().build(), []
    mean = MEAN if schedule.level(1.0).nsr > 1e3 else torch.zeros_like(MEAN)
    exact = gaussian_denoiser(covariance, mean)

    def denoise(x, level):
        calls.append(level)
        return exact(x, level)

    got = log_likelihood(denoise, POINTS, schedule, basis(POINTS), data_variance=1.0)
    torch.testing.assert_close(got.bits_per_dim, bits(covariance, mean), atol=1e-3, rtol=0)
    assert got.evaluations == len(calls) < 400


CENTRES = torch.tensor([[-1.0, 0.2], [1.2, 0.6], [0.7, -1.4]], dtype=torch.float64)  # whose weighted mean is 0
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.4


def mixture(x, level):
    """The exact denoiser of a mixture of Gaussians."""
    x, variance = x.flatten(1), level.alpha**2 * STD**2 + level.sigma**2
    away = x[:, None] - level.alpha * CENTRES  # (B, 3, 2)
    belongs = (SHARES.log() - away.square().sum(dim=2) / (2 * variance)).softmax(dim=1)  # (B, 3)
    x0 = CENTRES + level.alpha * STD**2 / variance * away
    return Prediction((belongs[..., None] * x0).sum(dim=1).view(-1, 2, 1, 1))


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_the_ode_gives_a_mixture_its_density(name):
    density = MixtureSameFamily(Categorical(SHARES), MultivariateNormal(CENTRES, STD**2 * torch.eye(2).double()))
    points = torch.cat([CENTRES, torch.zeros(1, 2), torch.tensor([[2.0, -1.5], [0.3, 1.0]])]).double()
    x0 = points.view(-1, 2, 1, 1)
    got = log_likelihood(mixture, x0, SCHEDULES[name]().build(), basis(x0))
    torch.testing.assert_close(got.nats, density.log_prob(points), atol=3e-3, rtol=0)


@pytest.mark.parametrize("probes", [rademacher, normal])
def test_hutchinsons_estimate_has_the_exact_mean_and_less_spread_with_more_probes(probes):
    x0 = POINTS[1:2].expand(3000, 2, 1, 1)
    denoise, generator = gaussian_denoiser(CORRELATED), torch.Generator().manual_seed(0)
    exact = log_likelihood(denoise, x0[:1], LINEAR, basis(x0[:1])).nats
    few, more = (
        log_likelihood(denoise, x0, LINEAR, probes(x0, count, generator), rtol=1e-4, atol=1e-4).nats for count in (1, 4)
    )
    for nats in (few, more):
        assert nats.std() > 0.01
        assert abs(float(nats.mean() - exact)) < 4 * float(nats.std()) / 3000**0.5 + 1e-3
    assert float(few.std() / more.std()) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("probes", [rademacher, normal])
def test_probes_have_the_identity_as_their_second_moment_and_follow_the_generator(probes):
    x0 = torch.zeros(2, 3, 1, 1)
    drawn = probes(x0, 50_000, torch.Generator().manual_seed(0)).flatten(2)  # (K, B, D)
    torch.testing.assert_close(
        torch.einsum("kbi,kbj->bij", drawn, drawn), torch.eye(3).expand(2, 3, 3), atol=0.03, rtol=0
    )
    assert torch.equal(probes(x0, 2, torch.Generator().manual_seed(5)), probes(x0, 2, torch.Generator().manual_seed(5)))
    with pytest.raises(ValueError, match="count 0 of the probes"):
        probes(x0, 0, torch.Generator())


def test_the_ode_works_on_float32_without_gradients_and_leaves_x0_alone():
    def denoise(x, level):
        return Prediction(x * (level.alpha / (level.alpha**2 + level.sigma**2)))  # of N(0, 1)

    x0 = torch.randn(2, 3, 2, 2)
    before = x0.clone()
    with torch.inference_mode():
        got = log_likelihood(denoise, x0, LINEAR, rademacher(x0, 1, torch.Generator()))
    assert torch.equal(x0, before)
    expected = -0.5 * (x0.double().square() + log(2 * pi)).flatten(1).sum(dim=1)
    torch.testing.assert_close(got.nats, expected, atol=2e-3, rtol=0)


def test_the_ode_refuses_to_start_past_its_end():
    with pytest.raises(ValueError, match="nsr_min 1000.0 is not between 0 and"):
        log_likelihood(mixture, POINTS, LINEAR, basis(POINTS), nsr_min=1e3)


def test_the_ode_refuses_a_denoiser_that_it_cannot_follow():
    x0 = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="the denoiser says no finite x0 at nsr 0.001"):
        log_likelihood(lambda x, level: Prediction(x / 0), x0, LINEAR, basis(x0))
    with pytest.raises(ValueError, match="rtol 1e-05 and atol 1e-05 are too fine"):  # y = 1 / (1 - log nsr + log 0.001)
        log_likelihood(lambda x, level: Prediction(x / level.alpha - (x / level.alpha) ** 2), x0, LINEAR, basis(x0))


def test_the_level_of_a_term_may_be_of_floats_or_of_tensors():
    now, to = LINEAR.level(0.4), LINEAR.level(0.3)
    x, x0 = torch.randn(2, 3, 1, 2, 2)
    as_tensors = [Level(*(torch.full((3, 1, 1, 1), part) for part in level)) for level in (now, to)]
    for got, expected in zip(posterior(x, x0, *as_tensors), posterior(x, x0, now, to), strict=True):
        torch.testing.assert_close(got, torch.as_tensor(expected).expand_as(got), rtol=1e-4, atol=1e-5)
