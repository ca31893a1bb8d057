"""Training a classifier of noised latents, for guidance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ldm.autoencoders import Autoencoder
from ldm.data.loader import first_batches
from ldm.denoisers.classifier import Classifier, present
from ldm.diffusion.process import noised, unit
from ldm.diffusion.times import evenly_spread
from ldm.evaluation.report import curve
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Batch, Schedule

BANDS = 8  # of time, in the figure


class ClassifierTask(DataTask):
    """Binary cross-entropy for each word, in nats, at times spread evenly."""

    name = "classifier"

    def __init__(
        self,
        network: Classifier,
        autoencoder: Autoencoder,
        schedule: Schedule,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[Classifier], None],
    ) -> None:
        super().__init__(train, config)
        self.network: nn.Module = network
        self.words, self.save = network.words, save
        self.autoencoder, self.schedule = autoencoder, schedule
        self.held_out = [self._encoded(batch) for batch in first_batches(val, config.batch, config.validate_samples)]

    def loss(self, network: nn.Module, batch: Batch, seed: int, step: int) -> Loss:
        latent, there = self._encoded(batch)
        generator = torch.Generator().manual_seed(seed)
        t = evenly_spread(len(latent), generator)
        return self._each(network, latent, there, t, generator).mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The loss, and that of one who only knows how often each word is said: what the picture tells is between."""
        there = torch.cat([there for _, there in self.held_out])
        share = there.mean(dim=0, keepdim=True).clamp(1e-6, 1 - 1e-6).expand_as(there)
        blind = binary_cross_entropy_with_logits(torch.logit(share), there)
        return {"loss": sum(self._by_time(network)) / BANDS, "loss_blind": blind.item()}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """The loss by time: the more noise, the less there is to be seen."""
        by_time = {(band + 0.5) / BANDS: loss for band, loss in enumerate(self._by_time(network))}
        svg = curve({"loss": by_time}, "time: 0 data, 1 noise", "cross-entropy of a word, nats")
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.with_suffix(".svg").write_text(svg, encoding="utf-8")

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        assert isinstance(network, Classifier)
        self.save(network)

    def _by_time(self, network: nn.Module) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        sums = [0.0] * BANDS
        for latent, there in self.held_out:
            for band in range(BANDS):
                t = torch.full((len(latent),), (band + 0.5) / BANDS)
                sums[band] += self._each(network, latent, there, t, generator).mean().item() / len(self.held_out)
        return sums

    def _each(self, network: nn.Module, latent: Tensor, there: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """The cross-entropy of every word (B, K)."""
        t = t.to(latent.device)
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        level = self.schedule.level(t)
        logits = network(unit(noised(latent, noise, level), level), t)  # (B, K)
        return binary_cross_entropy_with_logits(logits.float(), there, reduction="none")

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w), and which words are in the captions (B, K)."""
        device = next(self.autoencoder.parameters()).device
        return self.autoencoder.encode(batch.image.to(device)), present(batch.captions, self.words).to(device)
