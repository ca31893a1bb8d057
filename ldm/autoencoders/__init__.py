"""First stages: an encoder, one of ``BOTTLENECKS`` and a decoder; what their reconstructions cost."""

from ldm.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm.autoencoders.bottlenecks import BOTTLENECKS, Code
from ldm.autoencoders.discriminator import AdversarialConfig
from ldm.autoencoders.losses import ReconstructionConfig
from ldm.autoencoders.penalties import RobustnessConfig

__all__ = [
    "BOTTLENECKS",
    "AdversarialConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "Code",
    "ReconstructionConfig",
    "RobustnessConfig",
]
