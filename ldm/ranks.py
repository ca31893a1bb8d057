"""What a batch is over several processes that train together: sums, means and vectors of all of them.

Each of these waits for every process, so all must call it alike, but for ``is_first_process``. With one process it
gives back what it is given.
"""

import os

import torch
from torch import Tensor, distributed


def is_first_process() -> bool:
    """Whether this is the process that speaks for all; torchrun tells each its RANK before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every process's ``x``, without a gradient."""
    x = x.detach()
    if distributed.is_initialized():
        x = x.clone(memory_format=torch.contiguous_format)  # the sum is written into it
        distributed.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of every process's ``x`` in value, with the gradient of this one's.

    For f(mean) with f not linear: DDP takes the mean of the processes' gradients f'(mean) dx, which so is d f(mean).
    """
    if not distributed.is_initialized():
        return x
    mean = sum_over_ranks(x) / distributed.get_world_size()
    return mean + (x - x.detach())


def rows_of_ranks(x: Tensor) -> Tensor:
    """The rows of every process's ``x`` (N, ...), those of the first first; all have as many. Without a gradient."""
    x = x.detach()
    if distributed.is_initialized():
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        x = torch.cat(parts)
    return x


def told_by_first_rank(x: Tensor) -> Tensor:
    """The first process's ``x``."""
    if distributed.is_initialized():
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(x, 0)
    return x


def finite_everywhere(x: Tensor) -> bool:
    """Whether all of every process's ``x`` is finite."""
    return not sum_over_ranks((~x.isfinite()).sum())
