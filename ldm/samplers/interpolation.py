"""What multistep and singlestep solvers make of several predictions: the mean of the polynomial through them.

A step of the probability-flow ODE is exact when it is made with the right mean of x0, or of the noise, over the way:

    x0:     x_to / sigma_to - x_now / sigma_now = integral of x0 d(alpha / sigma), which ``move`` takes given the mean
    noise:  x_to / alpha_to - x_now / alpha_now = integral of noise d(sigma / alpha), which ``along`` takes

Over u in [0, 1], the share of the step in log(alpha / sigma) that is done, the first mean has a density in proportion
to exp(h u) and the second to exp(-h u), h the length of the step. All exponential integrators follow from this.

Legend: K known predictions, Q points of quadrature.
"""

from collections.abc import Sequence
from functools import cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.types import Level

Row = NDArray[np.float64]
Known = tuple[float, Tensor]  # the place at which a prediction was made, and the prediction
POINTS = 16  # of quadrature: exact to rounding for tilts of 10 and more
STEEP = 1e6  # a tilt from which on all weight is at the last point


def place(level: Level) -> float:
    """log(alpha / sigma)."""
    return float(level.log_snr) / 2


@cache
def gauss() -> tuple[Row, Row]:
    """Points (Q,) in [0, 1] and their masses (Q,) of Gauss-Legendre quadrature."""
    points, masses = np.polynomial.legendre.leggauss(POINTS)
    return (points + 1) / 2, masses / 2


def mean_weights(nodes: Row, points: Row, masses: Row) -> list[float]:
    """What each of K values counts in the mean of the polynomial through them; they add up to 1.

    The values stand at ``nodes`` (K,); the mean is over ``points`` (Q,), each counted ``masses`` (Q,) times.
    """
    bases = [
        np.prod([(points - other) / (node - other) for other in nodes if other != node], axis=0) * np.ones_like(points)
        for node in nodes
    ]  # K (Q,): Lagrange's polynomials
    return [float(basis @ masses / masses.sum()) for basis in bases]


def mean_prediction(known: Sequence[Known], end: float, tilt: float, middle: float | None = None) -> Tensor:
    """The mean of the polynomial through ``known`` over the step from the first one's place to ``end``.

    The mean's density over the share u of the step is in proportion to exp(tilt u): ``tilt`` is h for x0 and -h for the
    noise. ``middle`` replaces the mean of u where two values are known, for solvers that are defined so. An infinitely
    long step has no polynomial: it takes the first prediction.
    """
    start, first = known[0]
    if len(known) == 1 or not isfinite(end):
        return first
    nodes = np.array([(where - start) / (end - start) for where, _ in known])
    if len(known) == 2 and middle is not None:
        share = middle / float(nodes[1])
        return blend((1 - share, share), (first, known[1][1]))
    points, masses = gauss()
    masses = masses * np.exp(min(tilt, STEEP) * (points - points[-1]))  # 1 at the last point: not all can vanish
    return blend(mean_weights(nodes, points, masses), [value for _, value in known])


def blend(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """The sum of ``values``, each times its weight."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
