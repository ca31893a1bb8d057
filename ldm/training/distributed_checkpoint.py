"""Checkpoints of a sharded run: each process writes and reads its shards, by torch.distributed.checkpoint.

The files are safetensors, whose headers tell where in the whole tensors a shard lies. No file is a pickle; what
processes tell one another is, as everywhere in torch.distributed.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    load,
    save,
)
from torch.distributed.tensor import DTensor

from ldm.files import FULL, BrokenFile


def write_sharded(parts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Write each of ``parts`` to a folder of its name in ``folder``, every process a file of its shards.

    All processes call it with the same ``folder``, which is there.

    Raises:
        OSError: a process cannot write; all raise it.
    """
    for name, tensors in parts.items():
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder / name), save_distributed=True))
        except CheckpointException as error:
            rank, cause = _first(error)
            if isinstance(cause, OSError):
                way_out = "; free space there" if cause.errno in FULL else ""
                words = f"process {rank} cannot write {folder / name}: {cause.strerror or cause}{way_out}"
                raise OSError(cause.errno, words) from error
            raise cause from error


def read_sharded(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``write_sharded`` wrote to ``folder``, "<parameter>.<name>" sharded as that of ``parameters`` is.

    What is of no sharded parameter comes whole. Every process reads by itself, of a sharded tensor its shard alone.

    Raises:
        BrokenFile: a file is torn, or there is none.
    """
    reader, found = HuggingFaceStorageReader(str(folder)), {}
    try:
        contents: Mapping[str, Any] = reader.read_metadata().state_dict_metadata  # of tensors alone
        for key, kept in contents.items():
            parameter, dtype = parameters.get(key.rpartition(".")[0]), kept.properties.dtype
            if isinstance(parameter, DTensor) and parameter.shape == kept.size:
                found[key] = torch.empty_like(parameter, dtype=dtype)
            else:
                found[key] = torch.empty(kept.size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no process waits for another here
            load(found, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise _first(error)[1] from error
    except (SafetensorError, FileNotFoundError) as error:
        raise BrokenFile(f"{folder} has a torn or missing file ({error}); copy the whole folder") from error
    return found


def _first(error: CheckpointException) -> tuple[int, BaseException]:
    """A process that failed, and its error."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return rank, cause
