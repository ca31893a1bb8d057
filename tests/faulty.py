"""What tests run in processes of their own: saves that hang, workers that die, ranks that fail."""

import os
import signal
import sys
import time
from collections.abc import Callable, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.cli import one_line_errors
from ldm.files import whole_folder
from ldm.training.checkpoint import new_state, write_whole
from ldm.training.log import read
from ldm.training.loop import Trainer
from ldm.training.optim import TrainConfig
from ldm.training.start import PLAIN, Start
from ldm.types import Key, Sample


def fill(folder: Path, text: str) -> None:
    with whole_folder(folder) as staged:
        (staged / "a.txt").write_text(text)


def save(folder: Path, step: int, keep: int = 1) -> None:
    weights = {"w": torch.full((1_000,), float(step))}
    with new_state(folder, step, {"torch": "2"}, keep) as staged:
        write_whole({"weights": weights, "ema": weights}, staged)


def hang_in(point: str, call: Callable[..., object], *args: object) -> None:
    """``call``, which stops for ever where it would enter the function ``point`` of ``ldm.files`` the second time."""
    import ldm.files

    where, name = (Path, "rename") if point == "rename" else (ldm.files, point)
    real, calls = getattr(where, name), []

    def hang(*given: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            print("hangs", flush=True)
            Path(str(args[0])).with_name("hangs").touch()
            time.sleep(600)
        return real(*given)

    setattr(where, name, hang)
    call(*args)


class Deadly:
    """A data set whose worker is killed, as by a system without memory, when it comes to the fourth sample."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, key: Key) -> Sample:
        if key.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(torch.zeros(3, 8, 8), "a ring")


class Wrong(Deadly):
    """A data set that finds a fault in its worker."""

    def __getitem__(self, key: Key) -> Sample:
        raise ValueError("3 of 4 samples are broken; look at them")


class Line(nn.Module):
    """Two layers with names that an error can tell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class LineTask:
    """Fits a line. The batches whose numbers are ``bad`` hold what ``spoil`` makes of them, on the last rank."""

    name = "line"
    best_by_loss = False

    def __init__(self, bad: Set[int] = frozenset(), spoil: Callable[[Tensor], Tensor] = torch.clone) -> None:
        self.network, self.learned = Line(), nn.Module()
        self.bad, self.spoil, self.exported = bad, spoil, 0

    def batches(self, start: int, rank: int, world: int) -> Any:
        number = start
        while True:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number)).chunk(world)[rank]
            yield self.spoil(x) if number in self.bad and rank == world - 1 else x
            number += 1

    def loss(self, network: nn.Module, batch: Tensor, seed: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return (network(batch) - batch.sum(dim=1, keepdim=True)).square().mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}

    def sample(self, network: nn.Module, picture: Path) -> None:
        picture.parent.mkdir(exist_ok=True, parents=True)

    def score(self, network: nn.Module) -> None:
        return None

    def export(self, network: nn.Module, *, best: bool = False) -> None:
        self.exported += 1

    def exports(self) -> list[list[nn.Module]]:
        return [[self.network]]


def trainer(folder: Path, task: LineTask, start: Start = PLAIN, described: str = "", **settings: Any) -> Trainer:
    common = {"steps": 6, "batch": 8, "warmup": 0, "decay": "constant", "log_every": 1, "save_every": 2, "lr": 1e-2}
    config = TrainConfig(**{**common, "precision": "fp32", "workers": 0, **settings})
    given = {"described": described, "made_from": {}, "device": torch.device("cpu")}
    return Trainer(task, config, folder, start=start, **given)


def time_steps(monkeypatch: Any, module: Any, seconds: float) -> None:
    """Have each training step take so many ``seconds`` of the clock that ``module`` reads, and nothing else any."""
    now, step = [0.0], Trainer.train_step

    def timed(made: Trainer, batches: Any) -> dict[str, Tensor]:
        now[0] += seconds
        return step(made, batches)

    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def nan(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


class NanThenDeath:
    """Spoils its first batch; at its second the process is killed, unless one was killed before."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.calls = marker, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return nan(x) if self.calls == 1 else x


def terminate(x: Tensor) -> Tensor:
    """``x``, and a signal to this process alone."""
    signal.raise_signal(signal.SIGTERM)
    return x


def fail(_: Tensor) -> Tensor:
    raise ValueError("the third batch of this rank cannot be read")


def rank_of_two(
    rank: int | None,
    port: int,
    folder: Path,
    bad: set[int],
    spoil: Callable[[Tensor], Tensor],
    steps: int,
    **settings: Any,
) -> None:
    """One of two processes that train together; without a ``rank`` its launcher has said who it is."""
    rank = join(rank, port, folder)
    made = trainer(folder / "run", LineTask(bad, spoil), steps=steps, batch=4, **settings)
    try:
        made.run()
    finally:
        sys.stdout.flush()
        if not made.config.shard:
            torch.save({**made.network.state_dict()}, folder / f"weights-{rank}.pt")


def join(rank: int | None, port: int, folder: Path) -> int:
    """The rank of this process, which is to be one of two; what it prints goes to a file in ``folder``."""
    rank = int(os.environ["RANK"]) if rank is None else rank
    output = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    torch.set_num_threads(1)
    if port:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return rank


def script_of_two(
    folder: Path, bad: set[int], spoil: Callable[[Tensor], Tensor], steps: int, settings: dict[str, Any] | None = None
) -> None:
    """``rank_of_two`` as a script that a launcher has started: what goes wrong is told on its own terminal."""
    with one_line_errors():
        rank_of_two(None, 0, folder, bad, spoil, steps, **(settings or {}))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The log's lines."""
    return read(folder / "log.jsonl")
