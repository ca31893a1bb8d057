"""Checkpoints of several processes: what each of a sharded run writes and reads, and what becomes of failures."""

import sys

import pytest
import torch
from processes import pair
from sharded import ROWS, read_back, save_apart

from ldm.files import BrokenFile, read_tensors
from ldm.training.checkpoint import newest, saved
from ldm.training.distributed_checkpoint import read_sharded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's processes are forked here")


def told(folder):
    """The last line of each of the two processes."""
    return [(folder / f"said-{rank}").read_text().splitlines()[-1] for rank in range(2)]


def test_every_process_writes_and_reads_its_shards_alone_and_nothing_is_pickled(tmp_path):
    status, said = pair(save_apart, tmp_path)
    assert status == [0, 0], said
    path = newest(tmp_path / "run" / "state")
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".json"}
    for part, key in (("weights", "0.weight"), ("ema", "module.0.weight"), ("optimizer", "0.weight.exp_avg")):
        shards = [read_tensors(file)[key] for file in sorted((path / part).iterdir())]
        assert [shard.shape for shard in shards] == [(ROWS // 2, 4)] * 2
        assert torch.equal(torch.cat(shards), read_sharded(path / part, {})[key])
    status, said = pair(read_back, tmp_path, path)
    assert status == [0, 0], said


def test_a_disk_that_is_full_for_one_process_ends_all_and_leaves_the_last_checkpoint(tmp_path):
    """Fault 11, sharded."""
    assert pair(save_apart, tmp_path, steps=2)[0] == [0, 0]
    status, said = pair(save_apart, tmp_path, file_size=ROWS * 5)
    assert status == [2, 2] and "Traceback" not in said, said
    for line in told(tmp_path):
        assert line.startswith("error: ") and "process 1 cannot write" in line and "free" in line
    state = tmp_path / "run" / "state"
    assert [path.name for path in state.iterdir()] == ["step-00000002"] and newest(state) == saved(state)[0]


@pytest.mark.parametrize("shard", [True, False])
def test_a_process_that_does_not_see_the_others_disk_ends_all(tmp_path, shard):
    """Where it is to write its shards, or to go on from a checkpoint: before it has done either."""
    if not shard:
        assert pair(save_apart, tmp_path, steps=2, shard=False, elsewhere=True)[0] == [0, 0]
    status, said = pair(save_apart, tmp_path, shard=shard, elsewhere=True)
    assert status == [2, 2] and "Traceback" not in said, said
    for line in told(tmp_path):
        assert line.startswith("error: process 1 does not see run/state/") and "all processes share" in line
    assert len(saved(tmp_path / "run" / "state")) == (0 if shard else 1)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


def test_a_torn_file_is_told_with_its_folder(tmp_path):
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").write_bytes(bytes(100))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BrokenFile, match=rf"{folder} has a torn or missing file .*; copy the whole folder"):
            read_sharded(folder, {})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no memory"), OSError(5, "Input/output error")])
def test_what_is_no_fault_of_the_file_stays_what_it_is(tmp_path, monkeypatch, error):
    """A signal, or a disk that is away for a moment, does not make a checkpoint one to throw away."""
    assert pair(save_apart, tmp_path)[0] == [0, 0]

    def fail(*_):
        raise error

    monkeypatch.setattr("torch.distributed.checkpoint.HuggingFaceStorageReader.read_data", fail)
    with pytest.raises(type(error)) as caught:
        read_sharded(newest(tmp_path / "run" / "state") / "weights", {})
    assert caught.value is error
