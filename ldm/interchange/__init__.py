"""Models and first stages as diffusers keeps them, Stable Diffusion 1's or 2's layout: written from ours, and read."""

from ldm.interchange.first_stage import autoencoder_from_diffusers, autoencoder_to_diffusers
from ldm.interchange.pipeline import from_diffusers, to_diffusers

__all__ = ["autoencoder_from_diffusers", "autoencoder_to_diffusers", "from_diffusers", "to_diffusers"]
