"""Training unCLIP's prior on CLIP's embeddings of pictures, which are taken once and kept in memory.

Legend: N pictures, B batch, P channels of an embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.data.loader import first_batches, first_told
from ldm.diffusion.loss import DenoisingLoss, loss
from ldm.diffusion.times import TIMES, evenly_spread
from ldm.pictures import grid
from ldm.text.clip import ClipText
from ldm.text.picture import ClipPicture
from ldm.training.denoiser import text_told
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Key
from ldm.unclip import EmbeddingPrior, Unclip, embedding_process

SHOWN, NEAREST = 8, 5  # captions of a sample grid, and pictures of each


class Embedded(NamedTuple):
    """Embeddings (B, P) and their B captions."""

    embedding: Tensor
    captions: list[str]


class EmbeddingDataset:
    """CLIP's embeddings (N, P) of N pictures, with their captions."""

    def __init__(self, embeddings: Tensor, captions: list[str]) -> None:
        self.embeddings, self.texts = embeddings, captions

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, key: Key) -> tuple[Tensor, str]:
        return self.embeddings[key.index], self.texts[key.index]

    @staticmethod
    def collate(samples: list[tuple[Tensor, str]]) -> Embedded:
        embeddings, captions = zip(*samples, strict=True)
        return Embedded(torch.stack(embeddings), list(captions))


def embeddings_of(picture: ClipPicture, pictures: Any, count: int, config: TrainConfig) -> EmbeddingDataset:
    """The embeddings of the first ``count`` ``pictures``, or of all where there are fewer, as in epoch 0."""
    device = next(picture.parameters()).device
    embeddings, captions = [], []
    for batch in first_told(pictures, config.batch, count, config.workers, "embeddings"):
        embeddings.append(picture(batch.image.to(device)).cpu())
        captions += batch.captions
    return EmbeddingDataset(torch.cat(embeddings), captions)


class UnclipTask(DataTask):
    """L = E |f(c_t, t, y) - c|^2 (arXiv:2204.06125, eq. 2), of embeddings whose channels have unit variance."""

    name = "unclip"
    network: EmbeddingPrior

    def __init__(
        self,
        unclip: Unclip,
        text: ClipText,
        train: EmbeddingDataset,
        val: Any,
        config: TrainConfig,
        save: Callable[[EmbeddingPrior], None],
        *,
        text_dropout: float,
    ) -> None:
        """``val`` are pictures with captions."""
        super().__init__(train, config)
        self.unclip, self.network, self.text, self.save = unclip, unclip.prior, text, save
        self.text_dropout = text_dropout
        process = embedding_process()
        self.objective = DenoisingLoss(process, TIMES["uniform"]().build(process.schedule))
        self.held_out = list(first_batches(val, config.batch, config.validate_samples))
        self.embeddings = [unclip.picture(batch.image.to(self._device)) for batch in self.held_out]
        self.null = text([""])

    def loss(self, network: nn.Module, batch: Embedded, seed: int, step: int) -> Loss:
        generator = torch.Generator().manual_seed(seed)
        cond = self.text(batch.captions)
        cond = text_told(self.text, self.config, cond, self.null, self.text_dropout, generator)
        return self.objective(network, self._x0(batch.embedding), cond, generator, step).mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The loss with the picture's own caption and with the next one's; the cosine of what is drawn to its own."""
        assert isinstance(network, EmbeddingPrior)
        generator = torch.Generator().manual_seed(0)
        figures: dict[str, list[Tensor]] = {}
        for batch, embeddings in zip(self.held_out, self.embeddings, strict=True):
            x0, cond, count = self._x0(embeddings), self.text(batch.captions), len(embeddings)
            t = evenly_spread(count, generator).to(self._device)
            noise = torch.randn(x0.shape, generator=generator).to(self._device)
            told = {"loss": cond} | ({"loss_shuffled": cond[[*range(1, count), 0]]} if count > 1 else {})
            found = {name: loss(network, self.objective.process, x0, said, t, noise) for name, said in told.items()}
            drawn = self._drawn(network, batch.captions)
            found["cosine"] = nn.functional.cosine_similarity(drawn, network.scaled(embeddings))
            for name, each in found.items():
                figures.setdefault(name, []).append(each)
        return {name: torch.cat(each).mean().item() for name, each in figures.items()}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Eight held-out captions, a row each: the five held-out pictures nearest to the embedding that is drawn."""
        assert isinstance(network, EmbeddingPrior)
        batch, embeddings = self.held_out[0], self.embeddings[0]
        drawn = nn.functional.normalize(self._drawn(network, batch.captions[:SHOWN]), dim=1)
        theirs = nn.functional.normalize(network.scaled(embeddings), dim=1)
        nearest = (drawn @ theirs.T).topk(min(NEAREST, len(theirs)), dim=1).indices  # (8, 5)
        grid(batch.image[nearest.flatten().cpu()], columns=nearest.shape[1], path=picture)
        picture.with_suffix(".txt").write_text("\n".join(batch.captions[:SHOWN]) + "\n", encoding="utf-8")

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        assert isinstance(network, EmbeddingPrior)
        self.save(network)

    def exports(self) -> list[list[nn.Module]]:
        return [[self.network, self.unclip.picture]]

    @property
    def _device(self) -> torch.device:
        return self.network.mean.device

    def _x0(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, P) as the network's (B, P, 1, 1)."""
        return self.network.scaled(embeddings.to(self._device))[:, :, None, None]

    def _drawn(self, network: EmbeddingPrior, captions: list[str]) -> Tensor:
        """Embeddings (B, P) for ``captions``, of the seeds 0, 1, 2, ..."""
        unclip = self.unclip._replace(prior=network)
        return unclip.of_text(self.text(captions), self.null, list(range(len(captions))))
