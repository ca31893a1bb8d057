"""Training the text encoder from scratch: open_clip's contrastive loss on image-caption pairs (arXiv:2103.00020).

Where the configuration weighs it, the pictures are redrawn from the captions' token states too (``ldm.text.layout``).
"""

from collections.abc import Callable, Iterator
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.loader import first_batches
from ldm.pictures import grid
from ldm.ranks import mean_over_ranks
from ldm.text.clip import ClipConfig, ClipText
from ldm.text.layout import Mean, TrainedClip, layout_loss
from ldm.text.picture import ClipPicture
from ldm.text.vocabulary import Vocabulary
from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask, Loss
from ldm.types import Batch

MAX_LOGIT_SCALE = log(100)  # CLIP's bound on the learned temperature (Sec. 2.5)


class ClipTask(DataTask):
    """Tell which caption is whose picture's, and redraw the picture coarsely where that is weighed."""

    name = "clip"
    network: TrainedClip

    def __init__(
        self,
        text: ClipConfig,
        vocabulary: Vocabulary,
        size: int,
        train: Any,
        val: Any,
        config: TrainConfig,
        save: Callable[[ClipText, ClipPicture], None],
    ) -> None:
        from open_clip import ClipLoss  # takes seconds to import

        super().__init__(train, config)
        self.network = TrainedClip(text, size, vocabulary)
        self.text, self.size, self.vocabulary, self.save = text, size, vocabulary, save
        # the mean over the processes of what each compares with all is what one compares, and so its gradient
        self.contrastive = ClipLoss(local_loss=True, gather_with_grad=True)
        self.held_out = list(first_batches(val, config.batch, config.validate_samples))

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        self.contrastive.rank, self.contrastive.world_size = rank, world
        return super().batches(start, rank, world)

    def loss(self, network: nn.Module, batch: Batch, seed: int, step: int) -> Loss:
        with torch.no_grad():
            self.network.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        figures = self._figures(network, batch, self.contrastive, mean_over_ranks)
        return figures.pop("loss"), figures

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The loss, how often an image finds its caption among those of its batch, and how well captions redraw."""
        alone = type(self.contrastive)()  # one process validates: nothing is gathered from the others
        figures = [self._figures(network, batch, alone) for batch in self.held_out]
        return {name: float(torch.stack([each[name] for each in figures]).mean()) for name in figures[0]}

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Eight captions, a row each: the five held-out images that the network finds nearest to the caption."""
        batch = self.held_out[0]
        image, text, *_ = self._features(network, batch)
        nearest = (text[:8] @ image.T).topk(min(5, len(image)), dim=1).indices  # (8, 5)
        grid(batch.image[nearest.flatten().cpu()], columns=nearest.shape[1], path=picture)
        picture.with_suffix(".txt").write_text("\n".join(batch.captions[:8]) + "\n", encoding="utf-8")

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        self.save(*self._towers(network))

    def exports(self) -> list[list[nn.Module]]:
        """The text tower, and the picture tower."""
        return [[tower] for tower in self._towers(self.network)]

    def _towers(self, network: nn.Module) -> tuple[ClipText, ClipPicture]:
        text = ClipText.from_clip(network.clip, self.text, self.vocabulary)
        return text, ClipPicture.from_clip(network.clip, self.text, self.size)

    def _features(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        device = next(self.network.parameters()).device
        rows, _ = self.vocabulary.tokenize(batch.captions, self.text.context_length)  # (B, L)
        return network(batch.image.to(device), rows.to(device))  # (B, P), (B, P), (), (B, 3, S, S) or None

    def _figures(
        self, network: nn.Module, batch: Batch, contrastive: nn.Module, mean: Mean = torch.clone
    ) -> dict[str, Tensor]:
        """The loss, the share of the images that find their caption, and the layout's error where there is one."""
        image, text, scale, drawn = self._features(network, batch)
        found = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)
        figures = {"loss": contrastive(image, text, scale), "accuracy": found.float().mean()}
        if drawn is not None:
            figures["layout"] = layout_loss(drawn, batch.image.to(drawn.device), mean)
            figures["loss"] = figures["loss"] + self.text.layout * figures["layout"]
        return figures
