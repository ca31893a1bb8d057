"""What watches a run's numbers: losses that leap, and the module where a number first stopped being finite."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 100  # steps that a loss is compared with
FEWEST = 20  # of them before anything is called a spike
SPIKE = 10.0  # typical deviations above the median
MAD = 1.4826  # of a normal distribution: its standard deviation over its median absolute deviation


class Spikes:
    """Says of each step's loss whether it leaps out of those of the last ``WINDOW`` steps."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, loss: float) -> bool:
        """Whether ``loss`` lies ``SPIKE`` deviations above the median; both are robust, so a spike hides no other."""
        spike = False
        if isfinite(loss):
            if len(self.recent) >= FEWEST:
                usual = median(self.recent)
                deviation = MAD * median(abs(value - usual) for value in self.recent)
                spike = loss - usual > SPIKE * max(deviation, 1e-3 * abs(usual))
            self.recent.append(loss)
        return spike


def culprit(networks: dict[str, nn.Module], rerun: Callable[[], list[Tensor]]) -> str:
    """Where numbers stop being finite, in words; modules are named with their network's key before them.

    That is the first module of ``networks`` with such an output when ``rerun``, which returns their losses, passes
    through them, or, where all are finite, the last parameter with such a gradient: gradients run backwards.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if found or all_finite(out):
                return
            if not all_finite(list(module.parameters())):
                why = "whose weights are not finite"
            else:
                why = "from finite input" if all_finite(given) else "whose input is not finite"
            found.append(f"the first output that is not finite is that of '{name}' ({type(module).__name__}), {why}")

        return hook

    with ExitStack() as hooks:
        for key, network in networks.items():
            for name, module in network.named_modules():
                hooks.callback(module.register_forward_hook(watch(_named(key, name))).remove)
        losses = rerun()
    return found[0] if found else _culprit_backwards(networks, losses)


def _culprit_backwards(networks: dict[str, nn.Module], losses: list[Tensor]) -> str:
    for key, loss in zip(networks, losses, strict=False):  # a network without a loss yet is among the last
        if not all_finite(loss):
            return f"all modules give finite outputs, but the loss is not ({_named(key)})"
    named = [(_named(key, name), p) for key, network in networks.items() for name, p in network.named_parameters()]
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    total = torch.stack(losses).sum()  # no loss moves another's network
    gradients = torch.autograd.grad(total, [parameter for _, parameter in trained], allow_unused=True)
    for (name, _), gradient in reversed(list(zip(trained, gradients, strict=True))):
        if gradient is not None and not all_finite(gradient):
            return f"all outputs are finite; the first gradient that is not, from behind, is that of '{name}'"
    return "in this process all is finite: look at what the others say"


def _named(key: str, name: str = "") -> str:
    return ".".join(part for part in (key, name) if part) or "the network"


def all_finite(values: Any) -> bool:
    """Whether all floating-point tensors within ``values``, nested in any containers, are finite."""
    return all(bool(torch.isfinite(value).all()) for value in _tensors(values) if value.is_floating_point())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
