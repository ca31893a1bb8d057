"""What a reconstruction costs beside its image: a weighted sum of terms, of which those of weight 0 are not built.

Legend: B batch, H W image size; x an image, y its reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Laplace, Normal
from torch.nn import functional as F

from ldm.autoencoders.losses.structure import WINDOW, ms_ssim
from ldm.config import nearest

Term = Callable[[Tensor, Tensor], Tensor]  # x, y -> ()

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # of LPIPS, by torchvision's name
LPIPS_SIDE = 32  # pixels; AlexNet's pooling leaves nothing of much smaller ones
WEIGHTS = ("l1", "l2", "lpips", "ms_ssim", "gaussian", "laplace", "bernoulli")


def backbone(name: str) -> str:
    """torchvision's name of LPIPS' backbone ``name``; ValueError where it has none of it."""
    if name not in BACKBONES:
        raise ValueError(f"LPIPS has no backbone '{name}'; {nearest(name, list(BACKBONES))}")
    return BACKBONES[name]


@dataclass
class ReconstructionConfig:
    """Weights of the terms, each a mean over image values in [-1, 1] or, of lpips and ms_ssim, over images.

    The likelihoods are in nats an image value, as the KL is: with its weight at 1 the loss is a bound on -log p(x).
    """

    l1: float = 1.0  # |x - y|: but for a constant -log Laplace(x; y, 1)
    l2: float = 0.0  # (x - y)^2: likewise -log N(x; y, 1/2)
    lpips: float = 0.0  # perceptual distance (arXiv:1801.03924), of images of 32 pixels and up
    ms_ssim: float = 0.0  # 1 - the similarity of structure, of images of 11 pixels and up
    gaussian: float = 0.0  # -log N(x; y, scale^2), a density of image values
    laplace: float = 0.0  # -log Laplace(x; y, scale), likewise
    bernoulli: float = 0.0  # of black or white, (y + 1) / 2 the probability of white; wants autoencoder.bounded
    scale: float = 0.1  # of the Gaussian, its std, and of the Laplace
    lpips_backbone: str = "vgg"  # vgg, as published autoencoders have it | alex | squeeze
    lpips_weights: str = ""  # file of the backbone's weights, or "download"; if empty, torch's hub cache must have it

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in WEIGHTS}
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights {weights} must be finite, at least 0 and not all 0; try l1=1")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale {self.scale} is not a positive number; try scale=0.1")
        backbone(self.lpips_backbone)

    def check(self, size: int) -> None:
        """Raise ValueError where images of ``size`` pixels are too small for a term that has a weight."""
        for name, least in (("lpips", LPIPS_SIDE), ("ms_ssim", WINDOW)):
            if getattr(self, name) and size < least:
                key = f"reconstruction.{name}"
                raise ValueError(f"{key} needs images of {least} pixels, and these have {size}; set {key}=0")

    def build(self, lpips: nn.Module | None = None) -> "ReconstructionLoss":
        """The loss; ``lpips`` gives distances (B,) of images, and must be there where it has a weight."""
        return ReconstructionLoss(self, lpips)


class ReconstructionLoss(nn.Module):
    """The sum of the terms that its configuration weighs, of images in [-1, 1]; see ``ReconstructionConfig``."""

    def __init__(self, config: ReconstructionConfig, lpips: nn.Module | None = None) -> None:
        super().__init__()
        if config.lpips and lpips is None:
            raise ValueError(f"lpips {config.lpips} is a weight of a network that is not given; try lpips=0")
        self.lpips = lpips
        every = _terms(config.scale) | ({} if lpips is None else {"lpips": lambda x, y: lpips(y, x).mean()})
        self.weighted = {name: (getattr(config, name), every[name]) for name in WEIGHTS if getattr(config, name)}

    def forward(self, image: Tensor, decoded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term for the log; both images (B, 3, H, W) in [-1, 1], computed in float32."""
        with torch.autocast(image.device.type, enabled=False):
            terms = {name: term(image, decoded.float()) for name, (_, term) in self.weighted.items()}
        total = torch.stack([weight * terms[name] for name, (weight, _) in self.weighted.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}


def _terms(scale: float) -> dict[str, Term]:
    """Every term that needs no weights. A reconstruction that is not finite gives such a loss, and raises nothing."""
    return {
        "l1": F.l1_loss,
        "l2": F.mse_loss,
        "ms_ssim": lambda x, y: 1 - ms_ssim(y, x).mean(),
        "gaussian": lambda x, y: -Normal(y, scale, validate_args=False).log_prob(x).mean(),
        "laplace": lambda x, y: -Laplace(y, scale, validate_args=False).log_prob(x).mean(),
        "bernoulli": bernoulli,
    }


def bernoulli(image: Tensor, decoded: Tensor) -> Tensor:
    """The mean cross-entropy () in nats of black and white pixels, (y + 1) / 2 the probability of white.

    -p log q - (1 - p) log(1 - q) with p = (x + 1) / 2 and q = (y + 1) / 2 (Kingma & Welling 2014, arXiv:1312.6114,
    App. C.1). It is -log of a probability, with counting as its measure, on the two values x = -1 and 1: those of one
    pixel sum to 1. Grey is the chance of white, and its cost the mean over such draws: it is least at y = x. As a
    density of grey levels it would not integrate to 1 (Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845). torch
    keeps q within 1.2e-7 of 0 and 1: beyond that a pixel costs 15.9 nats, and its gradient is 0.
    """
    return -Bernoulli(probs=(decoded + 1) / 2, validate_args=False).log_prob((image + 1) / 2).mean()
