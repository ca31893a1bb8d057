"""A dry run: some steps of a training, for real but in a folder that goes away, and what the whole will take."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from shutil import disk_usage
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.autoencoders import Autoencoder
from ldm.files import nearest_there
from ldm.folders import SCALE
from ldm.memory import ran_out
from ldm.training.engine import any_rank
from ldm.training.loop import Trainer
from ldm.training.task import MicroStep

TIMED = (2, 20)  # steps, at least and at most, after one that starts the loader and compiles
ENOUGH = 5.0  # seconds, after which no more are timed
CGROUP = Path("/sys/fs/cgroup")  # of this process in a container; absent elsewhere


@dataclass(frozen=True)
class Plan:
    """What a training takes, measured on some steps; ``str`` gives it as some lines of text."""

    stage: str
    parameters: int  # a rival's counted, as in all that follows
    trained: int
    flops: int  # of one image, forward and backward; matrix products, convolutions and attention only
    memory: int  # bytes, at its peak
    free_memory: int  # bytes, before it began, where the peak is measured: of the GPU where there is one
    images_per_second: float
    seconds: float  # of all steps, without validating and drawing
    checkpoint: int  # bytes of one
    disk: int  # bytes of those that are kept, of one being written, and of what is exported
    free_disk: int

    def __str__(self) -> str:
        lines = {
            "parameters": f"{self.parameters / 1e6:.2f} M, {self.trained / 1e6:.2f} M of them trained",
            "FLOPs": f"{self.flops / 1e9:.3g} G an image, forward and backward",
            "memory": f"{in_bytes(self.memory)} at the peak; {in_bytes(self.free_memory)} were free",
            "speed": f"{self.images_per_second:.3g} images a second",
            "time": f"{in_time(self.seconds)}, without validating and drawing",
            "disk": f"{in_bytes(self.disk)}, a checkpoint {in_bytes(self.checkpoint)}; {in_bytes(self.free_disk)} free",
        }
        return "\n".join([f"dry run of {self.stage}:", *(f"  {name:11}{text}" for name, text in lines.items())])


def preflight(
    make: Callable[[Path], Trainer], scratch: Path, out: Path, device: torch.device, besides: int = 0
) -> Plan:
    """What the training that ``make`` gives for a folder, on ``device``, will take; some steps are made in ``scratch``.

    ``besides`` are bytes that are written to ``out`` once it has ended.

    Raises:
        ValueError: it does not fit into the memory, or its files not onto the disk of ``out``.
    """
    free = free_memory(device)
    with told_if_memory_runs_out(free if device.type == "cpu" else None):
        trainer = make(scratch / "training")
        task, config, engine = trainer.task, trainer.config, trainer.accelerator
        period = 1 if trainer.rival is None else trainer.rival.period
        period = 1 if period > config.steps else period
        dearest = config.steps // period * period - 1  # a term that joins later has joined by then
        usual = dearest if period == 1 else dearest - 1
        batches = task.batches(dearest * config.accumulate, engine.process_index, engine.num_processes)
        flops = float(_flops(trainer, next(batches), usual))
        _seconds(trainer, batches, dearest, 1, 1)  # which starts the loader and compiles
        seconds = _seconds(trainer, batches, usual, *TIMED)
        if period > 1:
            flops += (_flops(trainer, next(batches), dearest) - flops) / period
            seconds += (_seconds(trainer, batches, dearest, 1, 1) - seconds) / period
    images = config.batch * config.accumulate
    parameters = [parameter for learner in trainer.learners for parameter in learner.network.parameters()]
    exported = [sum(map(_in_half, modules)) for modules in task.exports()]
    held = [value for part in trainer.tensors().values() for value in part.values()]
    state = sum(value.numel() * value.element_size() for value in held)
    disk = (config.keep + 1) * state + sum(exported) + max(exported) + besides  # while one is replaced there are two
    check_disk(disk, out, f"{task.name}'s training", f"try a lower keep ({config.keep})")
    return Plan(
        task.name,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        round(flops) // config.batch,
        _peak_memory(device),
        free,
        images * engine.num_processes / seconds,
        seconds * config.steps,
        state,
        disk,
        disk_usage(nearest_there(out)).free,
    )


def check_disk(needed: int, out: Path, what: str, way_out: str) -> None:
    """Raise ValueError where the disk of ``out``, which need not be there yet, has fewer bytes free than ``needed``."""
    free = disk_usage(nearest_there(out)).free
    if needed > free:
        raise ValueError(
            f"{what} takes {in_bytes(needed)} of disk and {out} has {in_bytes(free)} free: {way_out}, or another out="
        )


@contextmanager
def told_if_memory_runs_out(most: int | None) -> Iterator[None]:
    """Within the block memory that runs out is told as ValueError; of main memory ``most`` bytes are given, None: all.

    Without that limit the system would end the process, or another, without a word. A GPU's driver says so itself, and
    maps far more addresses than it takes memory.
    """
    try:
        with nullcontext() if most is None else _limited(most):
            yield
    except (RuntimeError, MemoryError) as error:
        words = ran_out(error)
        if not words:
            raise
        raise ValueError(
            f"the training does not fit into the memory ({words}); try half of batch and twice of accumulate"
        ) from error


@contextmanager
def _limited(more: int) -> Iterator[None]:
    """Within the block this process gets at most ``more`` bytes of addresses above those that it has."""
    if sys.platform == "win32":
        yield
        return
    import resource  # which Windows does not have

    former = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + more
    if former[1] != resource.RLIM_INFINITY:
        most = min(most, former[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of a GPU, else of the machine, or of its container where that is less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left: float = inf
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        left = max(0, int((CGROUP / "memory.max").read_text()) - _held_in_container())
    return int(min(left, psutil.virtual_memory().available))


def _held_in_container() -> int:
    """Bytes that the container holds for good: cached files that are not in use, which count too, are given up."""
    held = int((CGROUP / "memory.current").read_text())
    with suppress(OSError, ValueError):
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        held -= next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(0, held)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _peak_resident())


def _peak_resident() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _seconds(trainer: Trainer, batches: Iterator[Any], step: int, least: int, most: int) -> float:
    """Of ``step``, made at least and at most so often; none is under way at the end, since each reads its norm."""
    made, began = 0, time.perf_counter()
    while made < least or (made < most and any_rank(trainer.accelerator, time.perf_counter() - began < ENOUGH)):
        trainer.step = step
        trainer.train_step(batches)
        made += 1
    return (time.perf_counter() - began) / made


def _flops(trainer: Trainer, batch: object, step: int) -> int:
    """Of a forward and a backward pass over ``batch`` at ``step``, without the loop's wrappers."""
    networks = [learner.network for learner in trainer.learners]
    with FlopCounterMode(display=False) as counter:
        torch.stack(trainer.rerun(networks, MicroStep(batch, 0, step))).sum().backward()
    for network in networks:
        network.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _in_half(network: nn.Module) -> int:
    """Bytes of the weights and buffers in half precision, but for an autoencoder's latents' mean and std."""
    whole = SCALE if isinstance(network, Autoencoder) else ()
    return sum(
        value.numel() * (2 if value.is_floating_point() and key not in whole else value.element_size())
        for key, value in network.state_dict().items()
    )


def in_bytes(size: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.3g} {name}"


def in_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
