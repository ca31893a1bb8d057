"""One part of theirs as a folder: settings in config.json, weights in safetensors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldm.files import BrokenFile, read_tensors, save_tensors
from ldm.interchange.names import Settings, Weights, read_json

SETTINGS, WEIGHTS = "config.json", "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")  # of a file's name, the first that is there being read


def write_part(settings: Settings, weights: Weights, folder: Path, dtype: torch.dtype, *, file: str = WEIGHTS) -> None:
    """Write settings and weights, in ``dtype``, into ``folder``, which is there."""
    write_json(settings, folder / SETTINGS)
    save_tensors(weights, folder / f"{file}.safetensors", dtype)


def write_json(settings: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_weights(folder: Path, file: str = WEIGHTS) -> Weights:
    """The weights in ``folder``, float32: of its safetensors ``file``, whole or in shards.

    Raises:
        BrokenFile: there is none, or one is missing or damaged.
    """
    for variant in VARIANTS:
        whole, index = folder / f"{file}{variant}.safetensors", folder / f"{file}.safetensors.index{variant}.json"
        if whole.is_file():
            return {key: value.float() for key, value in read_tensors(whole).items()}
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            return {key: value.float() for shard in shards for key, value in read_tensors(folder / shard).items()}
    raise BrokenFile(f"{folder} has no {file}.safetensors; fetch it, or save it anew with safe_serialization=True")


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """A BrokenFile in place of PyTorch's words where a tensor within has another shape than it should."""
    try:
        yield
    except RuntimeError as error:
        raise BrokenFile(f"{folder}: the weights do not fit {SETTINGS} ({str(error).splitlines()[0]})") from error
