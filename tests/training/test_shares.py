"""Checkpoints of a sharded run: what each process writes, and what becomes of writes that fail."""

import sys

import pytest
import torch
from processes import pair
from sharded import save_apart

from ldm.files import BrokenFile, read_tensors
from ldm.training.checkpoint import newest, saved
from ldm.training.shares import read_shares

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's processes are forked here")


def test_every_process_writes_its_share_alone_and_nothing_is_pickled(tmp_path):
    status, said = pair(save_apart, tmp_path)
    assert status == [0, 0], said
    path = newest(tmp_path / "run" / "state")
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".json"}
    for part, key in (("weights", "0.weight"), ("ema", "module.0.weight"), ("optimizer", "0.weight.exp_avg")):
        shares = [read_tensors(file)[key] for file in sorted((path / part).iterdir())]
        assert [share.shape for share in shares] == [(50_000, 4)] * 2
        assert torch.equal(torch.cat(shares), read_shares(path / part, {})[key])


def test_a_disk_that_is_full_for_one_process_ends_all_and_leaves_the_last_checkpoint(tmp_path):
    """Fault 11, sharded."""
    assert pair(save_apart, tmp_path, steps=2)[0] == [0, 0]
    status, said = pair(save_apart, tmp_path, file_size=500_000)
    assert status == [1, 1] and "step-00000004 cannot be written" in said and "free disk space" in said, said
    state = tmp_path / "run" / "state"
    assert [path.name for path in state.iterdir()] == ["step-00000002"] and newest(state) == saved(state)[0]


def test_processes_that_write_to_different_disks_are_told_so(tmp_path):
    status, said = pair(save_apart, tmp_path, elsewhere=True)
    assert status[0] == 1 and "lacks shares of" in said and "give out=FOLDER on a disk that all" in said, said
    assert saved(tmp_path / "run" / "state") == []


def test_a_torn_share_is_named(tmp_path):
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BrokenFile, match=r"holds no readable shares .*; delete it"):
        read_shares(tmp_path, {})
