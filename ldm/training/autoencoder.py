"""Training the first stage: reconstruction, of corrupted images where asked, plus penalties on the latents."""

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from math import log10
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder, ReconstructionConfig, RobustnessConfig
from ldm.autoencoders.penalties import contraction
from ldm.data.loader import first_batches
from ldm.evaluation.reconstruction import Lpips
from ldm.pictures import above, grid
from ldm.training.adversary import Adversary
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Batch

MEASURED = 2_048  # images over which the latents' mean and std are taken
SHOWN, COLUMNS = 16, 8  # pictures of a sample grid


class AutoencoderTask(DataTask):
    """Reconstruct pictures through the bottleneck, at its price and those of ``robustness``."""

    name = "autoencoder"
    network: Autoencoder

    def __init__(
        self,
        network: Autoencoder,
        reconstruction: ReconstructionConfig,
        robustness: RobustnessConfig,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[Autoencoder], None],
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__(train, config)
        self.network, self.save = network, save
        self.reconstruction, self.robustness = reconstruction.build(perceptual(reconstruction)), robustness
        self.adversary = adversary
        self.val = val
        next(first_batches(val, 1, 1))  # what there is no picture for is told at once, and to all processes

    def loss(self, network: nn.Module, batch: Batch, seed: int, step: int) -> Loss:
        image = batch.image.to(self.device)
        decoded, code = network(self.robustness.corrupted(image))
        total, terms = self.reconstruction.to(self.device)(image, decoded)
        if self.adversary is not None:
            total, figures = self.adversary.joined(step, image, decoded, total, self._last)
            terms |= figures
        penalty = warmed(step, self.network.bottleneck.warmup) * code.penalty
        total = total + penalty
        terms["penalty"] = penalty.detach()
        if self.robustness.contractive:
            terms["contraction"] = contraction(self._mode, image)
            total = total + self.robustness.contractive * terms["contraction"] / image[0].numel()
        return total, {**terms, **code.logs}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR in decibels (peak-to-peak 2) and mean absolute error of deterministic reconstructions."""
        assert isinstance(network, Autoencoder)
        l1, l2, count = 0.0, 0.0, 0
        for batch in self.held_out:
            image = batch.image.to(self.device)
            error = network.decode(network.encode(image)) - image
            l1 += error.abs().mean().item() * len(image)
            l2 += error.square().mean().item() * len(image)
            count += len(image)
        return {"psnr": 10 * log10(4 * count / max(l2, 1e-12)), "l1": l1 / count}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Rows of originals, and below each row what comes back."""
        assert isinstance(network, Autoencoder)
        size = self.config.batch
        image = torch.cat([batch.image for batch in self.held_out[: -(-SHOWN // size)]])[:SHOWN]
        decoded = [network.decode(network.encode(part.to(self.device))).cpu() for part in image.split(size)]
        grid(above(image, torch.cat(decoded), COLUMNS), columns=COLUMNS, path=picture)

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        """Save with the latents' mean and std over some thousand training images in the weights.

        They are those of the weights as they are saved, in half precision. Frozen latents keep those that they came
        with, to the last bit.
        """
        assert isinstance(network, Autoencoder)
        if not network.latents_frozen:
            network = copy.deepcopy(network).half().float()
            network.measure(batch.image.to(self.device) for batch in self._first(self.train, MEASURED))
        self.save(network)

    @cached_property
    def held_out(self) -> list[Batch]:
        """What a validation looks at; only the process that does keeps it in memory."""
        return list(self._first(self.val, self.config.validate_samples))

    def _first(self, data: Any, count: int) -> Iterator[Batch]:
        """The first ``count`` samples. One worker would be no faster than none, and takes seconds to begin."""
        workers = self.config.workers if self.config.workers > 1 else 0
        return first_batches(data, self.config.batch, count, workers=workers)

    def _mode(self, image: Tensor) -> Tensor:
        """The latent (B, C, h, w) without a draw, in the network itself, without the loop's wrappers.

        Compiled code has no second derivative.
        """
        return self.network.bottleneck.mode(self.network.encoder(image))

    @property
    def _last(self) -> Tensor:
        """The weights of the decoder's last convolution."""
        return [part for part in self.network.decoder.modules() if isinstance(part, nn.Conv2d)][-1].weight

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


def perceptual(config: ReconstructionConfig) -> Lpips | None:
    """LPIPS' network, frozen, where ``config`` gives it a weight; its file is found as in ``ldm.evaluation``."""
    if not config.lpips:
        return None
    path = Path(config.lpips_weights).expanduser() if config.lpips_weights else None
    return Lpips(path, config.lpips_backbone, option="reconstruction.lpips_weights").eval()


def warmed(step: int, warmup: int) -> float:
    """The share of its weight that a penalty has at optimizer step ``step``: a line up to 1 at the last of ``warmup``.

    Against a KL that wins before the decoder has learned to use the latents (Sonderby et al. 2016, arXiv:1602.02282).
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
