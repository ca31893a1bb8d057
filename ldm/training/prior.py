"""Training a prior over the codes of a first stage, which are taken once and kept in memory.

Legend: N pictures, B batch, h w size of a level's map, K codes of a level.
"""

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.codes import decode_codes, encode_codes
from ldm.data.loader import first_batches, first_told
from ldm.pictures import grid
from ldm.priors import CodePrior, nats
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Key

SHOWN = 16  # pictures of a sample grid
LEVELS = ("top", "bottom")  # where there are two, in the figures


class CodeDataset:
    """The codes of N pictures: a map (N, h, w) for each level, the coarsest first."""

    def __init__(self, maps: list[Tensor]) -> None:
        self.maps = maps

    def __len__(self) -> int:
        return len(self.maps[0])

    def __getitem__(self, key: Key) -> list[Tensor]:
        return [codes[key.index] for codes in self.maps]

    @staticmethod
    def collate(samples: list[list[Tensor]]) -> list[Tensor]:
        """A map (B, h, w) of whole numbers for each level."""
        return [torch.stack(level).long() for level in zip(*samples, strict=True)]


@torch.no_grad()
def codes_of(autoencoder: Autoencoder, pictures: Any, count: int, config: TrainConfig) -> CodeDataset:
    """The codes of the first ``count`` ``pictures``, or of all where there are fewer, as in epoch 0."""
    parts = []
    for batch in first_told(pictures, config.batch, count, config.workers, "codes"):
        maps = encode_codes(autoencoder, batch.image.to(autoencoder.mean.device))
        parts.append([codes.int().cpu() for codes in maps])
    return CodeDataset([torch.cat(level) for level in zip(*parts, strict=True)])


class PriorTask(DataTask):
    """The negative log-likelihood of a picture's codes, in nats a code."""

    name = "prior"

    def __init__(
        self,
        network: CodePrior,
        autoencoder: Autoencoder,
        train: CodeDataset,
        val: CodeDataset,
        config: TrainConfig,
        save: Callable[[CodePrior], None],
    ) -> None:
        super().__init__(train, config)
        self.network: nn.Module = network
        self.autoencoder, self.val, self.save = autoencoder, val, save

    def loss(self, network: nn.Module, batch: list[Tensor], seed: int, step: int) -> Loss:
        each = self._nats(network, batch)
        return torch.cat([level.flatten() for level in each]).mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Bits a code over all levels and of each, and, of all, for one who only knows how often each code comes."""
        counts = [codes.numel() for codes in self.val.maps]
        bits = [0.0 for _ in counts]
        for batch in first_batches(self.val, self.config.batch, len(self.val)):
            for i, level in enumerate(self._nats(network, batch)):
                bits[i] += level.sum().item() / log(2)
        blind = [count * entropy(codes) for count, codes in zip(counts, self.val.maps, strict=True)]
        each = {f"bits_{name}": bits[i] / counts[i] for i, name in enumerate(LEVELS)} if len(counts) > 1 else {}
        return {"bits": sum(bits) / sum(counts), "bits_blind": sum(blind) / sum(counts), **each}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Pictures drawn from the prior, of the seeds 0, 1, 2, ..."""
        assert isinstance(network, CodePrior)
        sizes = [(codes.shape[1], codes.shape[2]) for codes in self.val.maps]
        maps = network.draw(sizes, list(range(SHOWN)))
        grid(decode_codes(self.autoencoder, maps), columns=SHOWN // 2, path=picture)

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        assert isinstance(network, CodePrior)
        self.save(network)

    def _nats(self, network: nn.Module, batch: list[Tensor]) -> list[Tensor]:
        """-log p (B, h, w) of each level's codes."""
        maps = [codes.to(next(self.network.parameters()).device) for codes in batch]
        return [nats(logits, codes) for logits, codes in zip(network(maps), maps, strict=True)]


def entropy(codes: Tensor) -> float:
    """Bits of a code, of the frequencies of ``codes`` themselves."""
    p = codes.unique(return_counts=True)[1] / codes.numel()
    return float(-(p * p.log2()).sum())
