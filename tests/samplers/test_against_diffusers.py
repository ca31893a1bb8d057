"""Whole trajectories beside diffusers' schedulers, with one network and the same draws of noise.

The levels are ours, written into the scheduler in float64, so that rounding is not compared; what diffusers calls sigma
is our nsr. The network is told the level: by diffusers the one that its scheduler stands at, by us that of the call.
Some of diffusers' schedulers round x to float32 in every step.
"""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
    scheduling_sde_ve,
)

from ldm.diffusion.grids import CLEAN, uniform
from ldm.diffusion.guidance import clipped
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS, to_x0
from ldm.samplers import SAMPLERS
from ldm.types import Grid, Prediction

TABLE = SCHEDULES["linear"]().build()
VP = SCHEDULES["vp"]().build()
STEPS = 12  # below 15, where diffusers lowers the order of the last steps as we do


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Network(torch.nn.Conv2d):
    """Says something that depends on x and on the level."""

    def __init__(self):
        super().__init__(3, 3, 3, padding=1, dtype=torch.float64)

    def forward(self, x, nsr):
        return super().forward(x) * (0.2 + torch.as_tensor(nsr, dtype=torch.float64).arctan())


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def start():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def noises():
    return torch.randn(STEPS, 2, 3, 8, 8, dtype=torch.float64)


def ours(name, options, network, start, grid, noises=(), target="eps"):
    draws = iter(noises)

    def denoise(x, level):
        return Prediction(to_x0(TARGETS[target], network(x, level.nsr), x, level))

    return SAMPLERS[name](**options)(denoise, start, grid, lambda: next(draws))


def ratios(last):
    """nsr of STEPS + 1 levels, even in its logarithm but for the last, which is given."""
    return torch.cat([torch.logspace(1.2, -1.2, STEPS, dtype=torch.float64), torch.tensor([last]).double()])


def levels(nsr):
    return Grid([CLEAN if one == 0 else VP.level(VP.t_at(one)) for one in nsr.tolist()], VP)


def prepared(scheduler, nsr, steps=STEPS):
    scheduler.set_timesteps(steps)
    scheduler.sigmas = nsr
    return scheduler


def told(scheduler, i, t):
    """The nsr of diffusers' i-th call, at its timestep t."""
    if isinstance(scheduler, DDIMScheduler | DDPMScheduler | PNDMScheduler):
        return (1 / scheduler.alphas_cumprod[t] - 1).sqrt()
    if isinstance(scheduler, IPNDMScheduler):
        return scheduler.betas[i] / scheduler.alphas[i]
    sigma = scheduler.sigmas[i]
    return sigma / (1 - sigma) if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else sigma


def theirs(scheduler, network, x, **options):
    for i, t in enumerate(scheduler.timesteps):
        given = {name: value[i] for name, value in options.items()}
        x = scheduler.step(network(x, told(scheduler, i, t)), t, x, **given).prev_sample
    return x


def theirs_in_k_scale(scheduler, network, x, alpha, **options):
    """For schedulers whose x is x / alpha, and who scale it for the network."""
    x = x / alpha
    for i, t in enumerate(scheduler.timesteps):
        said = network(scheduler.scale_model_input(x, t), told(scheduler, i, t))
        x = scheduler.step(said, t, x, **options).prev_sample
    return x


def with_exact_table(scheduler):
    """diffusers keeps its table of alphas in float32."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    scheduler.betas = betas
    return scheduler


def at_timesteps(timesteps):
    return Grid([*(TABLE.level((int(t) + 1) / 1000) for t in timesteps), CLEAN], TABLE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, network, start, noises):
    scheduler = with_exact_table(
        DDIMScheduler(beta_start=1e-4, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(10)
    x = start
    for i, (t, noise) in enumerate(zip(scheduler.timesteps, noises[:10], strict=True)):
        said = network(x, told(scheduler, i, t))
        x = scheduler.step(said, t, x, eta=eta, variance_noise=noise).prev_sample
    got = ours("ddim", {"eta": eta}, network, start, at_timesteps(scheduler.timesteps), noises)
    torch.testing.assert_close(got, x, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(variance, steps, network, start, monkeypatch):
    noises = torch.randn(steps, 2, 3, 8, 8, dtype=torch.float64)
    scheduler = with_exact_table(DDPMScheduler(beta_start=1e-4, clip_sample=False, variance_type=variance))
    scheduler.set_timesteps(steps)
    draws = iter(noises)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))
    place = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Tanh()).double()
    x = start
    for i, t in enumerate(scheduler.timesteps):
        said = network(x, told(scheduler, i, t))
        said = torch.cat([said, place(x)], dim=1) if variance == "learned_range" else said
        x = scheduler.step(said, t, x).prev_sample
    again = iter(noises)
    name = {"fixed_small": "posterior", "fixed_large": "beta", "learned_range": "learned"}[variance]
    got = SAMPLERS["ddpm"](variance=name)(
        lambda x, level: Prediction(to_x0(TARGETS["eps"], network(x, level.nsr), x, level), variance=place(x)),
        start,
        at_timesteps(scheduler.timesteps),
        lambda: next(again),
    )
    torch.testing.assert_close(got, x, atol=1e-8, rtol=1e-6)


def test_euler(network, start):
    nsr = ratios(0.0)
    grid = levels(nsr)
    x = theirs_in_k_scale(prepared(EulerDiscreteScheduler(), nsr), network, start, grid[0].alpha)
    torch.testing.assert_close(ours("euler", {}, network, start, grid), x, atol=1e-5, rtol=1e-5)


def test_euler_ancestral(network, start, noises, monkeypatch):
    draws = iter(noises)
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: next(draws))
    nsr = ratios(0.0)
    grid = levels(nsr)
    x = theirs_in_k_scale(prepared(EulerAncestralDiscreteScheduler(), nsr), network, start, grid[0].alpha)
    got = ours("euler_ancestral", {}, network, start, grid, noises)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_heun(network, start):
    nsr = ratios(0.0)
    grid = levels(nsr)
    doubled = torch.cat([nsr[:1], nsr[1:-1].repeat_interleave(2), nsr[-1:]])
    x = theirs_in_k_scale(prepared(HeunDiscreteScheduler(), doubled), network, start, grid[0].alpha)
    torch.testing.assert_close(ours("heun", {}, network, start, grid), x, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("churn", [3.0, 40.0])  # 40 is cut to what doubles the variance
def test_edms_churn(churn, start, noises, monkeypatch):
    """Of a network that says the same noise of every x, for which Heun's steps are Euler's.

    diffusers has churn in Euler's steps only, and its network sees x before the new noise, where that of EDM's
    algorithm 2, and ours, sees x after it.
    """
    draws = iter(noises)
    monkeypatch.setattr(scheduling_euler_discrete, "randn_tensor", lambda *_, **__: next(draws))
    nsr, said = ratios(0.0), torch.randn_like(start)
    grid = levels(nsr)
    options = {"s_churn": churn, "s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.01}
    x = theirs_in_k_scale(prepared(EulerDiscreteScheduler(), nsr), lambda *_: said, start, grid[0].alpha, **options)
    left = len(list(draws))
    assert left == (~((nsr >= 0.2) & (nsr <= 10))).sum() - 1  # levels that no noise was added to, but for the last
    options = {"churn": churn, "s_min": 0.2, "s_max": 10.0, "s_noise": 1.01}
    got = ours("edm", options, lambda *_: said, start, grid, noises)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_edm_goes_as_its_paper_says(network, start, noises):
    """Algorithm 2 of arXiv:2206.00364 written out, where alpha is 1, for diffusers has half of it alone."""
    churn, least, most, size = 3.0, 0.2, 10.0, 1.01
    grid = uniform(SCHEDULES["ve"]().build(), STEPS)
    times, draws, x = [float(level.nsr) for level in grid], iter(noises), start * float(grid[0].norm)
    begun, raised = x, 0
    for now, to in pairwise(times):
        gamma = min(churn / STEPS, 2**0.5 - 1) if least <= now <= most else 0.0
        higher = now + gamma * now
        if gamma:
            x, raised = x + (higher**2 - now**2) ** 0.5 * size * next(draws), raised + 1
        slope = (x - (x - higher * network(x, higher))) / higher
        ahead = x + (to - higher) * slope
        if to:
            slope = (slope + (ahead - (ahead - to * network(ahead, to))) / to) / 2
        x = x + (to - higher) * slope
    assert 0 < raised < STEPS
    options = {"churn": churn, "s_min": least, "s_max": most, "s_noise": size}
    torch.testing.assert_close(ours("edm", options, network, begun, grid, noises), x, atol=1e-8, rtol=1e-6)


def test_ipndm(network, start):
    """diffusers' network says v of its own levels, sin and cos of a time; here it has ours."""
    nsr = ratios(0.0)
    grid = levels(nsr)
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(STEPS)
    for name, part in (("alphas", "alpha"), ("betas", "sigma")):
        setattr(scheduler, name, torch.tensor([getattr(level, part) for level in grid], dtype=torch.float64))
    x = theirs(scheduler, network, start)
    torch.testing.assert_close(ours("ipndm", {}, network, start, grid, target="v"), x, atol=1e-8, rtol=1e-6)


def test_plms(network, start):
    """Started without Runge-Kutta steps (``skip_prk_steps``), which we do not have. The last step is multistep too."""
    scheduler = with_exact_table(PNDMScheduler(beta_start=1e-4, skip_prk_steps=True, set_alpha_to_one=True))
    scheduler.set_timesteps(10)
    x = theirs(scheduler, network, start)
    grid = at_timesteps(scheduler.timesteps.unique().flip(0))
    torch.testing.assert_close(ours("plms", {}, network, start, grid), x, atol=1e-8, rtol=1e-6)


class DoubledThirdTerm(DPMSolverMultistepScheduler):
    """diffusers' multistep solver with the whole second derivative in its third-order step.

    Newton's divided difference of second order is half the second derivative, and diffusers, as DPM-Solver's own
    program, takes it for the whole in multistep steps (in singlestep ones the factor of 2 is there). The step so is
    not exact for a quadratic, and its order is 2. Ours is that of the whole polynomial.
    """

    def multistep_dpm_solver_third_order_update(self, values, sample, noise=None):
        x = super().multistep_dpm_solver_third_order_update(values, sample=sample, noise=noise)
        now, to = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        place = -self.sigmas[self.step_index - 2 : self.step_index + 1].log()
        h = now.log() - to.log()
        newer, older = (
            (values[-1] - values[-2]) / (place[2] - place[1]),
            (values[-2] - values[-3]) / (place[1] - place[0]),
        )
        second = h**2 * (newer - older) / (place[2] - place[0])
        alpha, sigma = self._sigma_to_alpha_sigma_t(to)
        if self.config.algorithm_type == "dpmsolver++":
            return x - alpha * (((-h).exp() - 1 + h) / h**2 - 0.5) * second
        return x - sigma * ((h.exp() - 1 - h) / h**2 - 0.5) * second


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("algorithm", "last"), [("dpmsolver++", 0.0), ("dpmsolver++", 0.03), ("dpmsolver", 0.03)])
def test_multistep_dpm_solver(algorithm, last, order, network, start):
    """Of order 3, beside diffusers' with the term that it halves made whole."""
    scheduler = DoubledThirdTerm(
        algorithm_type=algorithm, solver_order=order, final_sigmas_type="sigma_min" if last else "zero"
    )
    nsr = ratios(last)
    x = theirs(prepared(scheduler, nsr), network, start)
    name = "dpm_solver_pp" if algorithm == "dpmsolver++" else "dpm_solver"
    got = ours(name, {"order": order, "multistep": True}, network, start, levels(nsr))
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_multistep_sde_dpm_solver(order, network, start, noises):
    """Not of order 3, where diffusers' last coefficient has a 1/2 of the wrong sign and does not vanish with h."""
    nsr = ratios(0.0)
    scheduler = prepared(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=order), nsr)
    x = theirs(scheduler, network, start, variance_noise=noises)
    got = ours("dpm_solver_pp", {"order": order, "eta": 1.0}, network, start, levels(nsr), noises)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_singlestep_dpm_solver(algorithm, order, network, start):
    """diffusers counts calls and takes the levels between from its grid: ours is every ``order``-th level of it.

    In steps of order 3 diffusers makes the second of the levels between with the solver of order 2 that its
    ``solver_type`` names, and "midpoint" is not that of the paper's algorithm: "heun" is.
    """
    scheduler = DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=order, lower_order_final=False, final_sigmas_type="sigma_min"
    )
    nsr = torch.logspace(1.2, -1.2, STEPS + 1, dtype=torch.float64)
    prepared(scheduler, nsr)
    x = start
    for i, t in enumerate(scheduler.timesteps):
        between = order == 3 and scheduler.order_list[i] == 2
        scheduler.register_to_config(solver_type="heun" if between else "midpoint")
        x = scheduler.step(network(x, told(scheduler, i, t)), t, x).prev_sample
    name = "dpm_solver_pp" if algorithm == "dpmsolver++" else "dpm_solver"
    got = ours(name, {"order": order, "multistep": False}, network, start, levels(nsr[::order]))
    torch.testing.assert_close(got, x, atol=1e-7, rtol=1e-6)


class Recorded:
    """A network, and all that it has seen."""

    def __init__(self, network):
        self.network, self.seen = network, []

    def __call__(self, x, nsr):
        self.seen.append(x)
        return self.network(x, nsr)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, lower, network, start):
    """To a level with noise, where ours ends with one more call to correct: its input is what diffusers ends with."""
    nsr = ratios(0.03)
    scheduler = UniPCMultistepScheduler(solver_order=order, solver_type=variant, lower_order_final=lower)
    their_network, our_network = Recorded(network), Recorded(network)
    end = theirs(prepared(scheduler, nsr), their_network, start)
    ours("unipc", {"order": order, "variant": variant, "lower_order_final": lower}, our_network, start, levels(nsr))
    seen = torch.stack([*their_network.seen, end])
    torch.testing.assert_close(torch.stack(our_network.seen), seen, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_to_no_noise(order, network, start):
    """Not with bh1 nor without ``lower_order_final``: diffusers' last step is then no number."""
    nsr = ratios(0.0)
    x = theirs(prepared(UniPCMultistepScheduler(solver_order=order), nsr), network, start)
    torch.testing.assert_close(ours("unipc", {"order": order}, network, start, levels(nsr)), x, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, network, start):
    """diffusers' polynomial is one of log rho."""
    nsr = ratios(0.03)
    x = theirs(prepared(DEISMultistepScheduler(solver_order=order), nsr), network, start)
    got = ours("deis", {"order": order, "variable": "log_rho"}, network, start, levels(nsr))
    torch.testing.assert_close(got, x, atol=1e-8, rtol=1e-6)


def test_the_grid_of_trailing_timesteps_is_uniform():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    ours_, theirs_ = uniform(TABLE, 20), at_timesteps(scheduler.timesteps)
    assert [level.t for level in ours_] == pytest.approx([level.t for level in theirs_])


def test_ddpm_with_x0_cut_in_every_step(network, start, monkeypatch):
    noises = torch.randn(10, 2, 3, 8, 8, dtype=torch.float64)
    scheduler = with_exact_table(DDPMScheduler(beta_start=1e-4, clip_sample=True, clip_sample_range=0.5))
    scheduler.set_timesteps(10)
    draws = iter(noises)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))
    x = theirs(scheduler, network, start)

    def denoise(x, level):
        return Prediction(to_x0(TARGETS["eps"], network(x, level.nsr), x, level))

    ours_draws = iter(noises)
    grid = at_timesteps(scheduler.timesteps)
    got = SAMPLERS["ddpm"]()(clipped(denoise, 0.5), start, grid, lambda: next(ours_draws))
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)
    assert x.abs().max() <= 0.5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_straight_line_with_its_velocity(shift, network, start):
    """Its x and its network's output are ours: the flow's x is not scaled, and F is noise - x0. It keeps float32."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    x = theirs(scheduler, network, start)
    flow = SCHEDULES["flow"]().build()
    grid = Grid([flow.level(float(sigma)) for sigma in scheduler.sigmas], flow)
    assert grid[0] == (1.0, 0.0, 1.0) and grid[-1] == CLEAN
    got = ours("euler", {}, network, start, grid, target="flow")
    torch.testing.assert_close(got.float(), x.float(), atol=1e-5, rtol=1e-5)


def test_a_correctors_step_is_as_long_as_diffusers(network, start, noises, monkeypatch):
    """Of one image: of a batch diffusers takes the mean length, and we each image's own. Its size is in float32."""
    now, to = levels(ratios(0.0))[3:5]
    start, draws = start[:1], noises[:2, :1]
    with_one = ours("predictor_corrector", {"corrections": 1, "snr": 0.2}, network, start, Grid([now, to], VP), draws)
    without = ours("predictor_corrector", {"corrections": 0}, network, start, Grid([now, to], VP), draws)
    scheduler = ScoreSdeVeScheduler(snr=0.2)
    scheduler.set_timesteps(2), scheduler.set_sigmas(2)
    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda *_, **__: draws[1])
    score = -network(without, to.nsr) / to.sigma
    torch.testing.assert_close(with_one, scheduler.step_correct(score, without).prev_sample, atol=1e-6, rtol=1e-6)
    assert (with_one - without).abs().mean() > 0.01


def test_annealed_langevin_takes_ncsns_steps(network, start, noises):
    """Song & Ermon 2019, alg. 1, whose step is step sigma^2 (there epsilon sigma_i^2 / sigma_L^2), and y = x / alpha.

    diffusers has no such sampler.
    """
    now, to = levels(ratios(0.0))[3:5]
    got = ours("annealed_langevin", {"repeats": 2, "step": 0.3}, network, start, Grid([now, to], VP), noises)
    x, size = start, 0.3 * now.sigma**2
    for draw in noises[:2]:
        x = x + size / 2 * (-network(x, now.nsr) / now.sigma) + size**0.5 * draw
    torch.testing.assert_close(got, to.alpha / now.alpha * x, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [(DDIMScheduler, "ddim", {"eta": 0.0}), (DDIMScheduler, "ddim", {"eta": 0.7}), (DDPMScheduler, "ddpm", {})],
)
def test_v_from_where_there_is_no_signal(kind, name, options, network, start, noises, monkeypatch):
    """Lin et al. 2023 (arXiv:2305.08891): alpha(1) = 0, v-prediction, trailing steps; the first step is from noise."""
    theirs_ = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    scheduler = kind(beta_start=1e-4, clip_sample=False, **theirs_)
    table = SCHEDULES["linear"](zero_snr=True).build()
    scheduler.alphas_cumprod = torch.tensor([table.level(n / 1000).alpha ** 2 for n in range(1, 1001)]).double()
    scheduler.set_timesteps(10)
    draws = iter(noises)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))
    x = start
    for i, t in enumerate(scheduler.timesteps):
        given = {"eta": options["eta"], "variance_noise": noises[i]} if kind is DDIMScheduler else {}
        x = scheduler.step(network(x, told(scheduler, i, t)), t, x, **given).prev_sample
    grid = Grid([*(table.level((int(t) + 1) / 1000) for t in scheduler.timesteps), CLEAN], table)
    assert grid[0].alpha == 0
    got = ours(name, options, network, start, grid, noises, target="v")
    torch.testing.assert_close(got, x, atol=1e-6, rtol=1e-6)
