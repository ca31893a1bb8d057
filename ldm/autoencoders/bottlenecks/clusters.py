"""Vectors and the codes nearest to them: what a codebook is made and kept up with.

Legend: N vectors, C channels, K codes.
"""

import torch
from torch import Tensor

from ldm.ranks import sum_over_ranks

EPS = 1e-5  # of a smoothed count
AT_ONCE = 2**26  # distances: 256 MiB of them


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """For each vector of ``x`` (..., C) the number (...) of the nearest of ``codebook`` (K, C), in float32."""
    vectors, codes = x.detach().float().flatten(0, -2), codebook.detach().float()
    centre = codes.mean(dim=0)  # far from 0 the squares that distances are made of would drown them
    vectors, codes = vectors - centre, codes - centre
    with torch.autocast(x.device.type, enabled=False):
        parts = [torch.cdist(part, codes).argmin(dim=1) for part in vectors.split(max(1, AT_ONCE // len(codes)))]
    return torch.cat(parts).view(x.shape[:-1])


def tally(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many of the vectors ``x`` (N, C) have each index (K,), and their sums (K, C), over all processes."""
    counts = torch.bincount(indices, minlength=num_codes).to(x.dtype)
    sums = x.new_zeros(num_codes, x.shape[1]).index_add_(0, indices, x)
    return sum_over_ranks(counts), sum_over_ranks(sums)


def smoothed(counts: Tensor) -> Tensor:
    """Counts (K,) moved a little towards even ones, their sum kept: none is 0 (Laplace's rule with EPS)."""
    total = counts.sum()
    return (counts + EPS) / (total + len(counts) * EPS) * total


def pick(x: Tensor, count: int) -> Tensor:
    """``count`` of the vectors ``x`` (N, C) at random, none twice before all were taken."""
    order = torch.randperm(len(x), device=x.device)
    return x[order.repeat(-(-count // len(x)))[:count]]


def k_means(x: Tensor, count: int, steps: int) -> Tensor:
    """Centres (count, C) of the vectors ``x`` (N, C) after ``steps`` of Lloyd's algorithm from some of them.

    A centre that no vector is nearest to stays where it is.
    """
    centres = pick(x, count)
    for _ in range(steps):
        indices = nearest(x, centres)
        sums = torch.zeros_like(centres).index_add_(0, indices, x)
        counts = torch.bincount(indices, minlength=count)[:, None]  # (count, 1)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
