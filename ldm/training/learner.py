"""One network in training: its optimizer and learning rate, its wrapping for devices, its part of a checkpoint."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldm.training import checkpoint
from ldm.training.optim import TrainConfig, learning_rate, optimizer
from ldm.training.sharding import hollow, shard, whole
from ldm.training.task import Loss


class Learner:
    """``resume`` or not, then ``begin``, then for each step ``backward`` some times, ``clip`` and ``update``.

    ``prefix`` sets its files and facts in a checkpoint apart.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, accelerator: Accelerator, prefix: str = "") -> None:
        self.config, self.accelerator, self.prefix = config, accelerator, prefix
        self.network = network.to(accelerator.device)
        self.resumed = 0  # updates that a checkpoint had
        self.checkpoint: Path | None = None

    def resume(self, path: Path, state: dict[str, Any]) -> None:
        """Take weights and fp16's scale from the checkpoint ``path`` with its ``state``; ``begin`` the optimizer."""
        self.checkpoint = path
        checkpoint.load_part(self.network, path, f"{self.prefix}weights")
        self.resumed = int(state.get(f"{self.prefix}updates", state["step"]))
        if self.accelerator.scaler is not None and f"{self.prefix}scaler" in state:
            self.accelerator.scaler.load_state_dict(state[f"{self.prefix}scaler"])

    def begin(self) -> None:
        """Wrap or shard the network for device and processes; give it its optimizer, at the rate of the next update."""
        if self.config.shard:
            self.double = hollow(self.network)
            shard(self.network, self.accelerator.device)
        opt = optimizer(self.network, self.config)
        self.schedule = learning_rate(opt, self.config, self.resumed)
        self.opt: Any = self.accelerator.prepare_optimizer(opt)
        if self.checkpoint is not None:  # once it is prepared: that puts all of its state onto the GPU, counters too
            parameters = dict(self.network.named_parameters())
            held = checkpoint.read_part(self.checkpoint, f"{self.prefix}optimizer", parameters)
            checkpoint.load_optimizer(opt, self.network, held)
        network = torch.compile(self.network) if self.config.compile else self.network
        self.wrapped: nn.Module = self.network if self.config.shard else self.accelerator.prepare_model(network)

    def whole(self, network: nn.Module) -> nn.Module:
        """``network``, this one's or its average, with all its weights in this process; all must call it."""
        return whole(network, self.double) if self.config.shard else network

    def backward(self, loss: Callable[[nn.Module], Loss | None], *, last: bool) -> Loss | None:
        """Add the gradient of one micro-step's ``loss`` of the wrapped network, where there is one, and return it.

        With the ``last`` micro-step of a step the processes exchange the sum; those of a sharded network, which do not
        hold it whole, exchange each.
        """
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            with self.accelerator.autocast():
                found = loss(self.wrapped)
            if found is not None:
                self.accelerator.backward(found[0] / self.config.accumulate)
        return found

    def clip(self) -> Tensor:
        """The gradient's norm (), the same on all processes, before it is brought down to the configured one."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip or float("inf"))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norm.to(self.accelerator.device)  # that of no gradients lies on the CPU

    def update(self, *, finite: bool, overflow: bool) -> None:
        """Step optimizer and schedule, where all is ``finite`` and there is a gradient, and forget the gradient.

        ``overflow`` says that a gradient is not finite.
        """
        scaler = self.accelerator.scaler
        learns = any(weight.grad is not None for weight in self.network.parameters())
        if finite or (overflow and scaler is not None):  # fp16's scaler skips, and must see why
            self.opt.step()
        elif scaler is not None:
            scaler.update()  # the gradient was sound; it takes no other before it is told that this one is done with
        if finite and learns:
            self.schedule.step()
        self.opt.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return float(self.opt.param_groups[0]["lr"])

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What ``resume`` and ``begin`` read, by the names of its parts."""
        return {
            f"{self.prefix}weights": self.network.state_dict(),
            f"{self.prefix}optimizer": checkpoint.optimizer_tensors(self.opt.optimizer, self.network),
        }

    def facts(self) -> dict[str, Any]:
        """What ``resume`` finds in the checkpoint's state."""
        facts = {f"{self.prefix}updates": self.schedule.last_epoch}  # fewer than steps where some were skipped
        if self.accelerator.scaler is not None:
            facts[f"{self.prefix}scaler"] = self.accelerator.scaler.state_dict()
        return facts
