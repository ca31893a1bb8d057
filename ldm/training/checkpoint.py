"""Checkpoints: what a training run needs to go on, each a whole folder (``ldm.files``), the newest kept."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ldm.files import BrokenFile, check_folder, save_tensors, whole_folder

PREFIX = "step-"


def save_state(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], keep: int
) -> None:
    """Write ``folder``/step-N, one safetensors file for each of ``tensors``; then drop all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder / f"{PREFIX}{step:08d}") as staged:
        for name, part in tensors.items():
            save_tensors(part, staged / f"{name}.safetensors")
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


def optimizer_tensors(opt: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors "<parameter number>.<name>"; its settings come from the configuration."""
    state = opt.state_dict()["state"]
    parts = ((f"{i}.{name}", value) for i, part in state.items() for name, value in part.items())
    return {name: value for name, value in parts if isinstance(value, Tensor)}


def load_optimizer(opt: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
