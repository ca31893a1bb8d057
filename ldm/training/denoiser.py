"""Training the denoiser on latents: noise, regress, and now and then draw what the fixed prompts say."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.data.latents import Latents
from ldm.data.loader import first_batches
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.process import drop_text, drop_words
from ldm.evaluation.benchmark import drawn_by, mark
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.report import curve
from ldm.evaluation.text_use import TextUse, text_use
from ldm.pictures import grid
from ldm.pipeline import TextToImage
from ldm.training.optim import TrainConfig, resolve_precision
from ldm.training.task import DataTask, Loss
from ldm.types import Batch, Condition, TextEncoder

NUM_PICTURES = 16  # in a sample grid


def text_told(
    text: TextEncoder,
    config: TrainConfig,
    cond: Condition,
    null: Condition,
    dropout: float,
    generator: torch.Generator,
) -> Condition:
    """``cond`` as a network in training is told it, with a share ``dropout`` of its rows replaced by ``null``."""
    cond = drop_text(cond, null, dropout, generator)
    if config.compile:  # it would be compiled anew for every length
        cond = cond.pad(text.context_length)
    return cond


class DenoiserTask(DataTask):
    """``train`` yields ``Latents`` (from the cache) or ``Batch`` (encoded here, as they come)."""

    name = "denoiser"

    def __init__(
        self,
        model: TextToImage,
        objective: DenoisingLoss,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[nn.Module, bool], None],
        *,
        text_dropout: float,
        words_dropout: float = 0.0,
        prompts: Sequence[Prompt] = (),
        best_by_loss: bool = False,
    ) -> None:
        """``save`` takes the network, and whether it is the best so far; ``prompts`` are those of the score.

        ``words_dropout`` is the share whose words are dropped alone, of a model that is told more than them.
        """
        super().__init__(train, config)
        self.model, self.network = model, model.denoiser
        self.objective, self.text_dropout, self.words_dropout = objective, text_dropout, words_dropout
        self.learned = objective.learned
        self.save, self.scored, self.best_by_loss = save, list(prompts), best_by_loss
        held_out = list(first_batches(val, config.batch, config.validate_samples))
        self.captions = [batch.captions for batch in held_out]
        self.prompts = self.captions[0][:NUM_PICTURES]
        self.held_out = [self._latents(batch) for batch in held_out]
        self.use: TextUse | None = None  # of the last validation
        with torch.no_grad():
            self.null = model.condition([""])

    def loss(self, network: nn.Module, batch: Batch | Latents, seed: int, step: int) -> Loss:
        generator = torch.Generator().manual_seed(seed)
        latent, cond = self._latents(batch)
        if self.model.unclip is not None:
            cond = drop_words(cond, self.null, self.words_dropout, generator)
        cond = text_told(self.model.text, self.config, cond, self.null, self.text_dropout, generator)
        return self.objective(network, latent, cond, generator, step).mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The mean losses of ``TextUse`` on held-out latents, overall and by band of time."""
        self.use = text_use(replace(self.model, denoiser=network), self.held_out, self.captions)
        return self.use.figures()

    def sample(self, network: nn.Module, picture: Path) -> None:
        """The first held-out captions, drawn with fixed seeds; the captions stand in a text file beside the picture.

        A second picture shows the last validation's losses by time: whether the text is used.
        """
        drawn = replace(self.model, denoiser=network)
        images = torch.cat([image for image, _ in drawn(self.prompts, size=self._size(), seed=0)])
        grid(images, columns=4, path=picture)
        picture.with_suffix(".txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        if self.use is not None:
            svg = curve(self.use.lines(), "time: 0 data, 1 noise", "validation loss")
            picture.with_name(f"{picture.stem}-text-use.svg").write_text(svg, encoding="utf-8")

    def score(self, network: nn.Module) -> float | None:
        """The share of right pictures on the benchmark's prompts, None where there are none."""
        if not self.scored:
            return None
        precision = resolve_precision(self.config.precision, self.model.device)
        pictures = drawn_by(replace(self.model, denoiser=network), self.scored, precision=precision)
        return mark(self.scored, pictures).score.overall.value

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        self.save(network, best)

    def exports(self) -> list[list[nn.Module]]:
        """A whole model, and the best one so far where that is looked for."""
        parts: list[Any] = [self.network, self.model.autoencoder, self.model.text]
        if self.model.unclip is not None:
            parts += [self.model.unclip.prior, self.model.unclip.picture]
        folders = 2 if self.scored or self.best_by_loss else 1
        return [[part for part in parts if isinstance(part, nn.Module)]] * folders

    def _latents(self, batch: Batch | Latents) -> Latents:
        if isinstance(batch, Batch):
            return self.model.encode(batch)
        return Latents(batch.latent.to(self.model.device), batch.cond.to(self.model.device))

    def _size(self) -> tuple[int, int]:
        height, width = self.held_out[0].latent.shape[2:]
        return height * self.model.autoencoder.factor, width * self.model.autoencoder.factor
