"""The report of a first stage: what it loses of pictures, what its latents look like, what it costs.

Legend: N pictures, S side, B batch, C latent channels, h w latent size, f = S / h downsampling factor.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.bottlenecks import Bottleneck, Gaussian, gaussian_kl
from ldm.autoencoders.bottlenecks.base import Quantizer, usage_of
from ldm.autoencoders.bottlenecks.fsq import FiniteScalar
from ldm.autoencoders.bottlenecks.vq import VectorQuantizer
from ldm.autoencoders.bottlenecks.vq2 import TwoLevels
from ldm.autoencoders.losses import ssim
from ldm.data.transforms import from_bytes, to_bytes
from ldm.evaluation.benchmark import AT_ONCE, Pictures
from ldm.evaluation.distances import distances, features
from ldm.evaluation.reconstruction import psnr

ACTIVE = 0.01  # variance over pictures, above which a latent says something of the picture

Figures = dict[str, Any]


@dataclass(frozen=True)
class AutoencoderReport:
    """Means over the pictures; lists have one entry for each latent channel."""

    pictures: int
    psnr: float  # dB, of each picture, then averaged
    ssim: float
    l1: float  # mean absolute error, pixels in [-1, 1]
    latent_mean: list[float]  # after normalisation: 0 where the pictures are like those it was measured on
    latent_std: list[float]  # likewise 1, or less where the bottleneck draws: ``encode`` gives means
    variance: list[float]  # over the pictures, of the latent as the bottleneck gives it
    active: int  # channels whose variance is above ``ACTIVE``
    encode_seconds: float  # a picture, in batches
    decode_seconds: float  # likewise
    lpips: float | None = None  # where its network is given
    rfid: Figures | None = None  # likewise: the figures of ``distances`` from the pictures themselves
    bottleneck: Figures = field(default_factory=dict)  # what only this kind of bottleneck has to say

    def figures(self) -> Figures:
        """The report as plain values by name, without what was not measured and a PSNR that is infinite."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != float("inf")}


class Moments:
    """Mean and spread of latents (B, C, h, w) that come batch by batch, from sums in double precision."""

    def __init__(self) -> None:
        self.count = 0  # pictures
        self.sum = self.squares = torch.zeros((), dtype=torch.float64)  # (C, h, w) from the first batch on

    def add(self, latent: Tensor) -> None:
        z = latent.double().cpu()
        self.count += len(z)
        self.sum = self.sum + z.sum(dim=0)
        self.squares = self.squares + z.square().sum(dim=0)

    def of_channels(self) -> tuple[Tensor, Tensor]:
        """Mean and std (C,) over pictures and positions."""
        mean, square = (total.mean(dim=(1, 2)) / self.count for total in (self.sum, self.squares))
        return mean, (square - mean.square()).clamp(min=0).sqrt()

    def over_pictures(self) -> Tensor:
        """Variance (C,) over the pictures at a position, the mean of all positions."""
        mean, square = self.sum / self.count, self.squares / self.count  # (C, h, w)
        return (square - mean.square()).clamp(min=0).mean(dim=(1, 2))


@torch.inference_mode()
def autoencoder_report(
    autoencoder: Autoencoder,
    pictures: Pictures,
    *,
    lpips: nn.Module | None = None,
    inception: nn.Module | None = None,
    batch: int = AT_ONCE,
) -> AutoencoderReport:
    """What becomes of pictures (N, S, S, 3) in ``autoencoder``, which encodes to the posterior's mean, without a draw.

    A channel is active where the variance over pictures of its posterior mean, averaged over the positions, exceeds
    0.01 (Burda et al. 2016, arXiv:1509.00519). That is 1 % of what a KL bottleneck's prior has; the scale of
    a bottleneck without a prior is its own. ``lpips`` and ``inception`` are ``reconstruction.Lpips`` and
    ``distances.Inception``, or other modules of their kind; without them there are no figures of theirs.
    Only for ``inception`` more is held than a ``batch``: what comes back of all pictures, in bytes.

    Raises:
        ValueError: there are fewer than two pictures, or their side is no multiple of f, or below 6.
    """
    if len(pictures) < 2:
        raise ValueError(f"{len(pictures)} pictures are too few: what varies between them is measured; take at least 2")
    device, moments, decoded = autoencoder.mean.device, Moments(), []
    losses = torch.zeros((), dtype=torch.float64)  # (3 or 4,), summed over pictures
    seconds = np.zeros(2)  # of encoding and decoding
    first = next(_images(pictures[:batch], batch, device))
    autoencoder.decode(autoencoder.encode(first))  # the first pass of a process is slow, and is not timed
    for images in _images(pictures, batch, device):  # (B, 3, S, S)
        latent, encoding = _timed(autoencoder.encode, images)  # (B, C, h, w)
        output, decoding = _timed(autoencoder.decode, latent)  # (B, 3, S, S)
        seconds += encoding, decoding
        each = [psnr(output, images), ssim(output, images), (output - images).abs().mean(dim=(1, 2, 3))]
        lost = torch.stack([*each, *([lpips(output, images)] if lpips else [])])  # (3 or 4, B)
        losses = losses + lost.double().cpu().sum(dim=1)
        moments.add(latent)
        if inception:
            decoded.append(to_bytes(output))
    means = (losses / len(pictures)).tolist()
    latent_mean, latent_std = moments.of_channels()  # (C,) each
    std = autoencoder.std.double().cpu().flatten()  # (C,)
    variance = moments.over_pictures() * std.square()  # (C,)
    measure = OWN_FIGURES.get(type(autoencoder.bottleneck))
    encoded = (autoencoder.encoder(images) for images in _images(pictures, batch, device))  # (B, features, h, w)
    return AutoencoderReport(
        pictures=len(pictures),
        psnr=means[0],
        ssim=means[1],
        l1=means[2],
        latent_mean=latent_mean.tolist(),
        latent_std=latent_std.tolist(),
        variance=variance.tolist(),
        active=int((variance > ACTIVE).sum()),
        encode_seconds=seconds[0] / len(pictures),
        decode_seconds=seconds[1] / len(pictures),
        lpips=means[3] if lpips else None,
        rfid=_rfid(np.concatenate(decoded), pictures, inception, batch) if inception else None,
        bottleneck=measure(autoencoder.bottleneck, encoded) if measure else {},
    )


def gaussian_figures(bottleneck: Gaussian, encoded: Iterable[Tensor]) -> Figures:
    """The KL in nats from the prior, the mean of a picture: of each channel, summed over positions, and of all."""
    count, total = 0, torch.zeros((), dtype=torch.float64)  # (C,) from the first batch on
    for h in encoded:
        mean, log_variance = (rearrange(part, "b c h w -> (b c) h w") for part in bottleneck.moments(h))
        count += len(h)
        total = total + gaussian_kl(mean.double(), log_variance.double()).view(len(h), -1).cpu().sum(dim=0)
    kl = total / count  # (C,)
    return {"kl": kl.tolist(), "kl_sum": float(kl.sum())}


def code_figures(bottleneck: Quantizer, encoded: Iterable[Tensor]) -> Figures:
    """The share of the codes that occur in the pictures, and the perplexity of their frequencies."""
    times = Counter[int]()
    for h in encoded:
        times.update(bottleneck.codes(h).flatten().tolist())
    return _use(times, bottleneck.num_codes)


def level_figures(bottleneck: TwoLevels, encoded: Iterable[Tensor]) -> Figures:
    """``code_figures`` of each level, with its name after theirs."""
    levels = {"top": bottleneck.top, "bottom": bottleneck.bottom}
    times = {name: Counter[int]() for name in levels}
    for h in encoded:
        for name, codes in zip(levels, bottleneck.codes(h), strict=True):
            times[name].update(codes.flatten().tolist())
    used = {name: _use(times[name], level.num_codes) for name, level in levels.items()}
    return {f"{figure}_{name}": value for name, figures in used.items() for figure, value in figures.items()}


def _use(times: Counter[int], num_codes: int) -> Figures:
    """``usage`` by how often each code that occurs does."""
    counts = torch.tensor([*times.values()])
    return {name: float(value) for name, value in usage_of(counts, num_codes).items()}


# what a kind of bottleneck has to say of all batches of features (B, features, h, w)
OWN_FIGURES: dict[type[Bottleneck], Callable[[Any, Iterable[Tensor]], Figures]] = {
    Gaussian: gaussian_figures,
    VectorQuantizer: code_figures,
    TwoLevels: level_figures,
    FiniteScalar: code_figures,
}


def _images(pictures: Pictures, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) in [-1, 1]."""
    for part in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(batch):
        yield from_bytes(part.to(device))


def _timed(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    """What ``call`` makes of ``x``, and in how many seconds."""
    began = _now(x.device)
    made = call(x)
    return made, _now(x.device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was asked of a GPU so far has then been done
    return perf_counter()


def _rfid(decoded: Pictures, pictures: Pictures, inception: nn.Module, batch: int) -> Figures:
    return distances(features(decoded, inception, batch=batch), features(pictures, inception, batch=batch))
