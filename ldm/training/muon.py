"""timm's Muon, with its matrices in single precision where a machine does not multiply in half."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm.optim.muon as theirs
import torch
from timm.optim import Muon


class SinglePrecisionMuon(Muon):
    """Newton-Schulz in float32: timm's is in bfloat16, which takes a CPU without it ten to thirty times as long."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        orthogonalise = theirs.zeropower_via_newtonschulz
        theirs.zeropower_via_newtonschulz = partial(orthogonalise, dtype=torch.float32)  # no option says it
        try:
            return super().step(closure)
        finally:
            theirs.zeropower_via_newtonschulz = orthogonalise
