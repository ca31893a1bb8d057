"""Pictures as maps of code numbers, one for each level of a first stage that has codes, the coarsest first.

Legend: B batch, H W image size, h w size of a level's map, K codes of a level.
"""

from typing import Any

from torch import Tensor

from ldm.autoencoders.autoencoder import Autoencoder
from ldm.autoencoders.bottlenecks import BOTTLENECKS, Bottleneck, Quantizer
from ldm.autoencoders.bottlenecks.vq2 import TwoLevels

CHANNELS = 4  # that every bottleneck can be built with


def quantizers(bottleneck: Bottleneck) -> tuple[Quantizer, ...]:
    """What quantises each level, the coarsest first; empty where a latent has no codes."""
    if isinstance(bottleneck, TwoLevels):
        return bottleneck.top, bottleneck.bottom
    return (bottleneck,) if isinstance(bottleneck, Quantizer) else ()


def num_codes(bottleneck: Bottleneck) -> tuple[int, ...]:
    """K of each level, the coarsest first.

    Raises:
        ValueError: the bottleneck has no codes.
    """
    counts = tuple(quantizer.num_codes for quantizer in quantizers(bottleneck))
    if not counts:
        coded = [name for name, config in BOTTLENECKS.items() if quantizers(config().build(CHANNELS))]
        raise ValueError(
            f"a {type(bottleneck).__name__} bottleneck has no codes, as {', '.join(coded)} have; "
            f"try bottleneck={coded[0]}"
        )
    return counts


def map_sizes(bottleneck: Bottleneck, height: int, width: int) -> list[tuple[int, int]]:
    """(h, w) of each level's map, the coarsest first, where the latent is ``height`` x ``width``."""
    above = range(len(num_codes(bottleneck)) - 1, -1, -1)  # each level is half of the next, rounded up
    return [(-(-height // 2**level), -(-width // 2**level)) for level in above]


def encode_codes(autoencoder: Autoencoder, image: Tensor) -> list[Tensor]:
    """The code numbers (B, h, w) of ``image`` (B, 3, H, W), a map for each level."""
    num_codes(autoencoder.bottleneck)
    bottleneck: Any = autoencoder.bottleneck
    codes = bottleneck.codes(autoencoder.features(image))
    return list(codes) if isinstance(codes, tuple) else [codes]


def decode_codes(autoencoder: Autoencoder, maps: list[Tensor], *, tile: int = 0) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of the code numbers of each level; ``tile`` is as for the autoencoder."""
    bottleneck: Any = autoencoder.bottleneck
    return autoencoder.decode_quantized(bottleneck.from_codes(*maps), tile=tile)
