"""Loader workers and signals: what is sent to all processes of a job ends none too early and leaves none behind.

The parent is asked to stop by Ctrl-C or SIGTERM, which a terminal, torchrun and schedulers send to workers too; it ends
its step first, and needs batches for it. Where the parent is gone, however it went, its workers go.
"""

import multiprocessing
import os
import signal
import threading
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

SERVER = "ldm.worker_server"


def prepare_to_fork() -> None:
    """Call it before workers are forked off a server, which, if none runs yet, will then outlive a SIGTERM."""
    _prepare(os.getpid())


@cache
def _prepare(_: int) -> None:
    server: Any = forkserver._forkserver
    # there is no public way to add to what others have the server import
    listed = getattr(server, "_preload_modules", ["__main__"])
    multiprocessing.set_forkserver_preload([*(name for name in listed if name != SERVER), SERVER])
    # at its end multiprocessing asks workers to go, by SIGTERM, and waits for ever for one that does not
    Finalize(None, _kill_daemons, exitpriority=100)


def _kill_daemons() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def begin_as_worker(_: int) -> None:
    """What a worker does first: it leaves signals to its parent, and goes with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
