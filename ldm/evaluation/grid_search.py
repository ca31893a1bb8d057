"""Noise levels that suit one model: those from which few steps come nearest to what many steps draw."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

LEAST_GAP = 1e-3  # of two times, as a share of the first over the number of times


class Found(NamedTuple):
    """Times of a grid, and their errors: root mean square differences from the exact latents."""

    times: list[float]
    error: float
    error_before: float


def optimised_times(
    draw: Callable[[list[float]], Tensor], exact: Tensor, start: Sequence[float], *, evaluations: int = 200
) -> Found:
    """Falling times in (0, 1], as many as ``start``, for which ``draw`` (B, C, h, w) comes nearest to ``exact``.

    ``draw`` takes times and gives what a deterministic sampler makes with them of the same noise each time. The search
    is Powell's over the logarithms of the gaps between the times (the last one's gap ends at 0), so that any step of
    it is a grid; it asks ``draw`` about ``evaluations`` times, and never returns what is worse than ``start``.

    Raises:
        ValueError: there are no times, or they do not fall.
    """
    gaps = -np.diff([*start, 0.0])
    if not len(gaps) or (gaps <= 0).any():
        raise ValueError(f"times {list(start)} do not fall to above 0; write e.g. [1.0, 0.5]")
    first, best, best_error = float(start[0]), list(start), np.inf

    def error(logs: NDArray[np.float64]) -> float:
        nonlocal best, best_error
        times = _times(logs, first)
        wrong = float((draw(times) - exact).square().mean().sqrt())
        if wrong < best_error:
            best, best_error = times, wrong
        return wrong

    with torch.no_grad():
        logs = np.log(gaps)
        before = error(logs)
        minimize(error, logs, method="Powell", options={"maxfev": evaluations, "xtol": 1e-2, "ftol": 1e-3})
    return Found(best, best_error, before)


def _times(logs: NDArray[np.float64], first: float) -> list[float]:
    """The times from ``first`` on whose gaps have these logarithms but for a common factor."""
    shares = np.exp(logs - logs.max())
    gaps = (1 - LEAST_GAP) * shares / shares.sum() + LEAST_GAP / len(shares)
    left = first * (1 - np.concatenate([[0.0], np.cumsum(gaps)[:-1]]))
    return [float(t) for t in left]
