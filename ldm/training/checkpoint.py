"""Checkpoints: what a training run needs to go on, each a whole folder (``ldm.files``), the newest kept."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.files import BrokenFile, check_folder, read_tensors, save_tensors, sweep, whole_folder
from ldm.training.sharding import sharded_as
from ldm.training.shares import read_shares

PREFIX = "step-"

Parts = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by the name of their file


def write_whole(parts: Parts, folder: Path) -> None:
    """One safetensors file for each of ``parts``."""
    for name, part in parts.items():
        save_tensors(dict(part), folder / f"{name}.safetensors")


def save_state(
    folder: Path,
    step: int,
    parts: Parts,
    facts: dict[str, Any],
    keep: int,
    write: Callable[[Parts, Path], None] = write_whole,
) -> None:
    """Write ``folder``/step-N, where ``parts`` lie as ``write`` lays them; then drop all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, f"{PREFIX}*")
    with whole_folder(folder / f"{PREFIX}{step:08d}") as staged:
        write(parts, staged)
        (staged / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1))
    newer = [path for path in saved(folder) if path.name > f"{PREFIX}{step:08d}"]  # torn: this run passed them over
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


def read_part(path: Path, name: str, beside: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors called ``name`` in the checkpoint ``path``: those of one file whole, of shares as ``read_shares``."""
    file = path / f"{name}.safetensors"
    return read_tensors(file) if file.is_file() else read_shares(path / name, beside or {})


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
        state.setdefault(place, {})[name] = sharded_as(value, parameters[place])
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
