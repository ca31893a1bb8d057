"""Weights of CLIP's text tower: found or fetched by tag, read without running anything, and fitted strictly."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# what a whole CLIP's weights hold beside its text tower
NOT_TEXT = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")


def fetch(name: str, tag: str, place: str) -> Path:
    """The weights file of a tag, from the Hub's local cache or downloaded; ``place`` is ``owner/repository/[file]``."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, file = place.rpartition("/")
    named = [f"{file.rpartition('.')[0]}.safetensors", file]
    files = named if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in files:
        try:
            # a download without a network is retried for half a minute per file; asking after it first fails at once
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=5)
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError as error:
            cause: Exception = error
        except Exception as error:  # the errors of the HTTP library below, which changed between the client's versions
            cause = error
            break
    raise ValueError(
        f"the weights '{tag}' of {name} are not on this machine, and https://huggingface.co/{repository} did not give "
        f"them ({str(cause).splitlines()[0]}); download {files[0]} from there and set text.weights=/path/to/{files[0]}"
    ) from cause


def read_weights(path: Path) -> dict[str, Any]:
    """What a weights file holds by name; nothing in it is run. Raises ValueError, naming the file, where it is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not weights; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not weights; run 'git lfs pull' where it comes from")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise errors of many kinds
        safe = path.suffix == ".safetensors"
        objects = "" if safe else ", or holds more than tensors, which could run code: take it as .safetensors"
        raise ValueError(f"{path} ({path.stat().st_size} bytes) is cut short or damaged{objects}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name")
    nested = found.get("state_dict")  # where training scripts put the weights, beside the optimizer's state
    return nested if isinstance(nested, dict) else found


def fill(tower: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Copy the text tower's weights of ``weights``, a whole CLIP's or a text tower's; every one must fit."""
    weights = {str(key).removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
    weights = {key.removeprefix("text."): value for key, value in weights.items() if not key.startswith(NOT_TEXT)}
    wanted = tower.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        parts = (
            f"{len(keys)} {what} {keys[:1]}" for what, keys in {"missing": missing, "unknown": extra}.items() if keys
        )
        raise ValueError(f"{source} does not fit this text tower; of its weights {', '.join(parts)}")
    for key, value in wanted.items():
        if weights[key].shape != value.shape:
            shapes = f"{tuple(weights[key].shape)} in place of {tuple(value.shape)}"
            raise ValueError(f"{source} does not fit this text tower: '{key}' is {shapes}")
    tower.load_state_dict(weights)
