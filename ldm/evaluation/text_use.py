"""Does a denoiser use its text? Its loss on held-out latents by noise level, with the true caption and with others.

The others are another sample's, none, and the true caption's own words in another order.

Legend: B batch, C H W latent, T bands of time.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from ldm.data.latents import Latents
from ldm.diffusion.loss import loss
from ldm.pipeline import TextToImage

BAND = "@"  # in the name of a figure that is a part of another: loss@0.06 is the loss around time 0.06
BANDS = 8  # T: parts of equal length of the time from 0 to 1


@dataclass(frozen=True)
class TextUse:
    """Mean losses in each band of time, by what the denoiser was told; band i goes from i / T to (i + 1) / T."""

    true: list[float]
    shuffled: list[float] | None  # None where the captions do not differ
    empty: list[float]
    reordered: list[float] | None = None  # None where the captions' words are not at hand

    @property
    def times(self) -> list[float]:
        """The middles of the bands."""
        return [(band + 0.5) / len(self.true) for band in range(len(self.true))]

    def figures(self) -> dict[str, float]:
        """Their means ("loss", "loss_shuffled", ...), and one for each band ("loss@0.06", ...)."""
        named = {"loss": self.true, "loss_shuffled": self.shuffled, "loss_empty": self.empty}
        named["loss_reordered"] = self.reordered
        found = {name: each for name, each in named.items() if each is not None}
        means = {name: sum(each) / len(each) for name, each in found.items()}
        bands = {
            f"{name}{BAND}{t:.2f}": x for name, each in found.items() for t, x in zip(self.times, each, strict=True)
        }
        return {**means, **bands}

    def lines(self) -> dict[str, dict[float, float]]:
        """The losses by time, for a plot."""
        named = {"true caption": self.true, "another's caption": self.shuffled, "no caption": self.empty}
        named["its words in another order"] = self.reordered
        return {name: dict(zip(self.times, each, strict=True)) for name, each in named.items() if each is not None}


@torch.no_grad()
def text_use(
    model: TextToImage, held_out: Sequence[Latents], captions: Sequence[Sequence[str]] | None = None
) -> TextUse:
    """The losses of ``model`` on ``held_out``, each sample at one time, evenly spread, with noise that never changes.

    Where the loss with the true caption is no lower than with another one, the text is not used; where it is lower
    with none than with another, a wrong caption misleads, which is what listening means. The other caption is that of
    the next sample of the batch whose caption differs. ``captions`` are the words of each batch: where the loss stays
    the same with them in another order, the network knows what is in the picture but not which word belongs to which.
    """
    network, null = model.denoiser, model.condition([""])
    generator = torch.Generator().manual_seed(0)
    samples = sum(len(latent) for latent, _ in held_out)
    times = ((torch.arange(samples) + 0.5) / samples)[torch.randperm(samples, generator=generator)]  # all in any batch
    bands = min(BANDS, samples)
    sums, counts = (torch.zeros(4, bands, dtype=torch.float64) for _ in range(2))
    for batch, (latent, cond) in enumerate(held_out):
        t, times = times[: len(latent)], times[len(latent) :]  # (B,)
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        band = (t * bands).long()  # (B,)
        # what is pooled with unCLIP is of the picture, and differs where the caption is the same
        others, differs = _others(cond.pooled if model.unclip is None else cond.tokens * cond.mask[:, :, None])
        every = torch.ones(len(latent), dtype=torch.bool)
        told = [(cond, every), (cond[others], differs), (null.repeat(len(latent)), every)]
        if captions is not None:
            said = model.text(_reordered(captions[batch])).to(latent.device)
            # with unCLIP the picture's own embedding stays: the words alone are in another order
            told.append((said if model.unclip is None else replace(said, pooled=cond.pooled), every))
        for kind, (said, counted) in enumerate(told):
            each = loss(network, model.process, latent, said, t.to(latent.device), noise)  # (B,)
            sums[kind].index_add_(0, band[counted], each.double().cpu()[counted])
            counts[kind] += band[counted].bincount(minlength=bands)
    true, shuffled, empty, reordered = (sums / counts).tolist()
    differ = bool((counts[1] > 0).all())
    return TextUse(true, shuffled if differ else None, empty, reordered if captions is not None else None)


def _reordered(captions: Sequence[str]) -> list[str]:
    """The words of each caption in an order that is always the same."""
    rng = random.Random(0)
    split = [caption.split() for caption in captions]
    return [" ".join(rng.sample(words, len(words))) for words in split]


def _others(text: Tensor) -> tuple[list[int], Tensor]:
    """For each row of ``text`` (B, ...) the next one that differs, and whether there is one (B,)."""
    differs = torch.cdist(text.flatten(1), text.flatten(1), p=inf).cpu() > 1e-6  # (B, B)
    count = len(text)
    ahead = (torch.arange(count)[:, None] + torch.arange(count)) % count  # (B, B): row i counts up from i
    first = differs.gather(1, ahead).int().argmax(dim=1)  # (B,), 0 where none differs
    return [*map(int, ahead[torch.arange(count), first])], differs.any(dim=1)
