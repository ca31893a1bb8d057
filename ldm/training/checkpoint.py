"""Checkpoints: what a training run needs to go on, each a whole folder (``ldm.files``), the newest kept."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.files import MANIFEST, BrokenFile, check_folder, fill_weights, read_tensors, save_tensors, sweep, whole_folder
from ldm.training.distributed_checkpoint import read_sharded
from ldm.training.sharding import sharded_as

PREFIX = "step-"


@contextmanager
def new_state(folder: Path, step: int, facts: dict[str, Any], keep: int) -> Iterator[Path]:
    """What is put into the folder it gives is a checkpoint in the end, ``folder``/step-N, with its ``facts``.

    Then all but the newest ``keep`` are dropped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, f"{PREFIX}*")
    made = folder / f"{PREFIX}{step:08d}"
    if made.is_dir() and not (made / MANIFEST).is_file():  # torn: this run passed it over
        shutil.rmtree(made)
    with whole_folder(made) as staged:
        yield staged
        (staged / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1), encoding="utf-8")
    newer = [path for path in saved(folder) if path.name > made.name]  # torn, too
    for old in [*saved(folder)[: -keep - len(newer)], *newer]:
        shutil.rmtree(old)


def saved(folder: Path) -> list[Path]:
    """The checkpoints under ``folder``, oldest first; anything else there is ignored."""
    return sorted(p for p in folder.glob(f"{PREFIX}[0-9]*") if p.name.removeprefix(PREFIX).isdigit() and p.is_dir())


def newest(folder: Path, warn: Any = print) -> Path | None:
    """The newest whole checkpoint, or ``None``; a broken one is named in a warning and passed over."""
    for path in reversed(saved(folder)):
        try:
            check_folder(path)
            return path
        except BrokenFile as error:
            warn(f"warning: checkpoint {path.name} is passed over: {error}")
    return None


def write_whole(parts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Write each of ``parts`` to a safetensors file of its name in ``folder``."""
    for name, tensors in parts.items():
        save_tensors(dict(tensors), folder / f"{name}.safetensors")


def read_part(path: Path, name: str, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The part called ``name`` of the checkpoint ``path``: of one file, whole, or by ``read_sharded``."""
    file = path / f"{name}.safetensors"
    return read_tensors(file) if file.is_file() else read_sharded(path / name, parameters or {})


def load_part(network: nn.Module, path: Path, name: str) -> None:
    """Load the part called ``name`` of the checkpoint ``path`` into ``network``, strictly (``ldm.files``)."""
    file = path / f"{name}.safetensors"
    fill_weights(network, read_part(path, name), file if file.is_file() else path / name)


def optimizer_tensors(opt: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors "<parameter>.<name>"; its settings come from the configuration.

    By the parameters' names in ``network``, not their places: a network put together in another order takes them too.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    parts = ((f"{names[p]}.{name}", value) for p, part in opt.state.items() for name, value in part.items())
    return {name: value for name, value in parts if isinstance(value, Tensor)}


def load_optimizer(opt: Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave, of a sharded parameter its shard.

    Raises:
        BrokenFile: they are of a parameter that is not here.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    parameters = [parameter for group in opt.param_groups for parameter in group["params"]]
    places = {names[parameter]: place for place, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.rpartition(".")
        if parameter not in places and not parameter.isdigit():
            raise BrokenFile(
                f"the optimizer's state is of '{parameter}', which is no trained parameter of this network"
            )
        place = places[parameter] if parameter in places else int(parameter)  # a number: of before there were names
        own = sharded_as(value, parameters[place])
        state.setdefault(place, {})[name] = own.clone()  # not the mapped file, which some disks would not remove
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
