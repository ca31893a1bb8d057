"""The memory allocator of a program."""

import os
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch

from ldm import cli, memory

LARGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_program_goes_on_wherever_the_allocator_cannot_be_told(platform, monkeypatch):
    def missing(name):
        raise OSError("no library")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    monkeypatch.setattr(memory.os, "environ", environment := {})
    memory.keep_freed()
    assert ("THP_MEM_ALLOC_ENABLE" in environment) == (platform == "linux")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is asked")
def test_both_thresholds_are_taken(monkeypatch):
    asked, library = [], memory.ctypes.CDLL(None)
    monkeypatch.setattr(memory.os, "environ", {})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Recording(library, asked))
    memory.keep_freed()
    assert asked == [(memory.TRIM_THRESHOLD, 1), (memory.MMAP_THRESHOLD, 1)]


@pytest.mark.skipif(not LARGE.is_file() or "[madvise]" not in LARGE.read_text(), reason="large pages are not asked for")
def test_a_script_gets_large_pages_though_it_has_imported_everything():
    """PyTorch would not ask for them any more once a module had made a tensor."""
    lines = (
        "import ldm.cli, ldm.stages, ldm.evaluation.evaluation, ldm.memory, torch",
        "ldm.memory.keep_freed()",
        "held = torch.ones(1 << 26)",
        "print(next(line.split()[1] for line in open('/proc/self/smaps_rollup') if line.startswith('AnonHuge')))",
    )
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) > 100_000  # kB, of 262,144


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nof 1 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        RuntimeError("unable to allocate shared memory(shm)"),
        MemoryError("no room"),
    ],
)
def test_a_script_whose_memory_runs_out_says_so_in_one_line(error, capsys, monkeypatch):
    monkeypatch.setattr(cli, "keep_freed", lambda: None)
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: memory ran out ({str(error).splitlines()[0]}); try a smaller batch")


def test_other_errors_of_torch_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "keep_freed", lambda: None)
    with pytest.raises(RuntimeError, match="shapes in memory"), cli.one_line_errors():
        raise RuntimeError("shapes in memory do not fit")


class Recording:
    """``mallopt`` of a library, which says 1 where it has taken a value."""

    def __init__(self, library, asked):
        self.library, self.asked = library, asked

    def mallopt(self, what, value):
        self.asked.append((what, self.library.mallopt(what, value)))
