"""The memory allocator of a program."""

import sys

import pytest

from ldm import memory


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


class Recording:
    """``mallopt`` of a library, which says 1 where it has taken a value."""

    def __init__(self, library, asked):
        self.library, self.asked = library, asked

    def mallopt(self, what, value):
        self.asked.append((what, self.library.mallopt(what, value)))
