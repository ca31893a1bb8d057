"""How likely held-out latents are to a model: the variational bound, and the exact density by the ODE."""

from typing import Any, NamedTuple

import torch

from ldm.data.latents import Latents
from ldm.diffusion.grids import LogSNRConfig
from ldm.diffusion.likelihood import log_likelihood, rademacher
from ldm.diffusion.posterior import Variance
from ldm.diffusion.vlb import Bound, variational_bound
from ldm.pipeline import TextToImage
from ldm.samplers import ImageNoise
from ldm.types import Condition, Grid

BOUND_SAMPLES, BOUND_STEPS = 32, 250
ODE_SAMPLES, ODE_PROBES, ODE_TOLERANCE = 8, 2, 1e-4


class Likelihoods(NamedTuple):
    """Bits per dimension by name; and of each bound the KL terms of its steps, L_{T-1} to L_1."""

    figures: dict[str, Any]
    terms: dict[str, list[float]]


@torch.no_grad()
def likelihoods(model: TextToImage, held_out: Latents) -> Likelihoods:
    """Bits per dimension of the latents, a density's, so that they may be negative; the lower the likelier.

    With each one's own caption and with none: what lies between is what the caption tells. The bound is of BOUND_STEPS
    steps of DDPM, even in log SNR, told with the three parts that make it (DDPM, arXiv:2006.11239, eq. 5), and the
    ODE's density that of latents with a little noise (nsr 1e-3).
    """
    null, grid = model.condition([""]), LogSNRConfig()(model.process.schedule, BOUND_STEPS)
    found: dict[str, Any] = {}
    terms: dict[str, list[float]] = {}
    for name, told in (("with the caption", held_out.cond), ("with none", null.repeat(len(held_out.latent)))):
        bound = _bound(model, held_out, told, grid)
        terms[name] = bound.steps.mean(dim=0).tolist()
        parts = {"L_T": bound.prior, "the sum of L_t": bound.steps.sum(dim=1), "L_0": bound.reconstruction}
        found[f"bound {name}"] = bound.total.mean().item()
        found |= {f"{part} of the bound {name}": value.mean().item() for part, value in parts.items()}
        found[f"ODE {name}"], found["ODE evaluations"] = _ode(model, held_out, told)
    counts = {"samples of the bound": min(BOUND_SAMPLES, len(held_out.latent)), "steps of the bound": BOUND_STEPS}
    return Likelihoods({**found, **counts, "samples of the ODE": min(ODE_SAMPLES, len(held_out.latent))}, terms)


def _bound(model: TextToImage, held_out: Latents, told: Condition, grid: Grid) -> Bound:
    latent = held_out.latent[:BOUND_SAMPLES]
    _, channels, height, width = latent.shape
    noise = ImageNoise([*range(len(latent))], (channels, height, width), model.device)
    denoise = model.process.denoiser(model.denoiser, told[: len(latent)])
    variance: Variance = "learned" if model.process.learned_variance else "beta"
    return variational_bound(denoise, latent, grid, noise, variance=variance)


def _ode(model: TextToImage, held_out: Latents, told: Condition) -> tuple[float, int]:
    latent = held_out.latent[:ODE_SAMPLES]
    probes = rademacher(latent, ODE_PROBES, torch.Generator().manual_seed(0))
    denoise = model.process.denoiser(model.denoiser, told[: len(latent)])
    tolerance = {"rtol": ODE_TOLERANCE, "atol": ODE_TOLERANCE}
    found = log_likelihood(denoise, latent, model.process.schedule, probes, **tolerance)
    return found.bits_per_dim.mean().item(), found.evaluations
