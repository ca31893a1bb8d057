"""The training loop: one for every network. What is trained, and on what, is a ``Task``, and its ``Rival``."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.autoencoders.bottlenecks.vq import VectorQuantizer
from ldm.training import checkpoint
from ldm.training.distributed_checkpoint import write_sharded
from ldm.training.engine import accelerator, any_rank, check_seen, first_of, folder_of_all, mean_of_ranks
from ldm.training.guards import Spikes, all_finite, culprit
from ldm.training.learner import Learner
from ldm.training.log import Log, draw_curves
from ldm.training.looks import Looks, quietly
from ldm.training.optim import TrainConfig, moving_average
from ldm.training.sharding import shard
from ldm.training.signals import Signals
from ldm.training.start import PLAIN, Start, check, conditions
from ldm.training.task import Loss, MicroStep, Rival, Task

MAX_SKIPPED = 20  # steps in a row with a loss or gradient that is not finite before the run gives up


class Stopped(SystemExit):
    """The run was asked to stop and has saved itself; the exit status is 128 + the signal's number."""


class Trainer:
    """Trains ``task``, and its ``rival`` where it has one, in ``folder``, going on from its newest checkpoint.

    ``folder`` gets ``log.jsonl``, ``samples/``, ``curves.png`` and, under ``state/``, the checkpoints. With each
    checkpoint the task exports its averaged network (EMA). A checkpoint keeps the configuration as text (``described``)
    and what must be the same for a run to go on, such as the hashes of frozen parts (``made_from``). Everything random
    is a function of (seed, step, rank), so a resumed run goes on as if never stopped. Settings that have changed since
    are refused unless ``start`` allows it, but for those of the sections ``unread``, which this training does not read.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        folder: Path,
        *,
        described: str,
        made_from: dict[str, str],
        device: torch.device,
        rival: Rival | None = None,
        start: Start = PLAIN,
        unread: Set[str] = frozenset(),
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.described, self.start, self.unread = described, start, unread
        self.accelerator = accelerator(config, folder, device)
        self.conditions = conditions(config, self.accelerator.num_processes, made_from)
        self.learners = [Learner(task.network, config, self.accelerator)]
        if rival is not None:
            self.learners.append(Learner(rival.network, rival.config, self.accelerator, "rival_"))
        self.network, self.rival = self.learners[0].network, rival
        self.average = moving_average(self.network, config.ema) if config.ema else None
        self.step = self._resume()
        for learner in self.learners:
            learner.begin()
        if self.average is not None and config.shard:
            shard(self.average.module, self.accelerator.device)
        self.main = self.accelerator.is_main_process
        self.log = Log(folder / "log.jsonl", self.step) if self.main else None
        self.skipped = 0  # steps in a row
        self.spiked = Spikes()
        self.looks = Looks(task, config, folder, self._write)

    def run(self) -> None:
        """Train up to the configured number of steps.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            FloatingPointError: the loss or its gradient was not finite for many steps in a row.
        """
        config, task = self.config, self.task
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = task.batches(self.step * config.accumulate, rank, world)
        bar = tqdm(
            total=config.steps, initial=self.step, desc=task.name, unit="step", dynamic_ncols=True, disable=rank > 0
        )
        seen, seconds = 0, 0.0
        with Signals() as signals, bar:
            while self.step < config.steps:
                began = time.perf_counter()
                figures = self.train_step(batches)
                seen, seconds = seen + config.batch * config.accumulate * world, seconds + time.perf_counter() - began
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    values = {name: mean_of_ranks(self.accelerator, value) for name, value in figures.items()}
                    values |= {"lr": self.learners[0].lr, "images_per_second": seen / seconds}
                    self._write(values)
                    told = f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} img/s{self.looks.told}"
                    bar.set_postfix_str(told)
                    seen, seconds = 0, 0.0
                self._look(signals, bar, last)
                stop = any_rank(self.accelerator, signals.caught)
                if self.step % config.save_every == 0 or last or stop:
                    self._save(in_haste=bool(stop) and not last)
                if stop and not last:
                    bar.close()
                    if self.main:
                        print(f"stopped at step {self.step}; the same command goes on from here", file=sys.stderr)
                    raise Stopped(128 + stop)
        self.accelerator.end_training()
        if self.main:
            draw_curves(self.folder / "log.jsonl", self.folder / "curves.png")
            print(f"{task.name}: {self.step} steps done; curves in {self.folder / 'curves.png'}")

    def train_step(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One optimizer step; the loss, the figures of task and rival, and the gradients' norms."""
        config = self.config
        before = [value.clone() for value in self._moved()]
        figures: list[dict[str, Tensor]] = []  # of each micro-step
        micro: list[MicroStep] = []
        for i in range(config.accumulate):
            seed = _seed(config.seed, self.step * config.accumulate + i, self.accelerator.process_index)
            each = MicroStep(next(batches), seed, self.step)
            torch.manual_seed(seed)  # for dropout and posterior draws
            last = i == config.accumulate - 1
            parts = zip(self.learners, self._losses(each), strict=True)
            found = [made for learner, loss in parts if (made := learner.backward(loss, last=last)) is not None]
            figures.append({name: value for _, some in found for name, value in some.items()})
            micro.append(each._replace(losses=tuple(loss.detach() for loss, _ in found)))
        norms = {f"{learner.prefix}gradient_norm": learner.clip() for learner in self.learners}
        self.step += 1
        total = torch.stack([each.losses[0] for each in micro]).mean()
        value, *others = torch.stack([total, *(loss for each in micro for loss in each.losses[1:])]).tolist()
        self._update(norms, all(map(isfinite, (value, *others))), micro, before)
        if self.spiked(value):
            self._write({"loss_spike": value})
        means = {name: torch.stack([each[name].detach().float() for each in figures]).mean() for name in figures[0]}
        return {"loss": total, **means, **norms}

    def rerun(self, networks: Iterable[nn.Module], micro: MicroStep) -> list[Tensor]:
        """The losses of a micro-step, of ``networks``, a learner's each, without wrappers.

        No optimizer steps and no step is counted, but what a loss moves by itself (codebooks, times by importance)
        moves again: this is for a run that is at its end, or a dry one.
        """
        torch.manual_seed(micro.seed)
        with self.accelerator.autocast():
            parts = zip(networks, self._losses(micro), strict=True)
            return [made[0] for network, loss in parts if (made := loss(network)) is not None]

    def _losses(self, micro: MicroStep) -> list[Callable[[nn.Module], Loss | None]]:
        """The loss of each learner, to be called in this order."""
        of_task = partial(self.task.loss, batch=micro.batch, seed=micro.seed, step=micro.step)
        return [of_task] if self.rival is None else [of_task, self.rival.loss]

    def _moved(self) -> list[Tensor]:
        """What a loss moves by itself: buffers of the networks and of what is learned besides, and codebooks."""
        parts = (*(learner.network for learner in self.learners), self.task.learned)
        buffers = [value for part in parts for value in part.buffers()]
        return buffers + [module.codebook.detach() for part in parts for module in _quantizers(part)]

    def _update(self, norms: dict[str, Tensor], sound: bool, micro: list[MicroStep], before: list[Tensor]) -> None:
        """Step every learner and the average, or none where a rank's loss is not ``sound`` or a norm not finite.

        A step that is skipped puts back what was ``_moved``, as it was ``before``. From ``micro`` is found out what
        went wrong.
        """
        overflow = not all_finite(torch.stack([*norms.values()]))  # the same on all ranks: they exchanged gradients
        finite = not (any_rank(self.accelerator, not sound) or overflow)
        for learner in self.learners:
            learner.update(finite=finite, overflow=overflow)
        if finite and self.average is not None:
            self.average.update_parameters(self.network)
            for mean, now in zip(_quantizers(self.average.module), _quantizers(self.network), strict=True):
                mean.codebook.detach()[now.replaced] = now.codebook.detach()[now.replaced]
                now.replaced.fill_(False)
        self.skipped = 0 if finite else self.skipped + 1
        if not finite:
            for value, was in zip(self._moved(), before, strict=True):
                value.copy_(was)
            self._write({"skipped": self.skipped})
        if self.skipped >= MAX_SKIPPED:
            bad = next((each for each in micro if not all_finite(each.losses)), micro[-1])
            whole = [learner.whole(learner.network) for learner in self.learners]
            networks = dict(zip(("", "rival"), whole, strict=False))
            where = culprit(networks, partial(self.rerun, whole, bad))
            raise FloatingPointError(
                f"{self.task.name}: loss or gradient was not finite for {self.skipped} steps in a row (step "
                f"{self.step}): {where}; lower lr ({self.config.lr}) or set precision=fp32"
            )

    def _look(self, signals: Signals, bar: Any, last: bool) -> None:
        """Look at what is learned where that is due; the first process alone does, but gathering takes all."""
        if due := self.looks.due(self.step, last):
            network = self._averaged()
            for look in due if self.main else ():
                signals.unless_caught(partial(look, network, self.step, bar.write))

    def _averaged(self) -> nn.Module:
        """The network that is shown and exported, whole in the first process; all must call it."""
        shown = self.network if self.average is None else self.average.module
        whole = self.learners[0].whole(shown)
        return whole if self.main else shown  # which lets the whole one go

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by the names of its parts; of a sharded run what this process has of it."""
        tensors = {name: part for learner in self.learners for name, part in learner.tensors().items()}
        if self.average is not None:
            tensors["ema"] = self.average.state_dict()
        if learned := self.task.learned.state_dict():
            tensors["learned"] = learned
        return tensors

    def _save(self, *, in_haste: bool = False) -> None:
        """Write a checkpoint and export, in this order where it is ``in_haste``: what comes second may be cut off.

        Else what is exported comes first, since a finished run that is started again exports no more.
        """
        network = self._averaged()
        acts: list[Callable[[], None]] = [partial(self._export, network), self._save_state]
        for act in reversed(acts) if in_haste else acts:
            act()
        self.accelerator.wait_for_everyone()

    def _export(self, network: nn.Module) -> None:
        if self.main:
            quietly(network, self.task.export)

    def _save_state(self) -> None:
        """Write a checkpoint: the first process does, and of a sharded run all do."""
        facts = {"config": self.described, "torch": torch.__version__, "conditions": self.conditions}
        for learner in self.learners:
            facts |= learner.facts()
        new = partial(checkpoint.new_state, self.folder / "state", self.step, facts, self.config.keep)
        if self.config.shard:
            with folder_of_all(self.accelerator, new) as folder:
                write_sharded(self.tensors(), folder)
        elif self.main:
            with new() as folder:
                checkpoint.write_whole(self.tensors(), folder)

    def _resume(self) -> int:
        """Load the newest whole checkpoint into everything; returns its step, 0 where there is none."""
        path = first_of(self.accelerator, partial(checkpoint.newest, self.folder / "state"))
        if path is None:
            return 0
        check_seen(self.accelerator, path)
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if said := check(path, state, self.conditions, self.described, self.unread, self.start):
            self.accelerator.print(said)
        for learner in self.learners:
            learner.resume(path, state)
        if self.average is not None:
            checkpoint.load_part(self.average, path, "ema")
        if self.task.learned.state_dict():
            checkpoint.load_part(self.task.learned, path, "learned")
        self.accelerator.print(f"going on from {path}")
        return int(state["step"])

    def _write(self, values: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(self.step, **values)
            self.accelerator.log(values, step=self.step)


def _quantizers(network: nn.Module) -> list[VectorQuantizer]:
    return [module for module in network.modules() if isinstance(module, VectorQuantizer)]


def _seed(seed: int, micro: int, rank: int) -> int:
    """A seed of its own for every (run, micro-step, rank)."""
    return (seed * 1_000_003 + micro) * 1_009 + rank
