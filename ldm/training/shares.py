"""Checkpoints of a sharded run: each process writes and reads what it holds, by PyTorch's distributed checkpoints.

The files are safetensors, whose headers tell where in the whole tensors theirs lie; nothing is pickled.
"""

import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import broadcast_object_list
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    load,
    save,
)
from torch.distributed.tensor import DTensor

from ldm.files import BrokenFile


def write_shares(parts: Mapping[str, Mapping[str, Tensor]], folder: Path | None = None) -> None:
    """Write each of ``parts`` to a folder of its name in ``folder``, every process a file of what it holds.

    All processes call it, the first alone with a ``folder``, which must be the same for all.

    Raises:
        OSError: a process cannot write, or the first does not see what another wrote.
    """
    place = [str(folder)]
    broadcast_object_list(place, src=0)
    for name, tensors in parts.items():
        part = f"{place[0]}/{name}"
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(part, save_distributed=True))
        except CheckpointException as error:  # of any process, told to all
            raise next(iter(error.failures.values()))[0] from error
        if folder is not None:
            _check_whole(part, tensors)


def _check_whole(folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise OSError where the shares of ``tensors`` that this process sees in ``folder`` are not all of them."""
    found = _contents(HuggingFaceStorageReader(folder))
    for key, value in tensors.items():
        chunks = found[key].chunks if key in found else []
        if sum(prod(chunk.sizes) for chunk in chunks) != value.numel():
            raise OSError(f"{folder} lacks shares of '{key}'; give out=FOLDER on a disk that all processes write to")


def read_shares(folder: Path, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``write_shares`` wrote there: whole, or sharded as the parameter in ``beside`` that the key starts with.

    Every process reads by itself, and of a sharded tensor no more than its shard.

    Raises:
        BrokenFile: a file is torn, or none is there.
    """
    reader, found = HuggingFaceStorageReader(str(folder)), {}
    try:
        for key, kept in _contents(reader).items():
            parameter, dtype = beside.get(key.rpartition(".")[0]), kept.properties.dtype
            if isinstance(parameter, DTensor) and parameter.shape == kept.size:
                found[key] = torch.empty_like(parameter, dtype=dtype)
            else:
                found[key] = torch.empty(kept.size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no process waits for another here
            load(found, storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, OSError) as error:
        raise BrokenFile(f"{folder} holds no readable shares of a checkpoint ({error}); delete it") from error
    return found


def _contents(reader: HuggingFaceStorageReader) -> dict[str, Any]:
    """Size, type and chunks of every tensor there, by its name."""
    return dict(reader.read_metadata().state_dict_metadata)
