"""Samplers. ``SAMPLERS`` maps a configuration's name to the dataclass that is called to sample."""

from ldm.samplers.ddim import DDIMConfig, DDPMConfig
from ldm.samplers.noise import ImageNoise

SAMPLERS = {"ddim": DDIMConfig, "ddpm": DDPMConfig}

__all__ = ["SAMPLERS", "ImageNoise"]
