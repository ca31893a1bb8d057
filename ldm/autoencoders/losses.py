"""What a reconstruction costs. A perceptual or adversarial term is one more weight and one more line in ``forward``."""

from dataclasses import dataclass, fields

from torch import Tensor, nn


@dataclass
class ReconstructionConfig:
    """Weights of the terms; each is a mean over all image values, pixels in [-1, 1]."""

    l1: float = 1.0  # |x - y|: but for a constant -log Laplace(x; y, 1)
    l2: float = 0.0  # (x - y)^2: likewise -log N(x; y, 1/2)

    def __post_init__(self) -> None:
        weights = {f.name: getattr(self, f.name) for f in fields(self)}
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights {weights} must be finite, at least 0 and not all 0; try l1=1")

    def build(self) -> "ReconstructionLoss":
        return ReconstructionLoss(self)


class ReconstructionLoss(nn.Module):
    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor, decoded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term for the log; both images (B, 3, H, W) in [-1, 1]."""
        error = decoded.float() - image
        terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
        total = self.config.l1 * terms["l1"] + self.config.l2 * terms["l2"]
        return total, terms
