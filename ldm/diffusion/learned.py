"""A noise schedule that is learned, the monotone network of variational diffusion models; and one that is a list.

Kingma et al. 2021, arXiv:2107.00630, Sec. 4.1, App. H and I. The variational bound depends on a schedule's end points
alone, so what lies between them may be chosen for the least variance of the loss over times. What was learned is kept
as a list: ``scripts/learn_schedule.py``.

Legend: B batch, U hidden units, K listed values.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, log

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.continuous import ClosedForm, Curve, preserved
from ldm.diffusion.times import evenly_spread
from ldm.types import Level

STEEPNESS = 10.0  # of each hidden unit at first, which so bends about a third of the time
BISECTIONS = 45  # halvings of [0, 1]: a time to 1e-14
FIT_STEPS, FIT_TIMES, FIT_RATE = 500, 256, 0.03  # of Adam, of a batch, and its learning rate


@dataclass
class LearnedConfig:
    """A monotone network for -log SNR between two ends: linear, and a hidden layer that bends the line."""

    gamma_0: float = -13.3  # -log SNR at t = 0
    gamma_1: float = 5.0  # at t = 1
    units: int = 1_024

    def __post_init__(self) -> None:
        if not -inf < self.gamma_0 < self.gamma_1 < inf:
            raise ValueError(f"gamma_0 {self.gamma_0} is not below gamma_1 {self.gamma_1}; try -13.3 and 5")
        if self.units < 1:
            raise ValueError(f"units {self.units} is not at least 1; try units=1024")

    def build(self) -> "LearnedSchedule":
        return LearnedSchedule(self)


class LearnedSchedule(Curve, nn.Module):
    """gamma(t) = -log SNR rises from gamma_0 to gamma_1 whatever the parameters, along l1(t) + l3(sigmoid(l2(l1(t)))).

    Variance preserving: alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma). The layers' weights are the exponentials
    of parameters, and so positive; l1 and l3 have no biases, for l2's and the rescaling do their work.
    At first gamma is nearly linear in t. Levels of tensors are differentiable in the parameters.
    """

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Parameter(torch.zeros(()))  # log weight of l1
        self.second = nn.Parameter(torch.full((config.units,), log(STEEPNESS)))  # log weights of l2
        self.bias = nn.Parameter(-STEEPNESS * torch.linspace(0, 1, config.units))  # units that each bend elsewhere
        self.third = nn.Parameter(torch.full((config.units,), -log(config.units)))  # log weights of l3

    def gamma(self, t: Tensor) -> Tensor:
        """-log SNR at times ``t`` of any shape, in float64 and of that shape."""
        start, scale = self._rescaling()
        return self.config.gamma_0 + scale * (self._raw(t.double())[0] - start)

    def rate(self, t: Tensor) -> Tensor:
        """d gamma / dt at times ``t`` of any shape, in float64 and of that shape."""
        return self._rescaling()[1] * self._raw(t.double())[1]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserved(nn.functional.logsigmoid(-self.gamma(t)))

    @torch.no_grad()
    def inverse(self, nsr: float) -> float:
        below, above = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (below + above) / 2
            if self.gamma(torch.tensor(middle, dtype=torch.float64)) < 2 * log(nsr):
                below = middle
            else:
                above = middle
        return (below + above) / 2

    def _rescaling(self) -> tuple[Tensor, Tensor]:
        """The raw network at t = 0, and the factor that takes its rise to the end points'."""
        start, end = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64))[0]
        return start, (self.config.gamma_1 - self.config.gamma_0) / (end - start)

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """l1(t) + l3(sigmoid(l2(l1(t)))) and its derivative."""
        first, second, third = (log_weight.double().exp() for log_weight in (self.first, self.second, self.third))
        straight = first * t.to(first.device)
        bent = torch.sigmoid(straight[..., None] * second + self.bias)  # (..., U)
        return straight + bent @ third, first * (1 + (bent * (1 - bent) * second) @ third)


def variance_step(
    schedule: LearnedSchedule, optimizer: torch.optim.Optimizer, integrand: Callable[[Level], Tensor], t: Tensor
) -> float:
    """The mean over times ``t`` (B,) of the squared loss, before a step of ``optimizer`` that lowers it.

    The loss at t is integrand(level) d gamma / dt, where ``integrand`` gives each sample's share of the bound per unit
    of log SNR (B,), half the squared error of the noise, and is differentiable in the level. The loss's mean over
    uniform t does not depend on the schedule's parameters, so the gradient of the squared loss is that of its variance
    (Kingma et al. 2021, arXiv:2107.00630, App. I.2). No gradient is left in any parameter but the schedule's.
    """
    losses = integrand(schedule.level(t)) * schedule.rate(t)  # (B,)
    squared = losses.square().mean()
    parameters = list(schedule.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(squared, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return squared.item()


def fit(schedule: LearnedSchedule, integrand: Callable[[Level], Tensor], seed: int = 0) -> tuple[float, float]:
    """Give ``schedule`` the least variance of the loss whose ``integrand`` is that of ``variance_step``.

    Returns the means of the squared loss over times before and after.
    """
    optimizer, generator = torch.optim.Adam(schedule.parameters(), lr=FIT_RATE), torch.Generator().manual_seed(seed)
    found = [
        variance_step(schedule, optimizer, integrand, evenly_spread(FIT_TIMES, generator)) for _ in range(FIT_STEPS)
    ]
    return found[0], found[-1]


def on_lines(place: Tensor, values: Tensor) -> Tensor:
    """Where the lines through ``values`` (K,), evenly spaced over [0, 1], are at ``place``, of any shape, cut to it."""
    last = len(values) - 1
    at = place.clamp(0, 1) * last
    below = at.detach().floor().clamp(max=last - 1).long()
    return torch.lerp(values[below], values[below + 1], at - below)


@dataclass
class ListedConfig(ClosedForm):
    """-log SNR on the lines through a list of values, evenly spaced in t; variance preserving.

    The two values that stand here make it linear in t. x at t = 0 keeps the noise that the first one says.
    """

    gamma: list[float] = field(default_factory=lambda: [-13.3, 5.0])  # -log SNR, from t = 0 to t = 1

    def __post_init__(self) -> None:
        rising = all(-inf < low < high < inf for low, high in pairwise(self.gamma))
        if len(self.gamma) < 2 or not rising:
            raise ValueError(f"gamma {self.gamma} is not two or more rising numbers; try gamma=[-13.3,5]")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = on_lines(t, torch.tensor(self.gamma, dtype=torch.float64, device=t.device))
        return preserved(nn.functional.logsigmoid(-gamma))

    def inverse(self, nsr: float) -> float:
        return float(np.interp(2 * log(nsr), self.gamma, np.linspace(0, 1, len(self.gamma))))
