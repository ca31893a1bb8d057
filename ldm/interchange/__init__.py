"""Models as diffusers keeps them, Stable Diffusion 1's or 2's layout: written from ours, and read into ours."""

from ldm.interchange.pipeline import from_diffusers, to_diffusers

__all__ = ["from_diffusers", "to_diffusers"]
