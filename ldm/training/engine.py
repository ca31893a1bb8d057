"""Accelerate as the loop uses it: device, precision, processes and trackers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, distributed

from ldm.training.optim import TrainConfig, resolve_precision

WAIT = timedelta(hours=12)  # for what the first process makes for all; PyTorch's own limit is 10 minutes on GPUs


def processes(device: torch.device) -> PartialState:
    """Those that train together; the first call joins them."""
    return PartialState(cpu=device.type == "cpu")


@contextmanager
def first_process_first(device: torch.device) -> Iterator[None]:
    """The block is run by the first process, and by the others once that is done; they wait for up to ``WAIT``."""
    state = processes(device)
    group: Any = distributed.new_group(backend="gloo", timeout=WAIT) if state.num_processes > 1 else None
    if group is not None and not state.is_main_process:
        distributed.barrier(group)
    yield
    if group is not None and state.is_main_process:
        distributed.barrier(group)


def accelerator(config: TrainConfig, folder: Path, device: torch.device) -> Accelerator:
    """An Accelerator on ``device``; a tracker that is not installed is warned of, for the log file is kept anyway."""
    if device.index is not None:
        torch.cuda.set_device(device)
    precision = resolve_precision(config.precision, device)
    made = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=config.tracker or None,
        project_dir=folder,
    )
    if made.log_with:
        made.init_trackers("ldm")
    elif config.tracker:
        made.print(
            f"warning: tracker '{config.tracker}' is not installed and gets nothing; pip install it and start again, "
            f"the run goes on; {folder / 'log.jsonl'} is written all the same",
            file=sys.stderr,
        )
    return made


def mean_of_ranks(engine: Accelerator, value: Tensor) -> float:
    """The mean of ``value`` () over all processes."""
    return float(engine.reduce(value.detach().float().to(engine.device), "mean"))


def any_rank(engine: Accelerator, value: int) -> int:
    """The highest ``value`` of all processes: 0 where all have 0, as where none has caught a signal."""
    if engine.num_processes == 1:
        return value
    return int(engine.gather(torch.tensor([value], device=engine.device)).max())
