"""A network sharded over the processes of a run, and the whole of it again.

Each process holds a part of every weight, and so of its gradient, the optimizer's state and the average; the weights of
a block are whole only while it computes: stage 3 of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), by PyTorch's
FSDP2. What gathers is called by all processes, or all wait for ever.
"""

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ldm.training.engine import processes


def check_processes(device: torch.device) -> None:
    """Raise ValueError where this process is alone, so that there is none to share weights with."""
    if processes(device).num_processes == 1:
        raise ValueError(
            "shard=true shares weights among processes and here is 1; start them with torchrun "
            "--nproc-per-node N, or set shard=false"
        )


def shard(network: nn.Module, device: torch.device) -> None:
    """Shard ``network`` in place as the first process has it: each block in its lists of them, then all the rest.

    Weights are gathered as they are, in float32: what is computed in half precision is autocast's to say.
    """
    for value in (*network.parameters(), *network.buffers()):
        broadcast(value.detach(), src=0)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no loss writes into what it is given
    mesh = init_device_mesh(device.type, (processes(device).num_processes,))
    for module in (*blocks_of(network), network):
        fully_shard(module, mesh=mesh)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts of ``network`` that are gathered one by one: the members of its lists of modules."""
    return [block for part in network.children() if isinstance(part, nn.ModuleList) for block in part]


def hollow(network: nn.Module) -> nn.Module:
    """A double of ``network`` with parameters that hold no numbers, to be filled by ``whole``; buffers hold theirs."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in network.parameters()
    }
    return deepcopy(network, empty)


def whole(network: nn.Module, double: nn.Module) -> nn.Module:
    """A copy of the sharded ``network`` that holds all its weights; ``double`` is its ``hollow`` from before."""
    copy = deepcopy(double)
    copy.load_state_dict(gathered(network.state_dict()), assign=True)
    return copy


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with the sharded ones whole."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def sharded_as(value: Tensor, parameter: Tensor) -> Tensor:
    """Of ``value``, which all processes hold whole, the shard that lies beside that of ``parameter``, if it has one.

    What is sharded already stays as it is.
    """
    if isinstance(value, DTensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
