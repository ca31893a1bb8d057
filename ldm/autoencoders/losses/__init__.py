"""What a reconstruction costs: terms that compare it with its image, and a discriminator's opinion of it."""

from ldm.autoencoders.losses.adversarial import adaptive_weight, gradient_penalty, hinge
from ldm.autoencoders.losses.reconstruction import ReconstructionConfig, ReconstructionLoss
from ldm.autoencoders.losses.structure import ms_ssim, ssim

__all__ = [
    "ReconstructionConfig",
    "ReconstructionLoss",
    "adaptive_weight",
    "gradient_penalty",
    "hinge",
    "ms_ssim",
    "ssim",
]
