"""Does a denoiser use its text? Its loss on held-out latents with the true, another and no caption, by noise level.

Legend: B batch, C H W latent, T bands of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.data.latents import Latents
from ldm.diffusion.process import loss
from ldm.diffusion.targets import TARGETS
from ldm.pipeline import TextToImage

BANDS = 8  # T: parts of equal length of the time from 0 to 1


@dataclass(frozen=True)
class TextUse:
    """Mean losses in each band of time, by what the denoiser was told; band i goes from i / T to (i + 1) / T."""

    true: list[float]
    shuffled: list[float]
    empty: list[float]

    @property
    def times(self) -> list[float]:
        """The middles of the bands."""
        return [(band + 0.5) / len(self.true) for band in range(len(self.true))]

    def figures(self) -> dict[str, float]:
        """One number a caption kind ("loss", "loss_shuffled", "loss_empty"), and one a band ("loss@0.06", ...)."""
        named = {"loss": self.true, "loss_shuffled": self.shuffled, "loss_empty": self.empty}
        means = {name: sum(each) / len(each) for name, each in named.items()}
        bands = {f"{name}@{t:.2f}": x for name, each in named.items() for t, x in zip(self.times, each, strict=True)}
        return {**means, **bands}


@torch.no_grad()
def text_use(model: TextToImage, held_out: Sequence[Latents]) -> TextUse:
    """The losses of ``model`` on ``held_out``, each sample at one time, evenly spread, with noise that never changes.

    Where the loss with the true caption is no lower than with another sample's, the text is not used; where it is
    lower with none than with another's, a wrong caption misleads, which is what listening means.
    """
    network, target, null = model.denoiser, TARGETS[model.process.target], model.text([""]).to(model.device)
    generator = torch.Generator().manual_seed(0)
    bands = min(BANDS, len(held_out[0].latent))
    sums, counts = torch.zeros(3, bands, dtype=torch.float64), torch.zeros(bands, dtype=torch.float64)
    for latent, cond in held_out:
        t = (torch.arange(len(latent)) + 0.5) / len(latent)  # (B,)
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        band = (t * bands).long()  # (B,)
        counts += band.bincount(minlength=bands)
        others = torch.arange(len(latent)).roll(1).tolist()
        for kind, told in enumerate((cond, cond[others], null.repeat(len(latent)))):
            each = loss(network, target, model.schedule, latent, told, t.to(latent.device), noise)  # (B,)
            sums[kind].index_add_(0, band, each.double().cpu())
    return TextUse(*(sums / counts).tolist())


def draw_text_use(use: TextUse, picture: Path) -> None:
    """Plot the loss against time with the true, another and no caption."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 3.5))
    for values, label in ((use.true, "true caption"), (use.shuffled, "another's caption"), (use.empty, "no caption")):
        axis.plot(use.times, values, "o-", markersize=4, label=label)
    axis.set(xlabel="time: 0 data, 1 noise", ylabel="validation loss", title="does it use the text?")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
