"""Looking at what a training has learned: figures on held-out data, a score, samples. It changes nothing trained."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.evaluation.text_use import BAND
from ldm.training.log import read
from ldm.training.optim import TrainConfig
from ldm.training.task import Task

Tell = Callable[[str], object]  # shows a line to the user
Look = Callable[[nn.Module, int, Tell], None]  # at a network, at a step


class Looks:
    """The looks of ``task``, each every so many steps as ``config`` says; ``write`` takes figures for the log.

    The best score of the run so far is that of the log in ``folder``, where samples are drawn too.
    """

    def __init__(
        self, task: Task, config: TrainConfig, folder: Path, write: Callable[[dict[str, float]], None]
    ) -> None:
        self.task, self.config, self.folder, self.write = task, config, folder, write
        self.validated: tuple[int, dict[str, float]] = (-1, {})  # the last step at which that was done, and its figures
        self.best = max((line["score"] for line in read(folder / "log.jsonl") if "score" in line), default=-inf)

    @property
    def told(self) -> str:
        """The best score in words that end a line; none before there is one."""
        return f", best score {self.best:.2f}" if self.best > -inf else ""

    def due(self, step: int, last: bool) -> list[Look]:
        """The looks to be taken at ``step``, in order; at the ``last`` all but those that are switched off."""
        config = self.config
        rhythm = config.validate_every, config.score_every, config.sample_every
        looks = zip((self._validate, self._score, self._draw), rhythm, strict=True)
        return [look for look, steps in looks if steps and (step % steps == 0 or last)]

    def _validate(self, network: nn.Module, step: int, tell: Tell) -> None:
        figures = {f"val_{name}": value for name, value in self._figures(network, step).items()}
        self.write(figures)
        words = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if BAND not in name)
        tell(f"{self.task.name} step {step}: {words}")

    def _figures(self, network: nn.Module, step: int) -> dict[str, float]:
        """What a validation gives, which is done once a step."""
        if self.validated[0] != step:
            self.validated = (step, quietly(network, self.task.validate))
        return self.validated[1]

    def _score(self, network: nn.Module, step: int, tell: Tell) -> None:
        """Write the task's score, or minus its held-out loss, and export ``network`` where it is the best so far."""
        score = quietly(network, self.task.score)
        if score is None and self.task.best_by_loss:
            score = -self._figures(network, step)["loss"]
        if score is None:
            return
        if score >= self.best:  # of equal scores the later: while all are 0 the first model is the worst
            quietly(network, partial(self.task.export, best=True))  # before the log, which a next start believes
            self.best = score
        self.write({"score": score})
        tell(f"{self.task.name} step {step}: score {score:.3f}")

    def _draw(self, network: nn.Module, step: int, tell: Tell) -> None:
        quietly(network, self.task.sample, self.folder / "samples" / f"{step:08d}.png")


def quietly(network: nn.Module, call: Callable[..., Any], *args: Any) -> Any:
    """``call`` with ``network`` in evaluation mode and no gradients."""
    network.eval()
    try:
        with torch.no_grad():
            return call(network, *args)
    finally:
        network.train()
