"""Training for few steps: the x0 that a network is asked for is what many steps would come to, not that of the data.

A student of guidance is asked for what a guided teacher says with two evaluations; progressive distillation for what
lands, in one step, where a teacher lands in several; a consistency model for what it says itself a little further down
the same path, until that is where the path ends.

Legend: B batch, C latent channels, H W latent size, N steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log2
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm.diffusion.guidance import GuidanceConfig
from ldm.diffusion.process import Process, noised
from ldm.diffusion.targets import to_x0
from ldm.samplers.step import implied_noise, move
from ldm.types import Condition, Grid, Level, Schedule

SLACK = 1e-6  # of times that were rounded to single precision

Predict = Callable[[Tensor, Level, Condition], Tensor]  # x, level, cond -> x0; each row has a level of its own
Grids = Callable[[int], Grid]  # that of so many steps


class Example(NamedTuple):
    """What a network is shown in training, and what it should say of that; all (B, C, H, W) but the level."""

    x: Tensor
    level: Level
    x0: Tensor
    noise: Tensor


class Examples(nn.Module, ABC):
    """Makes examples; what it learns, an average of the network say, goes into the checkpoints."""

    @abstractmethod
    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, cond: Condition, step: int) -> Example:
        """Of ``x0`` and ``noise`` (B, C, H, W) at about the times ``t`` (B,), in optimizer step ``step``."""


class Ladder:
    """The N + 1 levels of a grid as rungs, 0 the noisiest, for batches in which each row stands on one of its own."""

    def __init__(self, grid: Grid) -> None:
        self.rungs = torch.tensor([tuple(map(float, level)) for level in grid])  # (N + 1, 3)

    def rung(self, t: Tensor) -> Tensor:
        """For times (B,) the last rung (B,) that is not below, 0 to N - 1: the step down from there passes each."""
        above = self.rungs[:, 0].to(t.device)[None] >= t[:, None] - SLACK  # (B, N + 1)
        return (above.sum(dim=1) - 1).clamp(0, len(self.rungs) - 2)

    def level(self, rung: Tensor) -> Level:
        """The levels of rungs (B,), as (B, 1, 1, 1) tensors."""
        return Level(*self.rungs.to(rung.device)[rung].view(-1, 3, 1, 1, 1).unbind(dim=1))


@dataclass
class Teacher:
    """A trained network, driven by its ``guidance``, as ``Predict``; ``null`` is the empty prompt, of one row.

    Guidance with momentum, which remembers the steps of a sampler, is none here: each row is at a step of its own.
    """

    network: nn.Module
    process: Process
    guidance: GuidanceConfig
    null: Condition

    def __call__(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """The x0 (B, C, H, W) of ``classifier_free``; the null is asked of for those rows alone that are guided."""
        x0 = said_by(self.network, self.process, x, level, cond)
        low, high = self.guidance.interval
        t = torch.as_tensor(level.t).flatten()
        rows = ((t > low - SLACK) & (t < high + SLACK)).nonzero()[:, 0]
        if self.guidance.scale == 1 or not len(rows):
            return x0
        seen, there = x[rows], Level(*(torch.as_tensor(part)[rows] for part in level))
        null = said_by(self.network, self.process, seen, there, self.null.repeat(len(rows)))
        return x0.index_copy(0, rows, self.guidance.build()(x0[rows], null, seen, there))


def said_by(network: nn.Module, process: Process, x: Tensor, level: Level, cond: Condition) -> Tensor:
    """The x0 (B, C, H, W) that ``network`` tells of ``x``: ``x`` itself, over alpha, where there is no noise.

    So it is a consistency model: c_skip x + c_out F, where c_out goes to 0 with sigma for every target but x0 itself
    (Song et al. 2023, arXiv:2303.01469, eq. 5); with that one it is so at sigma = 0 alone (eq. 4).
    """
    x0 = to_x0(process.target, process.said(network, x, level, cond).f, x, level)
    return torch.where(torch.as_tensor(level.sigma) > 0, x0, x / level.alpha)


class Guided(Examples):
    """What the teacher says with its guidance (Meng et al. 2023, arXiv:2210.03142, Sec. 3.1), for one scale."""

    def __init__(self, teacher: Predict, schedule: Schedule) -> None:
        super().__init__()
        self.teacher, self.schedule = teacher, schedule

    @torch.no_grad()
    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, cond: Condition, step: int) -> Example:
        level = self.schedule.level(t)
        x = noised(x0, noise, level)
        x0 = self.teacher(x, level, cond)
        return Example(x, level, x0, implied_noise(x, x0, level))


class Progressive(Examples):
    """The x0 that takes x in one step where DDIM takes it in ``substeps`` of the teacher's.

    Salimans & Ho 2022 (arXiv:2202.00512, alg. 2), where there are two.
    """

    def __init__(self, teacher: Predict, ladder: Ladder, substeps: int) -> None:
        super().__init__()
        self.teacher, self.ladder, self.substeps = teacher, ladder, substeps

    @torch.no_grad()
    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, cond: Condition, step: int) -> Example:
        first = self.ladder.rung(t) // self.substeps * self.substeps  # (B,)
        levels = [self.ladder.level(first + i) for i in range(self.substeps + 1)]
        x = there = noised(x0, noise, levels[0])
        for now, to in pairwise(levels):
            there = move(there, self.teacher(there, now, cond), now, to)
        x0 = implied_x0(x, there, levels[0], levels[-1])
        return Example(x, levels[0], x0, implied_noise(x, x0, levels[0]))


def implied_x0(x: Tensor, there: Tensor, now: Level, to: Level) -> Tensor:
    """The x0 along which ``move`` takes ``x`` at ``now`` to ``there`` at ``to``; ``now`` has the more noise."""
    kept = to.sigma / now.sigma
    return (there - kept * x) / (to.alpha - kept * now.alpha)


class Consistency(Examples):
    """What the network, or its average, says one rung further down the path of the same picture and noise.

    Song et al. 2023 (arXiv:2303.01469): the path is the teacher's (consistency distillation, alg. 2) or, without one,
    the straight one of the data and the noise (consistency training, alg. 3).
    """

    def __init__(
        self, follower: "Follower", process: Process, ladder: Callable[[int], Ladder], teacher: Predict | None
    ) -> None:
        super().__init__()
        self.follower, self.process, self.ladder, self.teacher = follower, process, ladder, teacher

    @torch.no_grad()
    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, cond: Condition, step: int) -> Example:
        ladder = self.ladder(step)
        rung = ladder.rung(t)  # (B,)
        now, to = ladder.level(rung), ladder.level(rung + 1)
        x = noised(x0, noise, now)
        there = noised(x0, noise, to) if self.teacher is None else move(x, self.teacher(x, now, cond), now, to)
        x0 = said_by(self.follower.at(step), self.process, there, to, cond)
        torch.clear_autocast_cache()  # older PyTorch keeps casts made here, which have no gradient, for the student
        return Example(x, now, x0, implied_noise(x, x0, now))


class Follower(nn.Module):
    """A moving average of ``network``, the theta^- of consistency models; with ``decay`` 0 the network itself."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = deepcopy(network).requires_grad_(False).eval() if decay else None
        self.followed, self.decay, self.step = [network], decay, -1  # in a list: it is no part of this module

    @torch.no_grad()
    def at(self, step: int) -> nn.Module:
        """What it is in optimizer step ``step``: it takes in the network once a step, before anything is learned."""
        if self.average is None:
            return self.followed[0]
        if step != self.step:
            self.step = step
            theirs = self.followed[0].state_dict()
            for name, value in self.average.state_dict().items():
                value.lerp_(theirs[name], 1 - self.decay) if value.is_floating_point() else value.copy_(theirs[name])
        return self.average


@dataclass
class DenoisingConfig:
    """The x0 of the data: the objective of DDPM and all that came of it."""

    needs_teacher: ClassVar = False
    huber: ClassVar = 0.0

    def build(self, **parts: Any) -> None:
        return None


@dataclass
class GuidedConfig:
    """What the base model says with its guidance, in one evaluation at each level; any sampler draws with it."""

    needs_teacher: ClassVar = True
    huber: ClassVar = 0.0

    def build(self, *, process: Process, teacher: Predict, **parts: Any) -> Examples:
        return Guided(teacher, process.schedule)


@dataclass
class ProgressiveConfig:
    """Where several steps of the base model lead, in one; the model then draws in ``sample.steps`` steps of ddim."""

    substeps: int = 2  # of the base for one

    needs_teacher: ClassVar = True
    huber: ClassVar = 0.0

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise ValueError(f"substeps {self.substeps} is not at least 1; try substeps=2")

    def build(
        self, *, network: nn.Module, process: Process, grids: Grids, drawn: int, trained: int, teacher: Predict
    ) -> Examples:
        """The network learns ``drawn`` steps."""
        return Progressive(teacher, self.ladder(grids, drawn), self.substeps)

    def ladder(self, grids: Grids, drawn: int) -> Ladder:
        """The teacher's steps, for a student of ``drawn``; ValueError where they do not pass all levels of these."""
        coarse, fine = grids(drawn), grids(drawn * self.substeps)
        if any(abs(float(a.t) - float(b.t)) > SLACK for a, b in zip(coarse, fine[:: self.substeps], strict=True)):
            raise ValueError(
                f"grid: {len(fine) - 1} steps do not pass all levels of {drawn}, which objective=progressive wants; "
                "use grid=uniform"
            )
        return Ladder(fine)


@dataclass
class ConsistencyConfig:
    """What the network itself says with a little less noise, so that one step from anywhere leads to the end."""

    distill: bool = False  # along the base model's path; else along that of the data
    first: int = 10  # steps of the grid whose neighbours are compared; they double at even intervals ...
    last: int = 160  # ... up to so many (Song & Dhariwal 2023, arXiv:2310.14189, Sec. 3.4)
    decay: float = 0.0  # of the average that says it; 0 is the network as it is (Sec. 3.2 there)
    huber: float = 0.00054  # c of the pseudo-Huber distance (Sec. 3.3 there), of a mean over numbers; 0: squared

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"first {self.first} is not in 1 to last {self.last}; try first=10 last=160")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay {self.decay} is not in [0, 1); try decay=0")
        if not 0 <= self.huber < 1:
            raise ValueError(f"huber {self.huber} is not in [0, 1); try huber=0.00054")

    @property
    def needs_teacher(self) -> bool:
        return self.distill

    def build(
        self, *, network: nn.Module, process: Process, grids: Grids, drawn: int, trained: int, teacher: Predict | None
    ) -> Examples:
        """For a training of ``trained`` optimizer steps."""
        ladder = cache(lambda count: Ladder(grids(count)))
        follower = Follower(network, self.decay)
        return Consistency(follower, process, lambda step: ladder(self.steps_at(step, trained)), teacher)

    def steps_at(self, step: int, trained: int) -> int:
        """N in optimizer step ``step`` of ``trained``."""
        stage = max(1, int(trained / (log2(self.last / self.first) + 1)))
        return int(min(self.first * 2.0 ** min(step // stage, 64), self.last))


OBJECTIVES = {
    "denoising": DenoisingConfig,
    "guided": GuidedConfig,
    "progressive": ProgressiveConfig,
    "consistency": ConsistencyConfig,
}
