"""The first stage: encoder -> bottleneck -> decoder, with the latents' measured mean and std in the weights.

Legend: B batch, C latent channels, h w latent size, f = H / h downsampling factor.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from math import log2

import torch
from torch import Tensor, nn

from ldm.autoencoders.blocks import AT_LATENT_SIZE, NORMS, Bound, Stack, decoder, encoder
from ldm.autoencoders.bottlenecks import Bottleneck, Code
from ldm.autoencoders.tiles import LEAST_PLACES
from ldm.autoencoders.whole_norms import in_tiles
from ldm.config import nearest

LEAST_STD = 1e-3  # of a channel, as a share of the largest one


@dataclass
class AutoencoderConfig:
    """A convolutional autoencoder of factor ``patch * 2^(len(multipliers) - 1)``."""

    channels: int = 4  # of the latent
    width: int = 128  # channels of the first level
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 4])  # of the width, one a level
    blocks: int = 2  # residual blocks a level
    patch: int = 1  # pixels folded into channels before the first convolution
    attention: bool = True  # in the middle, at the lowest resolution
    norm: str = "group"  # group | channel (each position by itself)
    groups: int = 32  # of each GroupNorm; channel norms have none
    bounded: bool = False  # whether the decoder ends in a tanh, with pictures inside (-1, 1)
    decoder_width: int = 0  # of the decoder's first level, less for a fast one; 0: as the encoder's
    decoder_blocks: int = 0  # as blocks, of the decoder; 0: as many as the encoder's

    def __post_init__(self) -> None:
        least = dict.fromkeys(("channels", "width", "blocks", "patch", "groups"), 1)
        for name, number in (least | {"decoder_width": 0, "decoder_blocks": 0}).items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} {getattr(self, name)} is not at least {number}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers {self.multipliers} must be whole numbers of at least 1, one a level")
        if self.norm not in NORMS:
            raise ValueError(f"norm: no '{self.norm}' here; {nearest(self.norm, list(NORMS))}")
        if not log2(self.patch).is_integer():
            raise ValueError(f"patch {self.patch} is not a power of two; try patch={2 ** round(log2(self.patch))}")

    @property
    def factor(self) -> int:
        """How many pixels, along one side, become one latent position."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    def stack(self, width: int, blocks: int) -> Stack:
        """What an encoder or decoder of that first width and as many blocks a level is built from."""
        widths = [width * multiplier for multiplier in self.multipliers]
        return Stack(widths, blocks, self.patch, self.attention, partial(NORMS[self.norm], groups=self.groups))

    def build(self, bottleneck: Bottleneck) -> "Autoencoder":
        return Autoencoder(self, bottleneck)


class Autoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H / f, W / f) of at most about unit variance and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.channels, self.factor = config.channels, config.factor
        back = config.stack(config.decoder_width or config.width, config.decoder_blocks or config.blocks)
        self.encoder = encoder(3, bottleneck.features, config.stack(config.width, config.blocks))
        self.decoder = decoder(config.channels, 3, back)
        if config.bounded:
            self.decoder.append(Bound())
        self.bottleneck = bottleneck
        self.latents_frozen = False
        last = self.encoder[-1]
        assert isinstance(last, nn.Conv2d)
        bottleneck.start(last)
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("std", torch.ones(config.channels, 1, 1))

    def freeze_latents(self) -> None:
        """Train nothing that latents depend on: neither the encoder nor the bottleneck with its codes."""
        self.latents_frozen = True
        self.encoder.requires_grad_(False)
        self.bottleneck.requires_grad_(False)
        self.bottleneck.eval()

    def train(self, mode: bool = True) -> "Autoencoder":
        """Set the training mode, but for a frozen bottleneck, whose codes would move in it."""
        super().train(mode)
        self.bottleneck.train(mode and not self.latents_frozen)
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, Code]:
        """The reconstruction (B, 3, H, W) and the raw code: the training pass."""
        code: Code = self.bottleneck(self.encoder(image), image[0].numel())
        return self.decoder(code.z), code

    def encode(self, image: Tensor, *, tile: int = 0) -> Tensor:
        """Latents (B, C, H / f, W / f), scaled as ``measure`` says: the posterior's mean, and not quantised.

        ``tile`` and errors are as for ``features``.
        """
        z = self.bottleneck.mode(self.features(image, tile=tile))
        return (z.float() - self.mean) / self.std

    def features(self, image: Tensor, *, tile: int = 0) -> Tensor:
        """What the encoder says (B, features, H / f, W / f), of which the bottleneck makes latents.

        With ``tile`` pictures go one after another, and all that is larger than the latent is made of tiles of at most
        so many pixels a side, one at a time (``ldm.autoencoders.tiles``). What works at the latent's size, attention
        above all, sees it whole. With group norms a tile has so many places of each size that there is, and they have
        the statistics of the whole, which takes several passes (``ldm.autoencoders.whole_norms``).

        Raises:
            ValueError: the image's sides are not multiples of the factor, or ``tile`` is too small.
        """
        if tile and len(image) > 1:
            return torch.cat([self.features(one, tile=tile) for one in image.split(1)])
        if image.shape[2] % self.factor or image.shape[3] % self.factor:
            raise ValueError(
                f"image of {image.shape[3]} x {image.shape[2]} pixels: sides must be multiples of {self.factor}"
            )
        fine, coarse = self.encoder[: -AT_LATENT_SIZE["encoder"]], self.encoder[-AT_LATENT_SIZE["encoder"] :]
        if tile:
            h = in_tiles(fine, image, self.tile_side(tile))
        else:
            h = fine(image)
        features: Tensor = coarse(h)
        return features

    def decode(self, latent: Tensor, *, clamp: bool = True, tile: int = 0) -> Tensor:
        """Images (B, 3, f h, f w) from latents (B, C, h, w) as ``encode`` gives them.

        They are in [-1, 1], or without ``clamp`` nearly so, with a gradient everywhere. Where the bottleneck has codes,
        the latent is quantised first. ``tile`` is as for ``features``.
        """
        return self.decode_quantized(self.bottleneck.quantize(latent * self.std + self.mean), clamp=clamp, tile=tile)

    def decode_quantized(self, z: Tensor, *, clamp: bool = True, tile: int = 0) -> Tensor:
        """Likewise of what the bottleneck's ``quantize`` gives: the decoder's own input (B, C, h, w)."""
        if tile and len(z) > 1:
            return torch.cat([self.decode_quantized(one, clamp=clamp, tile=tile) for one in z.split(1)])
        coarse, fine = self.decoder[: AT_LATENT_SIZE["decoder"]], self.decoder[AT_LATENT_SIZE["decoder"] :]
        h = coarse(z.contiguous(memory_format=torch.channels_last))  # in which convolutions take less time
        image: Tensor
        if tile:
            image = in_tiles(fine, h, self.tile_side(tile))
        else:
            image = fine(h)
        return image.clamp(-1, 1) if clamp else image

    def tile_side(self, tile: int) -> int:
        """``tile`` pixels as a multiple of the factor; a ValueError where that is too small for a tile's side."""
        if tile < LEAST_PLACES * self.factor:
            raise ValueError(
                f"tile {tile} is too small for a factor of {self.factor}; try tile={64 * self.factor}, or 0 for none"
            )
        return tile // self.factor * self.factor

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Set the latents' mean and std per channel from batches of ``images`` (B, 3, H, W), posterior draws included.

        Where a KL is weighty, what the posterior draws has about unit variance in every channel, and the less of that
        its mean has, the less the channel says of the image: ``encode`` gives means, and leaves such a channel small.
        Scaled by the means' own std it would be blown up to noise that a denoiser spends itself on. So would what
        rounding leaves of a channel that says nothing: no std counts as less than a thousandth of the largest.
        """
        count, total, squares = 0, torch.zeros(self.channels).double(), torch.zeros(self.channels).double()
        for image in images:
            h = self.encoder(image)
            z, variance = (part.double().cpu() for part in (self.bottleneck.mode(h), self.bottleneck.variance(h)))
            count += z.numel() // self.channels
            total += z.sum(dim=(0, 2, 3))
            squares += (z.square() + variance).sum(dim=(0, 2, 3))
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        std = std.clamp(min=LEAST_STD * float(std.max()))
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1))
