"""DDNM and DPS against the exact posteriors of Gaussians, and through networks under inference mode."""

import pytest
import torch
from torch import nn

from ldm.denoisers import DENOISERS
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.process import ProcessConfig
from ldm.editing import Blur, Downscale, Masked, Projections, ddnm, dps
from ldm.samplers.ddim import ddim
from ldm.types import Condition, Prediction

OPERATORS = {
    "masked": Masked.random(4, 4, 0.5, seed=0),
    "downscale": Downscale(2),
    "blur": Blur(0.6, (4, 4)),
    "projections": Projections((1, 4, 4), 5),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


@every_operator
def test_ddnm_samples_the_exact_posterior_of_white_noise(name, white):
    operator = OPERATORS[name]
    y = operator.apply(torch.randn(1, *white.shape).double())
    mean, cov = white.moments(ddnm(white, operator, y))
    matrix = white.matrix(operator.apply)
    back = white.matrix(operator.pseudo_inverse) if name == "blur" else torch.linalg.pinv(matrix)
    free = torch.eye(16).double() - back @ matrix
    torch.testing.assert_close(mean, back @ y.flatten() + free @ white.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(cov, 0.49 * free, atol=0.01, rtol=0)


@every_operator
def test_ddnms_samples_give_the_measurement_exactly(name, grid):
    operator, net = OPERATORS[name], nn.Conv2d(1, 1, 3, padding=1).double()
    y = operator.apply(torch.randn(3, 1, 4, 4).double())
    with torch.no_grad():
        x = torch.randn(3, 1, 4, 4).double()
        end = ddim(
            ddnm(lambda x, level: Prediction(net(x)), operator, y), x, grid, lambda: torch.randn_like(x), eta=1.0
        )
    torch.testing.assert_close(operator.apply(end), y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_dps_samples_the_exact_posterior_given_one_number(std, correlated):
    def measure(x):
        return x.flatten(1)[:, 1:6].sum(dim=1, keepdim=True)

    y = torch.tensor([[2.5]]).double()
    mean, cov = correlated.moments(dps(correlated, measure, y, std=std))
    expected_mean, expected_cov = correlated.given(correlated.matrix(measure), y[0], std)
    torch.testing.assert_close(mean, expected_mean, atol=0.02, rtol=0)
    torch.testing.assert_close(cov, expected_cov, atol=0.02, rtol=0)
    assert (mean - correlated.mean).abs().max() > 0.3  # a test that can fail


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_dps_samples_the_exact_posterior_of_projections_of_white_noise(std, white):
    operator = OPERATORS["projections"]
    y = operator.apply(torch.randn(1, *white.shape).double())
    mean, cov = white.moments(dps(white, operator.apply, y, std=std))
    expected_mean, expected_cov = white.given(white.matrix(operator.apply), y[0], std)
    torch.testing.assert_close(mean, expected_mean, atol=0.01, rtol=0)
    torch.testing.assert_close(cov, expected_cov, atol=0.01, rtol=0)


def test_dps_comes_near_the_posterior_of_a_correlated_gaussian(correlated):
    operator, y = Downscale(2), torch.tensor([1.0, -1.5]).double().view(1, 1, 1, 2)
    mean, _ = correlated.moments(dps(correlated, operator.apply, y))
    expected_mean, _ = correlated.given(correlated.matrix(operator.apply), y.flatten())
    assert (mean - expected_mean).abs().max() < 0.2 * (correlated.mean - expected_mean).abs().max()
    torch.testing.assert_close(operator.apply(mean.view(1, 1, 2, 4)), y, atol=0.02, rtol=0)


def test_dps_does_not_depend_on_the_units_of_the_measurement(correlated, grid):
    operator, x = Downscale(2), torch.randn(3, 1, 2, 4).double()
    y = operator.apply(torch.randn(3, 1, 2, 4).double())
    one = dps(correlated, operator.apply, y, std=0.1)(x, grid[20]).x0
    hundred = dps(correlated, lambda x: 100 * operator.apply(x), 100 * y, std=10.0)(x, grid[20]).x0
    torch.testing.assert_close(hundred, one)


def test_zeta_is_the_share_of_the_step(correlated, grid):
    operator, x, y = Downscale(2), torch.randn(3, 1, 2, 4).double(), torch.randn(3, 1, 1, 2).double()
    plain, half, full = (dps(correlated, operator.apply, y, zeta=z)(x, grid[20]).x0 for z in (0.0, 0.5, 1.0))
    torch.testing.assert_close(plain, correlated(x, grid[20]).x0)
    torch.testing.assert_close(half, (plain + full) / 2)


def test_rows_of_a_batch_do_not_mix(correlated, grid):
    operator, x, y = Downscale(2), torch.randn(3, 1, 2, 4).double(), torch.randn(3, 1, 1, 2).double()
    together = dps(correlated, operator.apply, y)(x, grid[20]).x0
    torch.testing.assert_close(dps(correlated, operator.apply, y[1:2])(x[1:2], grid[20]).x0, together[1:2])


def test_dps_takes_no_step_that_leads_away_from_the_measurement(grid):
    x, y = torch.randn(3, 1, 2, 4).double(), torch.ones(3, 1, 1, 2).double()
    got = dps(lambda x, level: Prediction(-x), Downscale(2).apply, y)(x, grid[20]).x0  # its slope has the wrong sign
    torch.testing.assert_close(got, -x)


def test_dps_asks_nothing_of_a_measurement_at_pure_noise(white, grid):
    level = grid[0]._replace(alpha=0.0, sigma=1.0)
    x = torch.randn(2, 1, 4, 4).double()
    got = dps(white, Downscale(2).apply, torch.zeros(2, 1, 2, 2))(x, level).x0
    torch.testing.assert_close(got, white.mean.view(1, 1, 4, 4).expand_as(got))


@pytest.mark.parametrize("outer", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_dps_works_through_networks_whatever_gradients_the_caller_has_turned_off(outer, grid):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))
    decoder = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3, padding=1), nn.Tanh())

    def run():
        torch.manual_seed(0)
        gate = torch.rand(1, 2, 4, 4)  # as a prompt's keys are: made by the caller, needed for the gradient
        x, y = torch.randn(2, 2, 4, 4), torch.rand(2, 3, 4, 4)
        denoise = dps(lambda x, level: Prediction(net(x) * gate), lambda z: Downscale(2).apply(decoder(z)), y)
        return ddim(denoise, x, grid, lambda: None)

    with outer():
        got = run()
    assert not got.requires_grad
    torch.testing.assert_close(got, run())
    assert all(p.grad is None for p in (*net.parameters(), *decoder.parameters()))


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dps_works_through_a_prompted_denoiser_prepared_under_inference_mode(name, dtype, grid):
    small = {"width": 32, "heads": 2} | ({"depth": 1} if name == "dit" else {"blocks": 1})
    net = DENOISERS[name](**small).build(channels=2, text_width=8, pooled_width=8).eval()
    for weights in net.parameters():
        nn.init.normal_(weights, std=0.1)  # a new network says nothing
    operator, y = Downscale(2), torch.rand(1, 2, 4, 4)

    def run():
        torch.manual_seed(0)
        told, null = (Condition(torch.randn(1, 3, 8), torch.randn(1, 8), torch.ones(1, 3).bool()) for _ in range(2))
        process = ProcessConfig("v").build(grid.schedule)
        denoise = dps(classifier_free(net, process, told, null, 3.0), operator.apply, y)
        x = denoise(torch.randn(1, 2, 8, 8), grid[5]).x0
        return denoise(x, grid[45]).x0

    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with torch.inference_mode():
            got = run()
        torch.testing.assert_close(got, run())


@pytest.mark.parametrize("changes", [{"zeta": -1.0}, {"std": -0.1}])
def test_a_step_out_of_range_is_named(changes, white):
    with pytest.raises(ValueError, match="{} {}".format(*next(iter(changes.items())))):
        dps(white, lambda x: x, torch.zeros(1), **changes)
