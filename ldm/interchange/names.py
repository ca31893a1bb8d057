"""One network's weights under two sets of names, and its settings under two.

``Names`` gives for each weight of ours those of theirs that it is made of, one above the other: where ours makes
queries, keys and values with one matrix, theirs has three.
"""

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import nearest
from ldm.files import BrokenFile

Names = dict[str, tuple[str, ...]]
Weights = dict[str, Tensor]
Settings = Mapping[str, Any]  # a config.json


def of_layers(network: nn.Module, layers: Names, besides: Set[str] = frozenset()) -> Names:
    """The names of all parameters of ``network`` but those ``besides``, from its layers', none of which is left out."""
    names: Names = {}
    for key in sorted({key for key, _ in network.named_parameters()} - besides):
        layer, _, kind = key.rpartition(".")
        names[key] = tuple(f"{theirs}.{kind}" for theirs in layers[layer])
    return names


def residual(ours: str, theirs: str) -> Names:
    """The layers of a residual block, of those that it may have."""
    same = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    pairs = {**same, "time": "time_emb_proj", "skip": "conv_shortcut"}
    return {f"{ours}.{own}": (f"{theirs}.{other}",) for own, other in pairs.items()}


def to_theirs(weights: Weights, names: Names) -> Weights:
    """``weights`` of ours under their names."""
    return {
        their: part
        for key, theirs in names.items()
        for their, part in zip(theirs, weights[key].chunk(len(theirs)), strict=True)
    }


def to_ours(weights: Weights, names: Names, source: str) -> Weights:
    """``weights`` of theirs, read from ``source``, under our names.

    Raises:
        BrokenFile: one is missing, or there is one that has no name of ours.
    """
    wanted = {their for theirs in names.values() for their in theirs}
    for kind, keys in (("lacks", wanted - weights.keys()), ("has the unknown", weights.keys() - wanted)):
        if keys:
            raise BrokenFile(f"{source} {kind} {len(keys)} weights ({', '.join(sorted(keys)[:3])}, ...)")
    return {key: torch.cat([weights[their] for their in theirs]) for key, theirs in names.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; BrokenFile where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenFile(f"{path} is missing or unreadable ({error}); give the folder of a pipeline") from error
    return found


def check_supported(settings: Settings, expected: Mapping[str, Any], read: set[str], source: str) -> None:
    """Raise ValueError where ``settings`` ask for what is not built here.

    That is, one that is ``expected`` to have a value has another, or one that is neither expected nor ``read`` is set
    to anything but null, false, 0 or nothing. Names that begin with an underscore are notes.
    """
    for key, value in settings.items():
        if key.startswith("_") or key in read:
            continue
        differs = value != expected[key] if key in expected else bool(value)
        if differs:
            raise ValueError(
                f"{source}: {key} {value!r} has no counterpart here; only Stable Diffusion 1's and 2's have"
            )


def read_widths(settings: Settings, source: str) -> tuple[int, list[int]]:
    """The width of the first level, and those of all levels as multiples of it; ValueError where they are none."""
    widths = read_setting(settings, "block_out_channels", list, source)
    if not widths or not all(isinstance(width, int) and width > 0 and width % widths[0] == 0 for width in widths):
        raise ValueError(
            f"{source}: block_out_channels {widths} are not multiples of the first, and have no counterpart"
        )
    return widths[0], [width // widths[0] for width in widths]


def read_setting(settings: Settings, key: str, kind: type, source: str) -> Any:
    """``settings[key]``, where it is a list, or a positive int or float; a list of equal ints counts as one of them.

    Raises:
        ValueError: it is missing, or of another kind.
    """
    value = settings.get(key)
    if kind is int and isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if kind is float and isinstance(value, int):
        value = float(value)
    fitting: Any = value if type(value) is kind else None  # True is an int to isinstance
    if fitting is not None and (kind is list or fitting > 0):
        return fitting
    if key not in settings:
        raise ValueError(f"{source} has no {key}; {nearest(key, list(settings))}")
    raise ValueError(f"{source}: {key} {value!r} is no {kind.__name__} that can be built here")
