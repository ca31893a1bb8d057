"""Processes of their own: of the scripts, to be ended in every way, and two that train together.

The scripts' are forked off a server that has imported everything once.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"
FORKS = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
PATIENCE = 240  # seconds; the machine may be busy


def preload() -> None:
    """Have the fork server import what takes seconds; its later processes, and loader workers, start at once."""
    FORKS.set_forkserver_preload(["processes", "ldm.stages", "ldm.cli", "open_clip", "timm.optim", "accelerate"])


class Script:
    """A script that runs by itself; what it prints goes to the file ``output``. To be left by ``with``."""

    def __init__(self, script: str, *args: object, output: Path, file_size: int = 0) -> None:
        """``file_size`` is the most bytes that it may write to a file: beyond that its disk is full."""
        self.output = output
        output.write_text("")
        words = [script, *map(str, args)]
        self.process = FORKS.Process(target=_main, args=(words, output, file_size))  # type: ignore[attr-defined]
        self.process.start()

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def wait_for(self, event: Callable[[], bool]) -> bool:
        """Wait until ``event`` is true or the script has ended; returns whether the script goes on."""
        end = time.monotonic() + PATIENCE
        while self.process.is_alive() and not event():
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.002)
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)

    def ended(self, within: float = PATIENCE) -> tuple[int, str]:
        """The exit status, negative for a signal, and all that was printed."""
        self.process.join(within)
        status = self.process.exitcode
        assert status is not None, f"still running: {self.output.read_text()}"
        return status, self.output.read_text()


def pair(call: Callable[..., None], folder: Path, *args: object, **settings: object) -> tuple[list[int | None], str]:
    """The exit statuses of two processes, and what they have said in ``folder``.

    Each does ``call`` with its rank, a port to meet the other at, ``folder``, and what else is given.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[Any] = [
        FORKS.Process(target=call, args=(i, port, folder, *args), kwargs=settings)  # type: ignore[attr-defined]
        for i in range(2)
    ]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(PATIENCE)
        return [process.exitcode for process in ranks], "".join((folder / f"said-{i}").read_text() for i in range(2))
    finally:
        for process in ranks:
            process.kill()


def _main(words: list[str], output: Path, file_size: int) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    torch.set_num_threads(1)
    if file_size:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = words
    try:
        runpy.run_path(str(SCRIPTS / words[0]), run_name="__main__")
    finally:
        sys.stdout.flush()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def of_two(measured: Callable[[int], Any]) -> tuple[Any, Any]:
    """What ``measured``, given its rank, says in each of two processes that train together: plain values."""
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    ranks = [context.Process(target=_one_of_two, args=(rank, port, queue, measured)) for rank in range(2)]
    try:
        for rank in ranks:
            rank.start()
        found = dict(queue.get(timeout=120) for _ in ranks)
        for rank in ranks:
            rank.join()
    finally:
        for rank in ranks:
            rank.kill()
    return found[0], found[1]


def _one_of_two(rank: int, port: int, queue: Any, measured: Callable[[int], Any]) -> None:
    import torch
    from accelerate.state import AcceleratorState
    from torch import distributed

    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one was forked from
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    queue.put((rank, measured(rank)))
    distributed.barrier()
    distributed.destroy_process_group()


def torchrun(call: Callable[..., None], *, restarts: int) -> Callable[..., object]:
    """``call`` in two processes under the agent of torchrun, which starts both again up to ``restarts`` times."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="forkserver",
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    return elastic_launch(config, call)
