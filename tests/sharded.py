"""What tests run in each of two processes that share a network's weights."""

import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from faulty import Line, LineTask, join, nan, trainer
from processes import SCRIPTS
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor

from ldm.cli import one_line_errors
from ldm.denoisers import DENOISERS
from ldm.training.checkpoint import read_part
from ldm.training.sharding import gathered, hollow, shard, whole
from ldm.types import Condition

CPU = torch.device("cpu")
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03}  # of the largest value of a gradient; sums are in another order


def script(rank: int, port: int, folder: Path, name: str, *options: str) -> None:
    """The script of that name, as torchrun would start it."""
    join(rank, port, folder)
    sys.argv = [name, *options]
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


class Blocks(Line):
    """A line with a block, whose weights the backward pass has to gather once more."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.blocks[0](self.first(x).relu()))


def end_in_nan(rank: int, port: int, folder: Path) -> None:
    """A training whose batches are bad from the third on, in the second process alone."""
    join(rank, port, folder)
    task = LineTask({*range(2, 1_000)}, nan)
    task.network = Blocks()
    trainer(folder / "run", task, steps=100, batch=4, shard=True).run()


def compare_denoisers(rank: int, port: int, folder: Path) -> None:
    """Every denoiser's weights and gradients, whole in each process and sharded, of other samples in each."""
    join(rank, port, folder)
    PartialState(cpu=True)
    for name in DENOISERS:
        for precision, checkpointing in (("fp32", True), ("bf16", False)):
            compare(name, precision, checkpointing, rank)


def compare(name: str, precision: str, checkpointing: bool, rank: int) -> None:
    plain, sharded = denoiser(name, checkpointing, seed=0), denoiser(name, checkpointing, seed=rank)
    double = hollow(sharded)
    shard(sharded, CPU)
    for key, value in whole(sharded, double).state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), f"{name}: {key} is not as the first process has it"
    generator = torch.Generator().manual_seed(rank)
    cond = Condition(torch.randn(2, 3, 8, generator=generator), torch.randn(2, 8), torch.ones(2, 3, dtype=torch.bool))
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(2, generator=generator)
    for network in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            network(x, t, Condition(cond.tokens, cond.tokens[:, 0], cond.mask)).square().mean().backward()
    found = gathered({key: weight.grad for key, weight in sharded.named_parameters()})
    for key, weight in plain.named_parameters():
        all_reduce(weight.grad)
        wanted = weight.grad / 2
        error = (found[key] - wanted).abs().max() / wanted.abs().max()
        assert found[key].dtype == torch.float32 and error < TOLERANCE[precision], f"{name}: {key} {precision} {error}"


def denoiser(name: str, checkpointing: bool, seed: int) -> nn.Module:
    """A small one in which no weight is zero, so that gradients reach all."""
    config = DENOISERS[name](width=32, heads=2, checkpointing=checkpointing)
    network: nn.Module = config.build(channels=4, text_width=8, pooled_width=8)
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return network


ROWS = 100_000


class Wide(LineTask):
    """A line with a layer of 2 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, ROWS), nn.Linear(ROWS, 1))


def save_apart(
    rank: int,
    port: int,
    folder: Path,
    *,
    steps: int = 4,
    shard: bool = True,
    elsewhere: bool = False,
    file_size: int = 0,
) -> None:
    """A training whose second process writes ``elsewhere``, or has a disk that takes ``file_size`` bytes."""
    join(rank, port, folder)
    place = folder / str(rank) if elsewhere and rank else folder
    place.mkdir(exist_ok=True)
    os.chdir(place)
    if file_size and rank:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    with one_line_errors():
        trainer(Path("run"), Wide(), steps=steps, batch=4, shard=shard).run()


def read_back(rank: int, port: int, folder: Path, path: Path) -> None:
    """The optimizer's part of a checkpoint at ``path``, into a sharded network, of which this process has its rows."""
    join(rank, port, folder)
    PartialState(cpu=True)
    network = Wide().network
    shard(network, CPU)
    found = read_part(path, "optimizer", dict(network.named_parameters()))
    assert all(isinstance(value, DTensor) for key, value in found.items() if not key.endswith(".step"))
    mine = found["0.weight.exp_avg"].to_local()
    whole = read_part(path, "optimizer")["0.weight.exp_avg"]
    assert torch.equal(mine, whole[rank * ROWS // 2 : (rank + 1) * ROWS // 2])
