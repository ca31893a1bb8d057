"""What the loop trains: a task, with what most tasks share, and, where it has one, the rival of its network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ldm.data.loader import batches
from ldm.training.optim import TrainConfig

Loss = tuple[Tensor, dict[str, Tensor]]  # (), and figures for the log


class MicroStep(NamedTuple):
    """What a task's loss is taken of: one of the batches whose gradients an optimizer step sums."""

    batch: Any
    seed: int
    step: int  # the optimizer step that it is part of, 0 the first
    losses: tuple[Tensor, ...] = ()  # once they are known: the task's, and its rival's where there is one


class Task(Protocol):
    """What the loop trains. ``network`` is what is optimized; the loop passes it back wrapped for its device."""

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def learned(self) -> nn.Module:
        """Holds what else the task has learned so far, for the checkpoints; an empty module where that is nothing."""
        ...

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        """Endless batches of this rank from micro-step ``start`` on."""
        ...

    def loss(self, network: nn.Module, batch: Any, seed: int, step: int) -> Loss:
        """The mean loss over ``batch`` and figures for the log; every random draw comes from ``seed``.

        ``step`` is the optimizer step's number, 0 that of the first.
        """
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on held-out data, with fixed noise and times."""
        ...

    def sample(self, network: nn.Module, picture: Path) -> None:
        """Draw a grid of fixed samples into ``picture``."""
        ...

    def score(self, network: nn.Module) -> float | None:
        """How good ``network`` is, the higher the better; None where nothing but ``validate`` measures it."""
        ...

    @property
    def best_by_loss(self) -> bool:
        """Whether, where there is no score, the network of the lowest ``loss`` that ``validate`` gives is the best."""
        ...

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        """Write ``network`` where other programs load it from, or, as the ``best`` so far, beside that."""
        ...

    def exports(self) -> list[list[nn.Module]]:
        """The modules in each folder that ``export`` writes, where their weights are in half precision."""
        ...


class DataTask:
    """What tasks have in common that read a data set ``train``; one overrides what it does in another way."""

    network: nn.Module
    best_by_loss = False

    def __init__(self, train: Any, config: TrainConfig) -> None:
        self.train, self.config = train, config
        self.learned: nn.Module = nn.Module()

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        config = self.config
        # a data set with samples of its own kind, a cache or codes, is read in less time than a worker costs
        workers = 0 if hasattr(self.train, "collate") else config.workers
        return batches(self.train, config.batch, seed=config.seed, start=start, rank=rank, world=world, workers=workers)

    def score(self, network: nn.Module) -> float | None:
        return None

    def exports(self) -> list[list[nn.Module]]:
        return [[self.network]]


class Rival(Protocol):
    """A second network with an optimizer of its own, which learns after each micro-step of the task from the same."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def config(self) -> TrainConfig:
        """How it is optimized; its steps, batches and precision are the task's."""
        ...

    @property
    def period(self) -> int:
        """Every so many steps, those whose number counted from 1 it divides, its loss has all of its terms."""
        ...

    def loss(self, network: nn.Module) -> Loss | None:
        """Its mean loss over the batch that the task's loss was just computed on; None where there is none yet."""
        ...
