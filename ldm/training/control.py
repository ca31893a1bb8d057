"""Training a ControlNet: the frozen denoiser's own loss, with a picture to follow beside the text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.hints import HINTS
from ldm.data.loader import first_batches
from ldm.denoisers.control import ControlConfig, ControlInput, Controlled, ControlNet
from ldm.diffusion.loss import DenoisingLoss, loss
from ldm.diffusion.times import evenly_spread
from ldm.folders import unet_of
from ldm.pictures import grid
from ldm.pipeline import TextToImage
from ldm.training.denoiser import text_told
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Batch

NUM_PICTURES = 4  # in a sample grid, beside their hints


class ControlTask(DataTask):
    """Pictures are encoded as they come: what is followed is a function of their pixels, which a cache has not."""

    name = "control"

    def __init__(
        self,
        model: TextToImage,
        network: ControlNet,
        objective: DenoisingLoss,
        control: ControlConfig,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[ControlNet], None],
        *,
        text_dropout: float,
    ) -> None:
        super().__init__(train, config)
        self.model, self.network = model, network
        self.objective, self.control = objective, control
        self.learned = objective.learned
        self.save, self.text_dropout = save, text_dropout
        self.held_out = list(first_batches(val, config.batch, config.validate_samples))
        with torch.no_grad():
            self.null = model.condition([""])

    def loss(self, network: nn.Module, batch: Batch, seed: int, step: int) -> Loss:
        generator = torch.Generator().manual_seed(seed)
        latent, cond = self.model.encode(batch)
        cond = text_told(self.model.text, self.config, cond, self.null, self.text_dropout, generator)
        told = ControlInput(cond, cond, self._hints(batch.image, generator))
        return self.objective(self._controlled(network), latent, told, generator, step).mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The plain loss with the picture's own hint, with another picture's, and of the frozen network alone."""
        controlled, generator = self._controlled(network), torch.Generator().manual_seed(0)
        losses: dict[str, list[Tensor]] = {}
        for batch in self.held_out:
            latent, cond = self.model.encode(batch)
            hints, count = self._hints(batch.image, generator), len(latent)
            t = evenly_spread(count, generator).to(latent.device)
            noise = torch.randn(latent.shape, generator=generator).to(latent.device)
            asked: dict[str, tuple[nn.Module, Any]] = {
                "loss": (controlled, ControlInput(cond, cond, hints)),
                "loss_without": (self.model.denoiser, cond),
            }
            if count > 1:
                asked["loss_shuffled"] = controlled, ControlInput(cond, cond, hints.roll(1, dims=0))
            for name, (net, told) in asked.items():
                losses.setdefault(name, []).append(loss(net, self.model.process, latent, told, t, noise))
        return {name: torch.cat(each).mean().item() for name, each in losses.items()}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Held-out pictures, what is to be followed of each, and what is drawn along it: a row of each."""
        batch = self.held_out[0]
        images, captions = batch.image[:NUM_PICTURES], batch.captions[:NUM_PICTURES]
        hints, drawn = self._hints(images, torch.Generator().manual_seed(0)), []
        for hint, caption in zip(hints.split(1), captions, strict=True):
            denoiser = self._controlled(network, hint)
            size = (images.shape[2], images.shape[3])
            drawn += [image for image, _ in replace(self.model, denoiser=denoiser)([caption], size=size, seed=0)]
        grid(torch.cat([images, hints[:, :3].cpu(), *drawn]), columns=len(images), path=picture)

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        assert isinstance(network, ControlNet)
        self.save(network)

    def _controlled(self, network: Any, hint: Tensor | None = None) -> Controlled:
        """``network`` may be wrapped for its device."""
        return Controlled(unet_of(self.model), network, hint)

    def _hints(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What is followed of ``images`` (B, 3, H, W), with as much noise on each as ``generator`` draws."""
        hint = HINTS[self.control.hint].of(images)
        noise_level = noise = None
        if self.control.noise_level:
            noise_level = self.control.noise_level * torch.rand(len(hint), generator=generator)
            noise = torch.randn(hint.shape, generator=generator)
        return self.control.shown(hint, (images.shape[2], images.shape[3]), noise_level, noise).to(self.model.device)
