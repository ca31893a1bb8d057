"""Pictures from pictures: variation, other words, inpainting, inverse problems; wrappers of a denoiser or a sampler."""

from ldm.editing.edits import filled, followed, resembling, restored, reworded, varied
from ldm.editing.image_to_image import image_to_image
from ldm.editing.inpainting import keep_known, latent_mask
from ldm.editing.inversion import reword
from ldm.editing.operators import Blur, Downscale, Masked, Operator, Projections
from ldm.editing.posterior import ddnm, dps
from ldm.editing.resampling import ResamplingConfig, resampled

__all__ = [
    "Blur",
    "Downscale",
    "Masked",
    "Operator",
    "Projections",
    "ResamplingConfig",
    "ddnm",
    "dps",
    "filled",
    "followed",
    "image_to_image",
    "keep_known",
    "latent_mask",
    "resampled",
    "resembling",
    "restored",
    "reword",
    "reworded",
    "varied",
]
