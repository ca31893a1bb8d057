"""First stages. ``BOTTLENECKS`` maps a configuration's name to the dataclass that builds it."""

from ldm.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm.autoencoders.bottlenecks import Code, IdentityConfig, KLConfig
from ldm.autoencoders.losses import ReconstructionConfig

BOTTLENECKS = {"kl": KLConfig, "identity": IdentityConfig}

__all__ = ["BOTTLENECKS", "Autoencoder", "AutoencoderConfig", "Code", "ReconstructionConfig"]
