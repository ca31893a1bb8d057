"""Bottlenecks. ``BOTTLENECKS`` maps a configuration's name to the dataclass that builds it.

A new one is a file and a line here.
"""

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code
from ldm.autoencoders.bottlenecks.gaussian import Gaussian, KLConfig, gaussian_kl
from ldm.autoencoders.bottlenecks.identity import Identity, IdentityConfig

BOTTLENECKS = {"kl": KLConfig, "identity": IdentityConfig}

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckConfig",
    "Code",
    "Gaussian",
    "Identity",
    "IdentityConfig",
    "KLConfig",
    "gaussian_kl",
]
