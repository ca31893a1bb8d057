"""Samplers. ``SAMPLERS`` maps a configuration's name to the dataclass that is called to sample.

A new one is a file and a line here: see docs/extending.md.
"""

from ldm.samplers.ddim import DDIMConfig, DDPMConfig
from ldm.samplers.dpm_solver import DPMSolverConfig, DPMSolverPPConfig
from ldm.samplers.euler import EDMConfig, EulerAncestralConfig, EulerConfig, HeunConfig
from ldm.samplers.multistep import DEISConfig, IPNDMConfig, PLMSConfig
from ldm.samplers.noise import ImageNoise
from ldm.samplers.ode import ODEConfig
from ldm.samplers.sde import AnnealedLangevinConfig, EulerMaruyamaConfig, PredictorCorrectorConfig
from ldm.samplers.unipc import UniPCConfig

SAMPLERS = {
    "ddim": DDIMConfig,
    "ddpm": DDPMConfig,
    "euler": EulerConfig,
    "euler_ancestral": EulerAncestralConfig,
    "heun": HeunConfig,
    "edm": EDMConfig,
    "plms": PLMSConfig,
    "ipndm": IPNDMConfig,
    "deis": DEISConfig,
    "dpm_solver": DPMSolverConfig,
    "dpm_solver_pp": DPMSolverPPConfig,
    "unipc": UniPCConfig,
    "euler_maruyama": EulerMaruyamaConfig,
    "predictor_corrector": PredictorCorrectorConfig,
    "annealed_langevin": AnnealedLangevinConfig,
    "ode": ODEConfig,
}

__all__ = ["SAMPLERS", "ImageNoise"]
