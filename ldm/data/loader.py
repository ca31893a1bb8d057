"""Batches in an order that is a pure function of (seed, step, rank): a resumed run reads on where it stopped."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Sampler as TorchSampler
from tqdm import tqdm

from ldm.data.workers import begin_as_worker, prepare_to_fork
from ldm.ranks import is_first_process
from ldm.types import Batch, Key, Sample


class StepSampler(TorchSampler[list[Key]]):
    """An endless run of batches of keys, each epoch a permutation of its own; ``start`` is the first batch's number."""

    def __init__(self, length: int, batch: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if length < 1:
            raise ValueError("the data set is empty; there is nothing to train on")
        self.length, self.batch, self.seed = length, batch, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        number, shuffled, order = self.start, -1, torch.empty(0)
        while True:
            first = (number * self.world + self.rank) * self.batch
            keys = []
            for position in range(first, first + self.batch):
                epoch, place = divmod(position, self.length)
                if epoch != shuffled:
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    shuffled, order = epoch, torch.randperm(self.length, generator=generator)
                keys.append(Key(epoch, int(order[place])))
            yield keys
            number += 1


def batches(
    dataset: Any, batch: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[Any]:
    """Endless training batches from a map-style data set, or from a stream, which shuffles and splits by itself.

    A data set whose samples are not ``Sample`` brings its own ``collate``.
    """
    if isinstance(dataset, IterableDataset):
        dataset.epoch = start  # type: ignore[attr-defined]  # a resumed run shuffles anew
        loader = _loader(dataset, workers, batch_size=batch, drop_last=True)
        while True:
            yield from _read(loader, workers)
    sampler = StepSampler(len(dataset), batch, seed=seed, start=start, rank=rank, world=world)
    yield from _read(_loader(dataset, workers, batch_sampler=sampler), workers)


def first_batches(dataset: Any, batch: int, count: int, workers: int = 0) -> Iterator[Any]:
    """The first ``count`` samples, or all where there are fewer, in order and as in epoch 0, batches of ``batch``.

    Raises:
        ValueError: a stream has none.
    """
    if isinstance(dataset, IterableDataset):
        left = count
        for loaded in _read(_loader(dataset, workers, batch_size=batch), workers):
            yield Batch(loaded.image[:left], loaded.captions[:left])
            left -= len(loaded.captions)
            if left <= 0:
                return
        if left == count:
            raise ValueError("no sample is in the archives that are held out; set data.val_urls to some that hold one")
        return
    keys = [Key(0, index) for index in range(min(count, len(dataset)))]
    parts = [keys[i : i + batch] for i in range(0, len(keys), batch)]
    yield from _read(_loader(dataset, workers, batch_sampler=parts), workers)


def first_told(dataset: Any, batch: int, count: int, workers: int, what: str) -> Iterator[Any]:
    """``first_batches`` of a map-style data set with a bar, named ``what``, which the first process alone shows."""
    loaded, total = first_batches(dataset, batch, count, workers=workers), -(-min(count, len(dataset)) // batch)
    yield from tqdm(loaded, desc=what, total=total, unit="batch", dynamic_ncols=True, disable=not is_first_process())


def _loader(dataset: Any, workers: int, **order: Any) -> DataLoader[Any]:
    forks = workers > 0 and sys.platform != "win32"
    if forks:
        prepare_to_fork()
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=getattr(dataset, "collate", collate),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=begin_as_worker,
        # a forked worker inherits the locks of its parent's threads; a fork server's has none
        multiprocessing_context="forkserver" if forks else None,
        **order,
    )


def _read(loader: DataLoader[Any], workers: int) -> Iterator[Any]:
    """What ``loader`` gives; a worker that died, or an error in one, is told in one line.

    Raises:
        ChildProcessError: a worker was killed.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ChildProcessError(
            f"one of {workers} loader workers was killed, most often because memory ran out "
            f"({' '.join(str(error).split())}); try fewer workers, a smaller batch, or workers=0"
        ) from error
    except (ValueError, OSError) as error:
        if not str(error).startswith("Caught "):
            raise
        last = str(error).strip().splitlines()[-1]  # after the traceback of the worker
        raise type(error)(last.partition(": ")[2]) from error


def collate(samples: list[Sample]) -> Batch:
    """Samples stacked to one batch."""
    return Batch(torch.stack([sample.image for sample in samples]), [sample.caption for sample in samples])
