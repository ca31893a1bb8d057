"""What a reconstruction costs: terms that compare it with its image."""

from ldm.autoencoders.losses.reconstruction import ReconstructionConfig, ReconstructionLoss
from ldm.autoencoders.losses.structure import ms_ssim

__all__ = ["ReconstructionConfig", "ReconstructionLoss", "ms_ssim"]
