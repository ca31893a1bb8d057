"""Bottlenecks. ``BOTTLENECKS`` maps a configuration's name to the dataclass that builds it.

A new one is a file and a line here.
"""

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code, Quantizer
from ldm.autoencoders.bottlenecks.fsq import FSQConfig
from ldm.autoencoders.bottlenecks.gaussian import Gaussian, KLConfig, gaussian_kl
from ldm.autoencoders.bottlenecks.identity import Identity, IdentityConfig
from ldm.autoencoders.bottlenecks.sparse import SparseConfig, TopKConfig
from ldm.autoencoders.bottlenecks.vq import VQConfig
from ldm.autoencoders.bottlenecks.vq2 import VQ2Config

BOTTLENECKS = {
    "kl": KLConfig,
    "identity": IdentityConfig,
    "vq": VQConfig,
    "vq2": VQ2Config,
    "fsq": FSQConfig,
    "topk": TopKConfig,
    "sparse": SparseConfig,
}

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckConfig",
    "Code",
    "FSQConfig",
    "Gaussian",
    "Identity",
    "IdentityConfig",
    "KLConfig",
    "Quantizer",
    "SparseConfig",
    "TopKConfig",
    "VQ2Config",
    "VQConfig",
    "gaussian_kl",
]
