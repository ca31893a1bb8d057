"""The training loop: one for every network. What is trained, and on what, is a ``Task``."""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from ldm.training import checkpoint
from ldm.training.log import Log, draw_curves
from ldm.training.optim import TrainConfig, learning_rate, moving_average, optimizer, resolve_precision

MAX_SKIPPED = 20  # steps in a row with a non-finite gradient before the run gives up


class Task(Protocol):
    """What the loop trains. ``network`` is what is optimized; the loop passes it back wrapped for its device."""

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> nn.Module: ...

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


class Stopped(SystemExit):
    """The run was asked to stop and has saved itself; the exit status is 128 + the signal's number."""


class _Signals:
    """Notes the first Ctrl-C or SIGTERM so that the loop can save; a second one acts at once."""

    def __init__(self) -> None:
        self.caught = 0
        self.old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.caught = number
        self.restore()

    def restore(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def train(
    task: Task,
    config: TrainConfig,
    folder: Path,
    *,
    export: Callable[[nn.Module], None],
    described: str = "",
    device: str = "",
) -> None:
    """Train ``task`` in ``folder``, going on from its newest checkpoint.

    ``folder`` gets ``log.jsonl``, ``samples/``, ``curves.png`` and, under ``state/``, the checkpoints. With each
    checkpoint, ``export`` gets the averaged network (EMA), to write what other programs load. ``described`` is the
    configuration as text, kept in the checkpoint.

    Raises:
        Stopped: a signal asked for it; the state is saved.
        RuntimeError: the gradient was not finite for many steps in a row.
    """
    accelerator = _accelerator(config, folder, device)
    logging.getLogger("torch").setLevel(logging.ERROR)
    network = task.network.to(accelerator.device)
    average = moving_average(network, config.ema) if config.ema else None
    opt = optimizer(network, config)
    state = folder / "state"
    step = _resume(state, network, average, opt, accelerator)
    schedule = learning_rate(opt, config)
    schedule.step(step) if step else None  # the learning rate is a pure function of the step
    wrapped = accelerator.prepare_model(torch.compile(network) if config.compile else network)
    opt = accelerator.prepare_optimizer(opt)

    def averaged() -> nn.Module:
        return average.module if average is not None else network

    def save() -> None:
        if accelerator.is_main_process:
            tensors = {"weights": network.state_dict(), "optimizer": checkpoint.optimizer_tensors(opt.optimizer)}
            if average is not None:
                tensors["ema"] = average.state_dict()
            facts = {"config": described, "world": accelerator.num_processes, "torch": torch.__version__}
            checkpoint.save_state(state, step, tensors, facts, config.keep)
            _quietly(export, averaged())
        accelerator.wait_for_everyone()

    main = accelerator.is_main_process
    log = Log(folder / "log.jsonl", step) if main else None
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = task.batches(step * config.accumulate, rank, world)
    signals = _Signals()
    bar = tqdm(total=config.steps, initial=step, desc=task.name, unit="step", dynamic_ncols=True, disable=not main)
    seen, since, skipped, micro = 0, time.perf_counter(), 0, step * config.accumulate
    try:
        while step < config.steps:
            total: Tensor | float = 0.0
            logs: dict[str, Tensor] = {}
            for i in range(config.accumulate):
                seed = _seed(config.seed, micro, rank)
                torch.manual_seed(seed)  # dropout and posterior draws, too, depend on the step alone
                with _sync(accelerator, wrapped, i == config.accumulate - 1), accelerator.autocast():
                    loss, logs = task.loss(wrapped, next(batches), seed)
                accelerator.backward(loss / config.accumulate)
                total = total + loss.detach() / config.accumulate
                micro += 1
                seen += config.batch * world
            norm = accelerator.clip_grad_norm_(network.parameters(), config.clip or float("inf"))
            if torch.isfinite(norm):
                opt.step()
                skipped = 0
                if average is not None:
                    average.update_parameters(network)
            elif (skipped := skipped + 1) >= MAX_SKIPPED:
                raise RuntimeError(
                    f"{task.name}: the gradient was not finite for {skipped} steps in a row (step {step}); "
                    f"lower lr ({config.lr}) or set precision=fp32"
                )
            opt.zero_grad(set_to_none=True)
            step += 1
            schedule.step(step)
            bar.update()
            if step % config.log_every == 0 or step == config.steps:
                speed = seen / (time.perf_counter() - since)
                values = {
                    "loss": accelerator.reduce(torch.as_tensor(total), "mean").item(),
                    **{name: value.item() for name, value in logs.items()},
                    "gradient_norm": norm.item(),
                    "lr": schedule.get_last_lr()[0],
                    "images_per_second": speed,
                }
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:.0f} img/s")
                _write(log, accelerator, step, values)
                seen, since = 0, time.perf_counter()
            last = step == config.steps
            if main and (step % config.validate_every == 0 or last):
                figures = {f"val_{name}": value for name, value in _quietly(task.validate, averaged()).items()}
                bar.write(f"{task.name} step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
                _write(log, accelerator, step, figures)
            if main and (step % config.sample_every == 0 or last):
                (folder / "samples").mkdir(exist_ok=True)
                _quietly(task.sample, averaged(), folder / "samples" / f"{step:08d}.png")
            if step % config.save_every == 0 or last:
                save()
            if _agreed(accelerator, signals.caught):
                save()
                bar.close()
                if main:
                    print(
                        f"stopped at step {step} of {config.steps}; the same command goes on from here", file=sys.stderr
                    )
                raise Stopped(128 + (signals.caught or signal.SIGTERM))
            if seen == 0:
                since = time.perf_counter()  # validating and saving are not training time
    finally:
        signals.restore()
        bar.close()
        accelerator.end_training()
    if main:
        draw_curves(folder / "log.jsonl", folder / "curves.png")
        print(f"{task.name}: {config.steps} steps done; curves in {folder / 'curves.png'}")


def _accelerator(config: TrainConfig, folder: Path, device: str) -> Accelerator:
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    set_seed(config.seed)
    made = Accelerator(
        cpu=on.type == "cpu",
        mixed_precision=resolve_precision(config.precision, on).replace("fp32", "no"),
        log_with=config.tracker or None,
        project_dir=folder,
    )
    if config.tracker:
        if not made.trackers and not made.log_with:
            raise ValueError(f"tracker '{config.tracker}' is not installed; pip install it, or leave tracker empty")
        made.init_trackers("ldm")
    return made


def _resume(state: Path, network: nn.Module, average: Any, opt: Any, accelerator: Accelerator) -> int:
    """Load the newest whole checkpoint into everything; returns its step, 0 where there is none."""
    path = checkpoint.newest(state)
    if path is None:
        return 0
    facts = json.loads((path / "state.json").read_text())
    checkpoint.load_weights(
        network, checkpoint.read_tensors(path / "weights.safetensors"), path / "weights.safetensors"
    )
    checkpoint.load_optimizer(opt, checkpoint.read_tensors(path / "optimizer.safetensors"))
    if average is not None:
        checkpoint.load_weights(average, checkpoint.read_tensors(path / "ema.safetensors"), path / "ema.safetensors")
    accelerator.print(f"going on from {path}")
    return int(facts["step"])


def _seed(seed: int, micro: int, rank: int) -> int:
    """A seed of its own for every (run, micro-step, rank)."""
    return (seed * 1_000_003 + micro) * 1_009 + rank


def _sync(accelerator: Accelerator, wrapped: nn.Module, last: bool) -> Any:
    """Gradients are exchanged between processes at the last micro-step only."""
    return accelerator.no_sync(wrapped) if not last else torch.enable_grad()


def _agreed(accelerator: Accelerator, caught: int) -> bool:
    """Whether any rank was asked to stop."""
    if accelerator.num_processes == 1:
        return bool(caught)
    return bool(accelerator.reduce(torch.tensor(caught, device=accelerator.device)).item())


def _quietly(call: Any, network: nn.Module, *args: Any) -> Any:
    """``call`` with the network in evaluation mode and no gradients."""
    network.eval()
    try:
        with torch.no_grad():
            return call(network, *args)
    finally:
        network.train()


def _write(log: Log | None, accelerator: Accelerator, step: int, values: dict[str, float]) -> None:
    if log is not None:
        log.write(step, **values)
        accelerator.log(values, step=step)
