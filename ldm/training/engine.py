"""Accelerate as the loop uses it: device, precision, processes and trackers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ldm.training.optim import TrainConfig, resolve_precision

WAIT = timedelta(hours=12)  # for what the first process does alone; PyTorch's own limit is 10 minutes on GPUs


def processes(device: torch.device) -> PartialState:
    """Those that train together, who wait for one another for up to ``WAIT``; the first call joins them."""
    return PartialState(cpu=device.type == "cpu", timeout=WAIT)


def accelerator(config: TrainConfig, folder: Path, device: torch.device) -> Accelerator:
    """An Accelerator on ``device``; a tracker that is not installed is warned of, for the log file is kept anyway."""
    if device.index is not None:
        torch.cuda.set_device(device)
    processes(device)  # joined first, or the Accelerator would with PyTorch's own limit
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


def first_of(engine: Accelerator, call: Callable[[], Any]) -> Any:
    """What ``call`` gives to the first process, which alone calls it, in all; its error is raised in all."""
    told: list[Any] = [None, None]
    if engine.is_main_process:
        try:
            told[0] = call()
        except Exception as error:
            told[1] = error
    found, failed = broadcast_object_list(told)
    if failed is not None:
        raise failed
    return found


@contextmanager
def folder_of_all(engine: Accelerator, opened: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """The folder that the first process has ``opened``, for all to write to, and closes when all have left.

    Raises:
        OSError: a process does not see it (``check_seen``), or it cannot be opened or closed; all raise it.
    """
    with ExitStack() as stack:
        folder = first_of(engine, lambda: stack.enter_context(opened()))
        check_seen(engine, folder)
        yield folder
        engine.wait_for_everyone()
        first_of(engine, stack.close)


def check_seen(engine: Accelerator, folder: Path) -> None:
    """An OSError in all processes where one does not see ``folder``, which the first does."""
    if blind := any_rank(engine, 0 if folder.is_dir() else 1 + engine.process_index):
        words = "give out=FOLDER on a disk that all processes share"
        raise OSError(f"process {blind - 1} does not see {folder}; {words}")
