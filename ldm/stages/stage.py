"""What every stage does around its task: whose folder it writes, where it goes on, how it is trained."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ldm.config import to_yaml
from ldm.files import check_ours
from ldm.run import Run
from ldm.training.checkpoint import newest
from ldm.training.loop import Trainer
from ldm.training.optim import TrainConfig
from ldm.training.preflight import preflight
from ldm.training.start import UNREAD, Start
from ldm.training.task import Rival, Task


def own_folder(run: Run, stage: str) -> Path:
    """The folder that a stage is exported to; ValueError, before anything is trained, where it is somebody else's."""
    folder = Path(run.out) / stage
    check_ours(folder)
    return folder


def run_training(
    task: Task,
    config: TrainConfig,
    run: Run,
    device: torch.device,
    made_from: dict[str, str],
    start: Start,
    rival: Rival | None = None,
    *,
    besides: int = 0,
) -> None:
    """Train ``task`` to the end of its configuration, from its newest checkpoint; in a dry run a few steps, told.

    ``made_from`` names what the run builds on, whose change would make it another run; ``besides`` are the bytes of
    what the stage writes after its training, which a dry run counts.
    """
    trained = sum(parameter.numel() for parameter in task.network.parameters() if parameter.requires_grad)
    print(f"{task.name}: {trained / 1e6:.2f} M parameters")
    others = {name for name, value in vars(run).items() if isinstance(value, TrainConfig) and value is not config}
    make = partial(
        Trainer,
        task,
        replace(config, tracker="") if start.scratch else config,  # of a dry run nothing is kept
        described=to_yaml(run),
        made_from=made_from,
        device=device,
        rival=rival,
        start=start,
        unread=UNREAD[task.name] | others,
    )
    if start.scratch:
        print(preflight(make, start.scratch, Path(run.out), device, besides))
    else:
        make(training_folder(run, task.name)).run()


def resumes(run: Run, stage: str) -> bool:
    """Whether a whole checkpoint of ``stage`` is there to go on from; the trainer warns of broken ones."""
    return newest(training_folder(run, stage) / "state", warn=lambda _: None) is not None


def training_folder(run: Run, stage: str) -> Path:
    """The folder of the log, the sample grids and the checkpoints of a stage."""
    return Path(run.out) / "training" / stage


def taken_first(what: str, data: Any, pictures: int, config: TrainConfig, start: Start) -> int:
    """Of how many of the first ``pictures`` of ``data`` a training takes ``what`` before it begins.

    In a dry run that is as many as a step has.

    Raises:
        ValueError: ``data`` is a stream, whose first pictures are others in every process.
    """
    if isinstance(data, IterableDataset):
        raise ValueError(f"a stream has no first pictures, of which {what} could be kept; use data.name=shards")
    if not start.scratch:
        return pictures
    print(f"a run would first take {what} of {min(pictures, len(data))} pictures, which is not in the time below")
    return min(pictures, config.batch * config.accumulate)
