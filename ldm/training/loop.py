"""The training loop: one for every network. What is trained, and on what, is a ``Task``."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Set
from contextlib import nullcontext
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.evaluation.text_use import BAND
from ldm.files import load_weights, read_tensors
from ldm.training import checkpoint
from ldm.training.engine import accelerator
from ldm.training.guards import Spikes, all_finite, culprit
from ldm.training.log import Log, draw_curves, read
from ldm.training.optim import TrainConfig, learning_rate, moving_average, optimizer
from ldm.training.signals import Signals
from ldm.training.start import PLAIN, Start, check

MAX_SKIPPED = 20  # steps in a row with a loss or gradient that is not finite before the run gives up


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

    def loss(self, network: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over ``batch`` and figures for the log; every random draw comes from ``seed``."""
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

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        """Write ``network`` where other programs load it from, or, as the ``best`` so far, beside that."""
        ...


class Stopped(SystemExit):
    """The run was asked to stop and has saved itself; the exit status is 128 + the signal's number."""


class Trainer:
    """Trains ``task`` in ``folder``, going on from its newest checkpoint.

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
        start: Start = PLAIN,
        unread: Set[str] = frozenset(),
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.described, self.made_from, self.start, self.unread = described, made_from, start, unread
        self.accelerator = accelerator(config, folder, device)
        self.network = task.network.to(self.accelerator.device)
        self.average = moving_average(self.network, config.ema) if config.ema else None
        opt = optimizer(self.network, config)
        self.step, updates = self._resume(opt)
        self.schedule = learning_rate(opt, config, updates)
        self.opt = self.accelerator.prepare_optimizer(opt)
        self.wrapped = self.accelerator.prepare_model(torch.compile(self.network) if config.compile else self.network)
        self.main = self.accelerator.is_main_process
        self.log = Log(folder / "log.jsonl", self.step) if self.main else None
        self.skipped = 0  # steps in a row
        self.spiked = Spikes()
        self.best = max((line["score"] for line in read(folder / "log.jsonl") if "score" in line), default=-inf)

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
            total=config.steps,
            initial=self.step,
            desc=task.name,
            unit="step",
            dynamic_ncols=True,
            disable=not self.main,
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
                    values = {name: self._mean(value) for name, value in figures.items()}
                    values |= {"lr": float(self.opt.param_groups[0]["lr"]), "images_per_second": seen / seconds}
                    self._write(values)
                    bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} img/s")
                    seen, seconds = 0, 0.0
                if self.main:
                    signals.unless_caught(partial(self._look, bar, last))
                stop = self._any_rank(signals.caught)
                if self.step % config.save_every == 0 or last or stop:
                    self._save()
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
        """One optimizer step; the loss, the task's figures and the gradient's norm."""
        config, engine = self.config, self.accelerator
        figures: dict[str, Tensor] = {}
        micro: list[tuple[Any, int, Tensor]] = []  # batch, seed and loss of each micro-step
        for i in range(config.accumulate):
            batch = next(batches)
            seed = _seed(config.seed, self.step * config.accumulate + i, engine.process_index)
            torch.manual_seed(seed)  # for dropout and posterior draws
            exchange = nullcontext() if i == config.accumulate - 1 else engine.no_sync(self.wrapped)
            with exchange:
                with engine.autocast():
                    loss, figures = self.task.loss(self.wrapped, batch, seed)
                engine.backward(loss / config.accumulate)
            micro.append((batch, seed, loss.detach()))
        norm = engine.clip_grad_norm_(self.network.parameters(), config.clip or float("inf"))
        self.step += 1
        total = torch.stack([loss for *_, loss in micro]).mean()
        value = total.item()
        self._update(norm, isfinite(value), micro)
        if self.spiked(value):
            self._write({"loss_spike": value})
        return {"loss": total, **figures, "gradient_norm": norm}

    def _update(self, norm: Tensor, sound: bool, micro: list[tuple[Any, int, Tensor]]) -> None:
        """Step optimizer, schedule and average where every rank's loss is ``sound`` and the gradient's ``norm`` finite.

        ``micro`` has batch, seed and loss of each micro-step, to find out what went wrong.
        """
        overflow = not all_finite(norm)  # the same on all ranks, which have exchanged gradients
        finite = not (self._any_rank(not sound) or overflow)
        if finite or (overflow and self.accelerator.scaler is not None):  # fp16's scaler skips, and must see why
            self.opt.step()
        if finite:
            self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.network)
        self.skipped = 0 if finite else self.skipped + 1
        if not finite:
            self._write({"skipped": self.skipped})
        if self.skipped >= MAX_SKIPPED:
            where = culprit(self.network, partial(self._rerun, micro))
            raise FloatingPointError(
                f"{self.task.name}: loss or gradient was not finite for {self.skipped} steps in a row (step "
                f"{self.step}): {where}; lower lr ({self.config.lr}) or set precision=fp32"
            )
        self.opt.zero_grad(set_to_none=True)

    def _rerun(self, micro: list[tuple[Any, int, Tensor]]) -> Tensor:
        """The first loss of ``micro`` that is not finite, or the last, once more, without the network's wrappers."""
        batch, seed, _ = next((each for each in micro if not all_finite(each[2])), micro[-1])
        torch.manual_seed(seed)
        with self.accelerator.autocast():
            return self.task.loss(self.network, batch, seed)[0]

    def _look(self, bar: Any, last: bool) -> None:
        """Validate, score and draw, each where it is due; none of it changes what is trained."""
        config, task = self.config, self.task
        if self.step % config.validate_every == 0 or last:
            bar.write(f"{task.name} step {self.step}: {self._validate()}")
        if config.score_every and (self.step % config.score_every == 0 or last):
            self._score(bar)
        if self.step % config.sample_every == 0 or last:
            self._quietly(task.sample, self.folder / "samples" / f"{self.step:08d}.png")

    def _validate(self) -> str:
        figures = {f"val_{name}": value for name, value in self._quietly(self.task.validate).items()}
        self._write(figures)
        return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if BAND not in name)

    def _score(self, bar: Any) -> None:
        """Write the task's score, and export the network where it is the best so far."""
        score = self._quietly(self.task.score)
        if score is None:
            return
        self._write({"score": score})
        bar.write(f"{self.task.name} step {self.step}: score {score:.3f}")
        if score >= self.best:  # of equal scores the later: while all are 0 the first model is the worst
            self.best = score
            self._quietly(partial(self.task.export, best=True))

    def _save(self) -> None:
        if self.main:
            opt = self.opt.optimizer
            tensors = {
                "weights": self.network.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(opt, self.network),
            }
            if self.average is not None:
                tensors["ema"] = self.average.state_dict()
            if learned := self.task.learned.state_dict():
                tensors["learned"] = learned
            facts = {
                "config": self.described,
                "torch": torch.__version__,
                "conditions": self._conditions(),
                "updates": self.schedule.last_epoch,  # fewer than steps where some were skipped
            }
            if self.accelerator.scaler is not None:
                facts["scaler"] = self.accelerator.scaler.state_dict()
            self._quietly(self.task.export)  # first: a finished run that is started again exports no more
            checkpoint.save_state(self.folder / "state", self.step, tensors, facts, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _resume(self, opt: Any) -> tuple[int, int]:
        """Load the newest whole checkpoint into everything; returns its steps and updates, 0 where there is none."""
        path = checkpoint.newest(self.folder / "state", warn=self.accelerator.print)
        if path is None:
            return 0, 0
        state = json.loads((path / "state.json").read_text())
        said = check(path, state, self._conditions(), self.described, self.unread, self.start)
        if said:
            self.accelerator.print(said)
        load_weights(self.network, path / "weights.safetensors")
        checkpoint.load_optimizer(opt, self.network, read_tensors(path / "optimizer.safetensors"))
        if self.average is not None:
            load_weights(self.average, path / "ema.safetensors")
        if self.task.learned.state_dict():
            load_weights(self.task.learned, path / "learned.safetensors")
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.print(f"going on from {path}")
        return int(state["step"]), int(state.get("updates", state["step"]))

    def _conditions(self) -> dict[str, Any]:
        """What must be the same for a run to go on: who takes which samples, what steps on them, and ``made_from``."""
        config = self.config
        return {
            "number of processes": self.accelerator.num_processes,
            **{name: getattr(config, name) for name in ("batch", "accumulate", "seed", "optimizer")},
            "average": config.ema > 0,
            **self.made_from,
        }

    def _quietly(self, call: Callable[..., Any], *args: Any) -> Any:
        """``call`` with the averaged network in evaluation mode and no gradients."""
        network = self.average.module if self.average is not None else self.network
        network.eval()
        try:
            with torch.no_grad():
                return call(network, *args)
        finally:
            network.train()

    def _write(self, values: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(self.step, **values)
            self.accelerator.log(values, step=self.step)

    def _mean(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value.detach().float().to(self.accelerator.device), "mean"))

    def _any_rank(self, caught: int) -> int:
        """The highest number of a signal that any rank has caught, 0 for none."""
        if self.accelerator.num_processes == 1:
            return caught
        return int(self.accelerator.gather(torch.tensor([caught], device=self.accelerator.device)).max())


def _seed(seed: int, micro: int, rank: int) -> int:
    """A seed of its own for every (run, micro-step, rank)."""
    return (seed * 1_000_003 + micro) * 1_009 + rank
