"""Training the denoiser on latents: noise, regress, and now and then draw what the fixed prompts say."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.data.latents import Latents
from ldm.data.loader import batches, first_batches
from ldm.diffusion.process import ProcessConfig, drop_text, loss
from ldm.diffusion.targets import TARGETS
from ldm.pictures import grid
from ldm.pipeline import SampleConfig, TextToImage
from ldm.training.optim import TrainConfig
from ldm.types import Batch, Schedule, TextEncoder

NUM_PICTURES = 16  # in a sample grid


def evenly_spread(count: int, generator: torch.Generator) -> Tensor:
    """Times (count,), each uniform on (0, 1] and together evenly spread (Kingma et al. 2021, arXiv:2107.00630, I.1).

    The loss so varies less from batch to batch than with independent times.
    """
    return 1 - (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1


class DenoiserTask:
    """``train`` yields ``Latents`` (from the cache) or ``Batch`` (encoded here, as they come)."""

    name = "denoiser"

    def __init__(
        self,
        network: nn.Module,
        autoencoder: Autoencoder,
        text: TextEncoder,
        schedule: Schedule,
        process: ProcessConfig,
        sampling: SampleConfig,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[nn.Module], None],
    ) -> None:
        self.network, self.autoencoder, self.text = network, autoencoder, text
        self.schedule, self.process, self.sampling = schedule, process, sampling
        self.train, self.config, self.save = train, config, save
        self.target = TARGETS[process.target]
        held_out = list(first_batches(val, config.batch, config.validate_samples))
        self.prompts = held_out[0].captions[:NUM_PICTURES]
        self.held_out = [self._latents(batch) for batch in held_out]
        with torch.no_grad():
            self.null = text([""])

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        config = self.config
        workers = 0 if hasattr(self.train, "collate") else config.workers  # reading a cache costs less than a worker
        return batches(self.train, config.batch, seed=config.seed, start=start, rank=rank, world=world, workers=workers)

    def loss(self, network: nn.Module, batch: Batch | Latents, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        latent, cond = self._latents(batch)
        cond = drop_text(cond, self.null, self.process.text_dropout, generator)
        t = evenly_spread(len(latent), generator)
        each = self._each(network, Latents(latent, cond), t, generator)
        return each.mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The mean loss with text on held-out latents, at evenly spread times and with noise that never changes."""
        generator = torch.Generator().manual_seed(0)
        total, count = 0.0, 0
        for batch in self.held_out:
            t = (torch.arange(len(batch.latent)) + 0.5) / len(batch.latent)  # (B,)
            total += self._each(network, batch, t, generator).sum().item()
            count += len(batch.latent)
        return {"loss": total / count}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """The first held-out captions, drawn with fixed seeds; the captions stand in a text file beside the picture."""
        drawn = TextToImage(network, self.autoencoder, self.text, self.schedule, self.process, self.sampling)
        images = torch.cat([image for image, _ in drawn(self.prompts, size=self._size(), seed=0)])
        grid(images, columns=4, path=picture)
        picture.with_suffix(".txt").write_text("\n".join(self.prompts) + "\n")

    def export(self, network: nn.Module) -> None:
        self.save(network)

    def _latents(self, batch: Batch | Latents) -> Latents:
        device = next(self.network.parameters()).device
        if isinstance(batch, Latents):
            return Latents(batch.latent.to(device), batch.cond.to(device))
        with torch.no_grad():
            return Latents(self.autoencoder.encode(batch.image.to(device)), self.text(batch.captions).to(device))

    def _each(self, network: nn.Module, batch: Latents, t: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch.latent.shape, generator=generator).to(batch.latent.device)
        t = t.to(batch.latent.device)
        return loss(network, self.target, self.schedule, batch.latent, batch.cond, t, noise)  # (B,)

    def _size(self) -> tuple[int, int]:
        height, width = self.held_out[0].latent.shape[2:]
        return height * self.autoencoder.factor, width * self.autoencoder.factor
