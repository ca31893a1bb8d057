"""The optimizer, its learning rate, its precision and the weights' moving average: pure functions of the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ldm.autoencoders.bottlenecks.vq import VectorQuantizer

OPTIMIZERS = ("adamw", "muon")
MUON_MOMENTUM = 0.95
DECAYS = ("constant", "linear", "cosine")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MAX_SEED = 2**32  # what is made of one and a step stays below the 2^64 of torch.manual_seed


@dataclass
class TrainConfig:
    """How one network is trained."""

    steps: int = 10_000  # optimizer steps
    batch: int = 64  # samples a process and micro-step
    accumulate: int = 1  # micro-steps an optimizer step
    optimizer: str = "adamw"  # adamw | muon (with NAdamW for what is no linear or convolution weight)
    lr: float = 1e-4  # peak learning rate
    warmup: int = 500  # optimizer steps of linear rise
    decay: str = "cosine"  # constant | linear | cosine, from the peak to lr_end
    lr_end: float = 0.0  # share of the peak that is left at the last step
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # of AdamW, and of what Muon leaves to NAdamW
    muon_iterations: int = 5  # Newton-Schulz's, 3 or more: fewer take less time and leave small directions smaller
    weight_decay: float = 0.01  # decoupled, on matrices, kernels and tables of words; not on codebooks
    clip: float = 1.0  # gradient norm; 0 does not clip
    ema: float = 0.9995  # decay of the weights' moving average, reached by warm-up; 0 keeps none
    precision: str = "auto"  # auto (what the device multiplies fastest) | fp32 | bf16 | fp16
    compile: bool = False  # torch.compile the network
    shard: bool = False  # weights, gradients, optimizer and average over the processes (FSDP): the denoiser's only
    seed: int = 0
    workers: int = 1  # loader processes
    log_every: int = 20  # optimizer steps, likewise below
    validate_every: int = 500
    validate_samples: int = 512  # how many held-out samples a validation looks at
    sample_every: int = 1_000
    score_every: int = 0  # 0: never; the denoiser's score on shapes, else minus its held-out loss: the best is kept
    score_prompts: int = 100  # how many prompts a score looks at, rounded up to as many of each of 10 categories
    save_every: int = 500
    keep: int = 2  # checkpoints
    tracker: str = ""  # an accelerate tracker besides the log file: tensorboard, wandb, ...

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "accumulate",
            "log_every",
            "validate_every",
            "sample_every",
            "save_every",
            "keep",
            "validate_samples",
            "score_prompts",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        if self.muon_iterations < 3:  # the first two alone leave large directions smaller than others
            raise ValueError(f"muon_iterations {self.muon_iterations} is not at least 3; try muon_iterations=5")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr {self.lr} is not a positive number; try lr=1e-4")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema {self.ema} is not in [0, 1); try ema=0.999")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} are not two numbers in [0, 1); try betas=[0.9,0.99]")
        for name, known in (("optimizer", OPTIMIZERS), ("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} '{getattr(self, name)}' is not one of {', '.join(known)}")
        refused = {
            "optimizer=muon": (self.optimizer == "muon", "orthogonalises whole matrices; try optimizer=adamw"),
            "compile=true": (self.compile, "compiles the network in one piece; try compile=false"),
            "precision=fp16": (self.precision == "fp16", "scales losses, which is not there; try precision=bf16"),
        }
        for setting, (asked, why) in refused.items():
            if self.shard and asked:
                raise ValueError(f"shard=true does not go with {setting}, which {why}")
        for name in ("warmup", "lr_end", "weight_decay", "clip", "seed", "workers", "score_every"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is not a finite number of at least 0")
        if self.seed >= MAX_SEED:
            raise ValueError(f"seed {self.seed} is not below 2^32; try seed={self.seed % MAX_SEED}")


def optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """What ``config`` names, over the trainable parameters; biases, gains, codes and other vectors are not decayed.

    "adamw" is Loshchilov & Hutter's (arXiv:1711.05101). "muon" orthogonalises the momentum of every weight of a
    linear or convolution layer, the latter as a matrix (out, in k k) (https://kellerjordan.github.io/posts/muon),
    scaled so that AdamW's learning rates serve (Liu et al. 2025, arXiv:2502.16982, Sec. 2.2), by the first
    ``muon_iterations`` of Newton-Schulz with timm's coefficients, in bfloat16 where the hardware multiplies it; all
    else, such as tables and vectors, gets NAdamW.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    codebooks = {m.codebook for m in network.modules() if isinstance(m, VectorQuantizer)}
    decayed = [p for p in trained if p.ndim >= 2 and p not in codebooks]
    vectors = {"params": [p for p in trained if p.ndim < 2 or p in codebooks], "weight_decay": 0.0}
    betas = (config.betas[0], config.betas[1])
    if config.optimizer == "adamw":
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, vectors]
        return AdamW(groups, lr=config.lr, betas=betas, fused=True)
    from timm.optim import Muon  # importing timm takes seconds, which a script's --help should not wait for

    from ldm.training.muon import SinglePrecisionMuon

    kind = Muon if resolve_precision("auto", trained[0].device) == "bf16" else SinglePrecisionMuon
    mapping = _mapping_weights(network)
    groups = [
        {"params": [p for p in decayed if p in mapping], "use_muon": True},
        {"params": [p for p in decayed if p not in mapping], "use_fallback": True},
        {**vectors, "use_fallback": True},
    ]
    decay = config.weight_decay
    return kind(
        groups,
        lr=config.lr,
        betas=betas,
        weight_decay=decay,
        momentum=MUON_MOMENTUM,
        nesterov=True,
        ns_steps=config.muon_iterations,
    )


def _mapping_weights(network: nn.Module) -> set[Tensor]:
    """The weights that map activations to activations, which Muon is made for; not tables that are looked up."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    fused = [m.in_proj_weight for m in network.modules() if isinstance(m, nn.MultiheadAttention)]
    return {weight for weight in (*(layer.weight for layer in layers), *fused) if weight is not None}


def learning_rate(opt: Optimizer, config: TrainConfig, step: int = 0) -> LambdaLR:
    """Linear warm-up, then the decay, as a pure function of the optimizer step, set to ``step``."""

    def factor(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
        left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + cos(pi * done))}[config.decay]
        return config.lr_end + (1 - config.lr_end) * left

    schedule = LambdaLR(opt, factor)
    for group, rate in zip(opt.param_groups, schedule.base_lrs, strict=True):
        group["lr"] = rate * factor(step)
    schedule.last_epoch = step
    return schedule


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of ``network``, whose decay rises from 0.1 to ``decay`` as (1 + n) / (10 + n)."""

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - now)

    return AveragedModel(network, multi_avg_fn=average)


def resolve_precision(asked: str, device: torch.device) -> str:
    """``auto`` as what this machine computes fastest: bf16 where the hardware multiplies it, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    # newer than the oldest torch that we support, which so stays with float32
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_tile") or known.get("avx512_bf16") or known.get("bf16"))
